"""The fetchers: calls that select files, get missing ones and return a Bunch.

fmri.fetch_laion_fmri ─┬─ subjects.check_subjects, participants
                       ├─ choose.choose_images      records in, records out
                       ├─ trials.choose_by_trials
                       ├─ choose.choose_rois, choose_companions
                       └─ bunch.fetch_chosen ─▶ make_bunch
                            └─ resample.resample_files
betas.fetch_laion_betas ─┬─ as fmri, but for the images
                         ├─ lacking.jobs_of, choose_ways, fill_store
                         └─ load_betas
pack.pack_betas ── lacking.jobs_on_disk, extract_all
fmri.fetch_laion_fmri_ids ── as fmri, for files that are named
stimuli.fetch_laion_stimuli ─┬─ stimulus_table.fetch_table
                             └─ stimulus_archive.fetch_archive
stimulus_features.fetch_laion_captions, …  ── public_files.fetch_public
surfaces.fetch_laion_surfaces ─┬─ choose.choose_rois
                               └─ obtain, arrays.geometry
discovery.get_subjects, describe, …
verify.verify_cache
status.status
checkup.doctor.doctor
"""
