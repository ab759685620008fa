"""Means over seeds with their intervals, and the unit that scores are told in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from wsjax.storage.rows import Row

CONFIDENCE = 0.95
SCORES = ("test_accuracy", "train_accuracy")
"""The fields of a row that hold a score."""


class Interval(NamedTuple):
    """A mean and the two-sided interval around it; the bounds are NaN where there are fewer than two values."""

    mean: float
    low: float
    high: float


class Unit(NamedTuple):
    """What scores are told in: records hold an accuracy as a fraction, and a score of the user's own as it is."""

    scale: float
    word: str
    percent: bool

    def number(self, value: float, decimals: int = 2, sign: bool = False) -> str:
        """A score as it is told: so many decimals of a percentage, four digits of another score."""
        return f"{self.scale * value:{'+' * sign}{f'.{decimals}f' if self.percent else '.4g'}}"


ACCURACY = Unit(100, "accuracy", True)
PERCENT = Unit(1, "percent", True)  # of numbers that are in percent already
SCORE = Unit(1, "score", False)


def unit_of(rows: Iterable[Row]) -> Unit:
    """Percent where all scores can be shares; else the scores are something else than an accuracy."""
    shares = all(0 <= row[name] <= 1 for row in rows for name in SCORES if row.get(name) is not None)
    return ACCURACY if shares else SCORE


def slope(points: Mapping[int, Any]) -> Any:
    """The change of a value with x by least squares, of values by x: numbers, or several at once as an array."""
    return np.polyfit(list(points), list(points.values()), 1)[0]


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent values with its interval, of 95 % by default, by Student's t."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(count - 1, 0.5 + confidence / 2) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)
