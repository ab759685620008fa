"""Metrics of stacked replicas, as the rows have them. A number that is not finite is None there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsjax.storage.rows import Key, Row


def epoch_row(
    key: Key, num_samples: int, i: Any, fitted: Any, tested: Any, stop: str | None, seconds: Sequence[float]
) -> Row:
    """One replica's row of an epoch.

    Args:
      key: method, seed, round and epoch.
      num_samples: how many the round trains on.
      i: which of the stacked replicas it is.
      fitted: the metrics of the epoch's training.
      tested: those of its test; None where there was none.
      stop: why the round ends with it; None where it goes on.
      seconds: of its training and of its evaluation.
    """
    method, seed, number, epoch = key
    return {
        "method": method,
        "seed": seed,
        "round": number,
        "epoch": epoch,
        "samples": num_samples,
        "steps": epoch * int(fitted["steps"][i]),
        "samples_seen": epoch * num_samples,
        "train_accuracy": finite(fitted["accuracy"][i]),
        "train_loss": finite(fitted["loss"][i]),
        "test_accuracy": None if tested is None else finite(tested["accuracy"][i]),
        "test_loss": None if tested is None else finite(tested["loss"][i]),
        "stop": stop,
        "train_seconds": round(seconds[0], 6),
        "eval_seconds": round(seconds[1], 6),
        **{name: finite(values[i]) for name, values in fitted["probes"].items()},
    }


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
