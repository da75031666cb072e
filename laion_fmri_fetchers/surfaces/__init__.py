"""The cortex of a subject: its files read, and volumes projected to it.

files        FreeSurfer's surfaces, masks on them, and the template fsaverage
projection   project_to_surface
mni          project_to_mni
"""
