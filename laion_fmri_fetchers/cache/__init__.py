"""The data directory: its place, what is in it, and getting what is missing.

settings.make_settings ─▶ Settings       mode, directory, connections
    └ data_dir.get_data_dir
inventory.take_inventory ─▶ Inventory    records of files, in the bucket and on disk
    └ listings.read_catalog              new or kept listings, and files.files_on_disk
obtain.plan ─▶ obtain.obtain ─▶ Outcome  the one way to get what is missing
inventory.report_versions                outdated files, and others that differ
tables.read_trials, read_participants
obtain.fetch_public                      public files, each by its name
files.whole_file                         the one way to write a file
state.state_path                         where all else is kept
bunch.Result                             what fetchers return
"""
