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
stimuli.fetch_laion_stimuli ─┬─ cache.obtain.fetch_public
                             └─ download_archive, extract_images of stimuli
stimuli.fetch_laion_captions, …  ── cache.obtain.fetch_public
surfaces.fetch_laion_surfaces ─┬─ choose.choose_rois
                               └─ obtain, surfaces.files
discovery.get_subjects, describe, …
verify.verify_cache
status.status
"""
