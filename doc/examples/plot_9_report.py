"""
Report and check what was fetched
=================================

A data directory grows over months and is shared. Plot its contents, make a report to
keep with the analysis, and check that all files are whole.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Leave out the lines with ``demo``, and
# the rest runs on LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"], n_sessions=8, held_out=())

# %%
# Some fetches
# ------------
#
# Two sessions of two subjects, and later four more of one of them: 9 GB in LAION-fMRI.

from laion_fmri_fetchers import fetch_laion_fmri

data = fetch_laion_fmri(["sub-01", "sub-03"], rois=["face", "place"], sessions=[1, 2])
rest = fetch_laion_fmri("sub-01", rois=None, sessions=range(3, 7))

# %%
# What is on disk
# ---------------
#
# `status` shows the state of the data directory, of the licence and of the access to
# stimuli; `describe` shows what the bucket has, and how much of it is on disk.

from laion_fmri_fetchers import describe, status

status()
print()
describe()

# %%
# A report
# --------
#
# One page of HTML that needs no other file. It lists the arguments of the call, so that
# the selection can be repeated, the files it returned, and the versions of the
# software. A notebook displays it as here; ``save_as_html`` saves it.

from laion_fmri_fetchers import make_report

make_report(data, title="Face and place regions, first sessions")

# %%
# Check files
# -----------
#
# Downloads are verified on the way. Later, disks fill up and copies are interrupted:
# `verify_cache` compares files with what was downloaded and listed. To see it work, a
# mask is cut short here, which the next step repairs.

from laion_fmri_fetchers import verify_cache

with open(data.rois[0], "r+b") as file:
    file.truncate(100)
checked = verify_cache()
checked[checked["status"] != "ok"]

# %%
# With ``repair=True``, damaged files are downloaded again.

verify_cache(repair=True)["status"].value_counts()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
