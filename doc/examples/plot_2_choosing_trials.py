"""
Choose trials before downloading
================================

Filters work on metadata: they find the sessions with the trials that a study needs, and
only those are downloaded.
"""

# %%
# Define filters
# --------------
#
# A filter has terms on fields of a trial, the columns of ``trials``. Filters combine
# with ``&``, ``|``, ``^`` and ``~``, and can be printed.

from laion_fmri_fetchers import IsIn, Pattern, ResultFilter
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03", "sub-05"])
often = ResultFilter(n_reps=12)
things = ResultFilter(dataset=IsIn("THINGS", "THINGS+"))
illusions = ResultFilter(label=Pattern(r"shared_4rep_OOD_illusion"))
wanted = often | illusions
wanted

# %%
# What would each filter cost?
# ----------------------------
#
# A dry run fetches only the small trial tables.

import pandas as pd

from laion_fmri_fetchers import fetch_laion_fmri

filters = {
    "all trials": None,
    "shown 12 times": often,
    "illusions": illusions,
    "either": wanted,
    "THINGS, not shown 12 times": things & ~often,
}
costs = []
for name, trial_filter in filters.items():
    plan = fetch_laion_fmri(
        "all", None, range(1, 5), trial_filter=trial_filter, dry_run=True, verbose=0
    )
    assert len(plan.trials)
    costs.append((name, len(plan.trials), len(plan.images), plan.plan_size / 1e6))
table = pd.DataFrame(costs, columns=["filter", "trials", "sessions", "MB"])
table.set_index("filter").round(1)

# %%
# In the demo, images shown 12 times are in half of the sessions only, so half of the
# download is saved. ``sample_masks`` has the volumes of each image that passed:

data = fetch_laion_fmri("all", None, range(1, 5), trial_filter=often)
for meta, volumes in zip(data.images_meta, data.sample_masks, strict=True):
    print(meta["subject"], meta["session"], f"{len(volumes)} trials, volumes", volumes)

# %%
# Filter a table in memory
# ------------------------
#
# ``mask`` evaluates a whole DataFrame at once:

from matplotlib import pyplot as plt

from laion_fmri_fetchers import plot_trials

everything = fetch_laion_fmri("sub-01", None, range(1, 5), dry_run=True)
trials = everything.trials
figure, axes = plt.subplots(1, 3, figsize=(7.2, 4), sharey=True, layout="constrained")
for ax, name in zip(axes, ["all trials", "either", "shown 12 times"], strict=True):
    chosen = filters[name]
    everything.trials = trials if chosen is None else trials[chosen.mask(trials)]
    plot_trials(everything, axes=ax)
    ax.set_title(f"{name}: {len(everything.trials)}")
    ax.label_outer()
    ax.get_legend().remove()
handles, names = axes[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %%
# A function of one trial is a filter, too: here the first run of each session.

first_run = fetch_laion_fmri(
    "sub-03", None, trial_filter=lambda trial: trial["run"] == 1, dry_run=True
)
assert set(first_run.trials["run"]) == {1}
print(len(first_run.trials), "trials")
demo.stop()
