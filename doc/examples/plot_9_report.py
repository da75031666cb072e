"""
Report and check what was fetched
=================================

A data directory grows over months and is shared. Draw what is in it, make a report to
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
# Two sessions of two subjects, and later some more of one of them.

from laion_fmri_fetchers import fetch_laion_fmri

data = fetch_laion_fmri(["sub-01", "sub-03"], rois=["face", "place"], sessions=[1, 2])
rest = fetch_laion_fmri("sub-01", rois=None, sessions=range(3, 7))

# %%
# What is on disk
# ---------------
#
# `status` tells the state of the data directory, of the licence and of the access to
# stimuli; `describe` what the bucket has, and how much of it is on disk.

from laion_fmri_fetchers import describe, status

status()
print()
describe()

# %%
# Session by session:

from matplotlib import pyplot as plt

from laion_fmri_fetchers import plot_availability

plot_availability(data)
plt.show()

# %%
# A report
# --------
#
# It is one page of HTML that needs no other file. It tells what was asked, so that the
# selection can be made again, what came, and the versions of the software. In a
# notebook it is shown as here; ``save_as_html`` keeps it.

from laion_fmri_fetchers import make_report

make_report(data, title="Face and place regions, first sessions")

# %%
# Check files
# -----------
#
# Downloads are verified as they come. Later, disks fill and copies break off:
# `verify_cache` compares files with what the bucket listed, here after one was cut.

from laion_fmri_fetchers import verify_cache

with open(data.rois[0], "r+b") as file:
    file.truncate(100)
checked = verify_cache()
checked[checked["status"] != "ok"]

# %%
# With ``repair=True``, what is broken is fetched again.

verify_cache(repair=True)["status"].value_counts()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
