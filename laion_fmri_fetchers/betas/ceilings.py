"""Noise ceilings of any average, and scores relative to them."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import warn


def ceiling_of_average(
    published: np.ndarray, published_inverse: float, mean_inverse: float
) -> np.ndarray:
    """Return the noise ceiling of an average of other repeats than a published one.

    Parameters
    ----------
    published : numpy.ndarray
        A noise ceiling in percent. What is below 0 or above 100 counts as that.
    published_inverse : float
        Mean of 1/n over its images, n the repeats of an image.
    mean_inverse : float
        The same of the images of interest.

    Returns
    -------
    numpy.ndarray of float32
        Percent; 0 and 100 stay as they are, and so does NaN.

    Notes
    -----
    With s² the signal's variance over the noise's, a ceiling is 100 s²/(s² + mean 1/n).
    s² of the published one is put into that of interest, multiplied out such that
    nothing is divided by 0 where a ceiling is 100.

    Examples
    --------
    >>> ceiling_of_average(np.array([0, 50, 80, 100]), 1 / 4, 1)
    array([  0.,  20.,  50., 100.], dtype=float32)
    """
    percent = np.clip(np.asarray(published, dtype=np.float64), 0, 100)
    signal = percent * published_inverse
    return (100 * signal / (signal + (100 - percent) * mean_inverse)).astype(np.float32)


def mean_inverse(n_repeats: Any) -> float:
    """Return the mean of 1/n of numbers of repeats: one, or one per row.

    Raises
    ------
    InvalidQueryError
        If they are not finite numbers from 1 on.

    Examples
    --------
    >>> mean_inverse(4), mean_inverse([1, 2])
    (0.25, 0.75)
    """
    try:
        counts = np.asarray(n_repeats, dtype=np.float64)
    except (TypeError, ValueError):
        counts = np.array(np.nan)
    is_number = isinstance(n_repeats, Real) or counts.ndim == 1
    # A mask of rows would count as one repeat each.
    is_other = (
        isinstance(n_repeats, (str, bytes)) or np.asarray(n_repeats).dtype == bool
    )
    is_valid = np.isfinite(counts).all() and (counts >= 1).all() and counts.size
    if is_other or not is_number or not is_valid:
        given = repr(n_repeats)
        raise InvalidQueryError(
            f"n_repeats is {given if len(given) < 60 else given[:60] + '...'}; it must "
            "be a number from 1 on, one per row, or 'averaged'"
        )
    return float(np.mean(1 / counts))


def normalized_score(r2: Any, noise_ceiling: Any) -> np.ndarray:
    """Divide explained variance by the noise ceiling.

    Parameters
    ----------
    r2 : float or array of shape (..., n_voxels)
        Explained variance of each voxel as a share, 1 being all: the coefficient of
        determination, or a squared correlation of measured and predicted responses.
    noise_ceiling : float or array of shape (n_voxels,)
        Noise ceiling of the responses that were predicted, in percent, as of
        ``betas.noise_ceiling("averaged")``.

    Returns
    -------
    numpy.ndarray of float, shape (..., n_voxels)
        ``r2 / (noise_ceiling / 100)``: 1 for a model that explains all that can be
        explained. NaN where the ceiling is 0 or not finite. Above 1 where an estimate
        was lucky; values are not cut.

    Raises
    ------
    InvalidQueryError
        If the shapes do not fit.

    Warns
    -----
    UserWarning
        If no ceiling is above 1 percent, as they may be shares; or if ``r2`` is above 1
        anywhere, as it may be in percent.

    Notes
    -----
    The noise ceiling of an average over repeats is that of Allen et al. [1]_, estimated
    from betas of GLMsingle [2]_: the share of variance that is not noise.

    References
    ----------
    .. [1] Allen, E. J. et al. (2022). A massive 7T fMRI dataset to bridge cognitive
       neuroscience and artificial intelligence. Nature Neuroscience, 25, 116-126.
       https://doi.org/10.1038/s41593-021-00962-x
    .. [2] Prince, J. S. et al. (2022). Improving the accuracy of single-trial fMRI
       response estimates using GLMsingle. eLife, 11, e77599.
       https://doi.org/10.7554/eLife.77599

    Examples
    --------
    >>> normalized_score([0.1, 0.1, 0.0], [20, 0, 50])
    array([0.5, nan, 0. ])
    """
    scores = np.asarray(r2, dtype=np.float64)
    ceiling = np.asarray(noise_ceiling, dtype=np.float64)
    is_single = not (scores.ndim and ceiling.ndim)
    if ceiling.ndim > 1 or not (is_single or scores.shape[-1:] == ceiling.shape):
        raise InvalidQueryError(
            f"r2 has the shape {scores.shape}, noise_ceiling {ceiling.shape}; both "
            "need one value per voxel"
        )
    if (scores > 1).any():
        warn("r2 is above 1; it is a share of the variance (0 to 1), not in percent.")
    is_valid = np.isfinite(ceiling) & (ceiling > 0)
    if is_valid.any() and ceiling[is_valid].max() <= 1:
        warn(
            "No noise ceiling is above 1 percent; noise_ceiling is in percent (0 to "
            "100), not a share."
        )
    return scores / np.where(is_valid, ceiling / 100, np.nan)
