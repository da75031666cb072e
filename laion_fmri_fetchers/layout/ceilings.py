"""What the published noise ceilings are ceilings of."""

from __future__ import annotations

MEAN_INVERSE_REPEATS = {
    "4rep": 1 / 4,
    "12rep": 1 / 12,
    "Allrep": (881 / 12 + 5323 / 4) / 6204,
}
"""The mean of 1/n over images, n the repeats that are averaged, of each map.

``Allrep`` is of the 6,204 images of a subject as planned: 881 are shown 12 times, 5,323
are shown 4 times.
"""
