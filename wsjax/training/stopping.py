"""Stop rules: when a round ends.

A rule is a pure function of the round's train accuracies so far, one an epoch: it returns the reason to stop, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wsjax.checks import check_count, check_number, takes
from wsjax.errors import TaskError
from wsjax.storage.rows import CAP

StopRule = Callable[[Sequence[float]], str | None]


def after_epochs(epochs: int) -> StopRule:
    """Stops after a number of epochs: a run's length, or the cap of another rule.

    Raises:
      TaskError: it is no whole number from 1 on.
    """
    check_count("after_epochs: epochs", epochs)
    return lambda accuracies: CAP if len(accuracies) >= epochs else None


def at_accuracy(threshold: float) -> StopRule:
    """Stops when an epoch's train accuracy reaches the threshold, a fraction in (0, 1].

    Both are compared in 32 bits, in which accuracies are counted: 19 of 20 reach 0.95.

    Raises:
      TaskError: it is no such number. For a score with another range a rule of your own is a line.
    """
    check_number("at_accuracy: threshold", threshold)
    least = np.float32(threshold)
    if not (least > 0 and threshold <= 1):
        raise TaskError(f"at_accuracy: threshold must lie in (0, 1], not {threshold}: 99 % are 0.99")
    return lambda accuracies: "accuracy" if len(accuracies) and np.float32(accuracies[-1]) >= least else None


def at_plateau(tolerance: float = 0.002, window: int = 3) -> StopRule:
    """Stops when train accuracy stops improving: its standard deviation over the last epochs is below the tolerance.

    The report's rule (Table 1), with the population's standard deviation. Fragile: a slow start looks like an end.

    Raises:
      TaskError: the tolerance is no number from 0 on, or the window no whole one from 1 on.
    """
    check_number("at_plateau: tolerance", tolerance, least=0)
    check_count("at_plateau: window", window)

    def rule(accuracies: Sequence[float]) -> str | None:
        last = accuracies[-window:]
        return "plateau" if len(last) == window and np.std(last) < tolerance else None

    return rule


def any_of(*rules: StopRule) -> StopRule:
    """Stops when any rule does; the reason is the first such rule's. Raises a TaskError for none, or what is none."""
    if not rules:
        raise TaskError("any_of: no rule is given, so that nothing would ever stop")
    for rule in rules:
        if not takes(rule, 1):
            raise TaskError(f"any_of: a rule is a function (accuracies) -> reason, not {rule!r:.60}")
    return lambda accuracies: next((reason for rule in rules if (reason := rule(accuracies))), None)
