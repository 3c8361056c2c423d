"""The interval against scipy's bootstrap."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from tudsr.eval.bootstrap import mean_interval


def test_the_interval_is_scipys():
    values = np.random.default_rng(3).gamma(2.0, 5.0, 40)  # skewed, as figures are
    ours = mean_interval(values.tolist())
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert ours.count == 40


def test_a_single_value_has_no_interval():
    found = mean_interval([0.25])
    assert (found.mean, found.low, found.high, found.count) == (0.25, None, None, 1)
