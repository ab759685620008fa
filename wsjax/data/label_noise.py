"""Labels that are wrong on purpose."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from wsjax.errors import DataError


def noisy(key: Any, labels: np.ndarray, num_classes: int, share: float) -> np.ndarray:
    """Returns a copy of labels [N], of which a share is drawn anew, uniformly from all classes.

    One in `num_classes` of these is right by chance, as in most papers that report a share of noise.

    Args:
      key: a random key; it decides which labels and what they become.
      labels: integers in [0, num_classes).
      num_classes: how many classes there are.
      share: in [0, 1], of the labels, rounded to whole ones.

    Raises:
      DataError: share is no such number.
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share of noisy labels must lie in [0, 1], not {share}")
    of_which, of_what = jax.random.split(key)
    count = round(share * len(labels))
    which = np.asarray(jax.random.permutation(of_which, len(labels)))[:count]
    drawn = np.array(labels)
    drawn[which] = np.asarray(jax.random.randint(of_what, (count,), 0, num_classes)).astype(drawn.dtype)
    return drawn
