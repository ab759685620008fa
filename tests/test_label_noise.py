"""Labels that are wrong on purpose: how many, which, and what they become."""

import jax
import numpy as np
import pytest

from wsjax.data.label_noise import noisy
from wsjax.errors import DataError

KEY = jax.random.key(0)
LABELS = (np.arange(1000) % 10).astype(np.uint8)


def test_a_share_is_drawn_anew_from_all_classes():
    found = noisy(KEY, LABELS, 10, 0.5)
    assert found.dtype == LABELS.dtype
    assert set(found) == set(range(10))
    # Of 500 drawn anew a tenth is right by chance: 450 wrong, to 5 deviations of sqrt(500 * 0.1 * 0.9) = 6.7.
    assert abs(np.sum(found != LABELS) - 450) < 34
    assert max(np.bincount(found[found != LABELS])) < 90


def test_the_key_decides_and_the_ends_are_exact():
    assert (noisy(KEY, LABELS, 10, 0.5) == noisy(KEY, LABELS, 10, 0.5)).all()
    assert (noisy(KEY, LABELS, 10, 0.5) != noisy(jax.random.key(1), LABELS, 10, 0.5)).any()
    assert (noisy(KEY, LABELS, 10, 0.0) == LABELS).all()
    assert abs(np.mean(noisy(KEY, LABELS, 10, 1.0) != LABELS) - 0.9) < 0.05
    assert (np.arange(1000) % 10 == LABELS).all()  # those given stay


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_its_limits_is_refused(share):
    with pytest.raises(DataError, match=r"the share of noisy labels must lie in \[0, 1\]"):
        noisy(KEY, LABELS, 10, share)
