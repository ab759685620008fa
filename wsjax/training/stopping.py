"""Stop rules: when a round ends.

A rule is a pure function of the round's train accuracies so far, one an epoch: it returns the reason to stop, or None.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wsjax.errors import TaskError
from wsjax.storage.rows import CAP

StopRule = Callable[[Sequence[float]], str | None]


def after_epochs(epochs: int) -> StopRule:
    """Stops after a number of epochs: a run's length, or the cap of another rule.

    Raises:
      TaskError: it is no whole number from 1 on.
    """
    _require(_is_count(epochs), f"after_epochs: epochs must be a whole number, 1 or more, not {epochs!r:.60}")
    return lambda accuracies: CAP if len(accuracies) >= epochs else None


def at_accuracy(threshold: float) -> StopRule:
    """Stops when an epoch's train accuracy reaches the threshold, a fraction in (0, 1].

    Raises:
      TaskError: it is no such number. For a score with another range a rule of your own is a line.
    """
    _require(
        _is_real(threshold) and 0 < threshold <= 1,
        f"at_accuracy: threshold must lie in (0, 1], not {threshold!r:.60}: 99 % are 0.99",
    )
    return lambda accuracies: "accuracy" if accuracies and accuracies[-1] >= threshold else None


def at_plateau(tolerance: float = 0.002, window: int = 3) -> StopRule:
    """Stops when train accuracy stops improving: its standard deviation over the last epochs is below the tolerance.

    The report's rule (Table 1), with the population's standard deviation. Fragile: a slow start looks like an end.

    Raises:
      TaskError: the tolerance is no number from 0 on, or the window no whole one from 1 on.
    """
    good = _is_real(tolerance) and tolerance >= 0
    _require(good, f"at_plateau: tolerance must be 0 or more, not {tolerance!r:.60}")
    _require(_is_count(window), f"at_plateau: window must be a whole number, 1 or more, not {window!r:.60}")

    def rule(accuracies: Sequence[float]) -> str | None:
        last = accuracies[-window:]
        return "plateau" if len(last) == window and np.std(last) < tolerance else None

    return rule


def any_of(*rules: StopRule) -> StopRule:
    """Stops when any rule does; the reason is the first such rule's."""
    return lambda accuracies: next((reason for rule in rules if (reason := rule(accuracies))), None)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, np.generic | np.ndarray) and value.ndim == 0)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise TaskError(message)
