"""Columns and rows of the tables that a run's summary comes to, a row a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from wsjax.results import names
from wsjax.results.stats import Unit
from wsjax.results.summary import interval, unit_of_summary, with_half
from wsjax.storage.rows import Row, grouped

Table = tuple[list[str], list[list[str]]]


def offline_table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of an offline summary's table."""
    unit = unit_of_summary(summary)
    sign = "%" if unit.percent else unit.word
    return ["method", "seeds", f"test {sign}", f"train {sign}", "epochs", "steps", "seconds"], [
        [
            names.label(name),
            str(len(own)),
            over_seeds(own, "test_accuracy", unit),
            over_seeds(own, "train_accuracy", unit),
            f"{_mean(own, 'epochs'):.4g}",
            f"{_mean(own, 'steps'):,.0f}",
            f"{_mean(own, 'train_seconds'):.3g}",
        ]
        for name, own in grouped([*summary["first_round"], *summary["rows"]], itemgetter("method")).items()
    ]


def online_table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of an online summary's table: the last round, the mean of those after the first, and totals."""
    unit = unit_of_summary(summary)
    columns = ["method", "seeds", f"last test {'%' if unit.percent else unit.word}", "mean", "steps"]
    columns += ["of RI", "seconds", "capped"]
    lines = []
    for name, own in grouped(summary["rows"], itemgetter("method")).items():
        share = summary["steps_of_RI"].get(name)
        lines.append(
            [
                names.label(name),
                str(len(own)),
                over_seeds(own, "test_accuracy", unit),
                over_seeds(own, "mean_test_accuracy", unit, spread=False),
                f"{_mean(own, 'steps'):,.0f}",
                "" if share is None else f"{share['mean']:.0%}",
                f"{_mean(own, 'train_seconds'):.3g}",
                f"{_mean(own, 'capped_rounds'):.3g}",
            ]
        )
    return columns, lines


def _mean(ends: Sequence[Row], field: str) -> float:
    return sum(end[field] for end in ends) / len(ends)


def over_seeds(ends: Sequence[Row], field: str, unit: Unit, spread: bool = True) -> str:
    """The mean over seeds and, with its spread and of several, half of its interval.

    A seed that diverged has no number: how many have one is then told, and "-" where none has.
    """
    known = [end[field] for end in ends if end[field] is not None]
    if not known:
        return "-"
    mean = interval(known)
    text = with_half(mean, unit, sign=False) if spread else unit.number(mean["mean"])
    return text if len(known) == len(ends) else f"{text} ({len(known)} of {len(ends)})"
