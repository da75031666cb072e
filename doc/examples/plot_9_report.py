"""
Report and check what was fetched
=================================

A data directory grows over months and is shared. Make a report to keep with the
analysis, and check that all files are whole.
"""

# %%
# What is on disk
# ---------------
#
# `status` shows the state of the data directory, of the licence and of the access to
# stimuli; `describe` shows what the bucket has, and how much of it is on disk.

from laion_fmri_fetchers import describe, fetch_laion_fmri, status
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"], n_sessions=8, held_out=())
data = fetch_laion_fmri(["sub-01", "sub-03"], rois=["face", "place"], sessions=[1, 2])
assert len(data.images) == 4
status()
describe()

# %%
# A report
# --------
#
# One page of HTML that needs no other file: the arguments of the call, the files it
# returned, and the versions of the software. A notebook displays it as here;
# ``save_as_html`` saves it.

from laion_fmri_fetchers import make_report

make_report(data, title="Face and place regions, first sessions")

# %%
# Check files
# -----------
#
# Downloads are verified on the way, but later disks fill up and copies are interrupted.
# To see `verify_cache` work, a mask is cut short here; ``repair=True`` downloads it
# again.

from laion_fmri_fetchers import verify_cache

with open(data.rois[0], "r+b") as file:
    file.truncate(100)
checked = verify_cache()
damaged = checked[checked["status"] != "ok"]
assert len(damaged) == 1
damaged

# %%

verify_cache(repair=True)["status"].value_counts()

# %%

demo.stop()

# sphinx_gallery_thumbnail_path = 'pictures/overview.png'
