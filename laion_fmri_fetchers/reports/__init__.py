"""Reports and figures of a fetched Bunch, from disk and saved listings.

Rooms, each importing only from those below it::

    report       make_report ─┬─ _query, _content, _contours, _trials, _noise_ceiling,
                    │         │  _rois, _prose, _versions ──▶ fragments of report.html
                    │         └─ _svg, _png ──▶ figures in the page
                    └─▶ Report
    figures      plot_availability, plot_rois, plot_trials, plot_noise_ceiling
    summaries    sessions, trial_counts, rois, roi_records ──▶ tables
"""
