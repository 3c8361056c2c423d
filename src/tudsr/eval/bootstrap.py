"""How sure a mean over pictures is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over `count` pictures and the 95 % interval around it; of a single picture there is none."""

    mean: float
    low: float | None
    high: float | None
    count: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean and its 95 % percentile bootstrap interval, the same each time.

    Args:
        values: one figure per picture, finite, at least one.

    Returns:
        The mean with its interval; of a single value low and high are None, as nothing says how sure it is.

    Source: Efron, Tibshirani, «An Introduction to the Bootstrap» (1993), chapter 13: the 2.5th and the 97.5th
    percentile of the means of samples drawn with replacement.
    """
    assert len(values) > 0, "nothing has no mean"
    sample = np.asarray(values, np.float64)
    if len(sample) == 1:
        return Interval(mean=float(sample[0]), low=None, high=None, count=1)
    rng = np.random.default_rng(0)
    # one resample at a time: all at once would hold RESAMPLES pictures' worth of indices for every picture
    means = [sample[rng.integers(len(sample), size=len(sample))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean=float(sample.mean()), low=float(low), high=float(high), count=len(sample))
