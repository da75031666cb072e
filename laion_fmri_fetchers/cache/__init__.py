"""The data directory: its place, available files, and getting missing ones.

settings.make_settings ─▶ Settings       mode, directory, connections
    └ data_dir.get_data_dir
inventory.take_inventory ─▶ Inventory    records of files, in bucket and on disk
    ├ catalog.look                       listings, fresh or saved
    │   ├ listings.saved_listings
    │   └ files.files_on_disk
    ├ notes.read_notes                   which version was downloaded
    └ made_here.is_leftover
obtain.plan ─▶ obtain.obtain ─▶ Outcome  the one way to get what is missing
    └ notes.note_fetched
versions.compare_versions                the version on disk and the bucket's
tables.read_trials, read_participants
files.whole_file                         the one way to write a file
    └ temporaries.sweep                  what killed processes left is removed
state.state_path                         where all else is kept
bunch.Result                             what fetchers return
"""
