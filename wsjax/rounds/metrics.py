"""Metrics of stacked replicas, as the rows have them. A number that is not finite is None there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsjax.storage.rows import Row

UNTESTED: Row = {"test_accuracy": None, "test_loss": None}
"""What a row has in the place of `tested_row` where the epoch is not tested."""


def fitted_row(metrics: Any, i: Any, epoch: int, num_samples: int) -> Row:
    """One replica's part of a row on its training, since its round began."""
    return {
        "steps": epoch * int(metrics["steps"][i]),
        "samples_seen": epoch * num_samples,
        "train_accuracy": finite(metrics["accuracy"][i]),
        "train_loss": finite(metrics["loss"][i]),
    }


def tested_row(metrics: Any, i: Any) -> Row:
    """One replica's part of a row on its test."""
    return {"test_accuracy": finite(metrics["accuracy"][i]), "test_loss": finite(metrics["loss"][i])}


def not_finite(metrics: Any, i: Any) -> str | None:
    """What of a replica's metrics is no finite number, "loss" or "score"; None where both are."""
    names = {"loss": "loss", "accuracy": "score"}
    return next((what for name, what in names.items() if not np.isfinite(metrics[name][i])), None)


def finite(value: Any) -> float | None:
    """A measured number; None where it is none, as a mean over nothing, or the loss of a network that diverged."""
    return float(value) if np.isfinite(value) else None


def train_accuracies(rows: Sequence[Row]) -> list[float]:
    """The train accuracies of rows, as stop rules take them."""
    return [math.nan if row["train_accuracy"] is None else row["train_accuracy"] for row in rows]
