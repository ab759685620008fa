"""What a run of the gradients experiment comes to: how much larger the new half's gradients are than the old half's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsjax.results import names
from wsjax.results.merge import DrawnRun
from wsjax.results.names import Methods
from wsjax.results.summary import interval, paired, side, summarize_offline, with_bounds
from wsjax.results.tables import Table
from wsjax.storage.rows import FIRST, Row

OLD, NEW = "old_gradient", "new_gradient"  # as wsjax.training.probes names the rows' fields

START, END = "start_ratio", "end_ratio"
"""The new half's mean gradient norm over the old half's, at the start of a round's first epoch and of its last one."""

NOTES = (
    "Means over batches in train mode, of all parameters, without weight decay; the new half is unseen in the first "
    "round. No published curve is drawn: the report's are in no file; it has no RI."
)
"""What the text beside a picture of gradients says more."""


def summarize(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of a gradients run.

    Args:
      rows: a row an epoch.
      methods: what each method is, by name; see `names`.

    Returns:
      What `summarize_offline` gives, with "start_ratio" and "end_ratio" in each end; "start" and "end": each method's
      ratio in the second round, the first round's under "first", with its interval over seeds; "evened": the warm
      start's ratio at the start minus each other method's, paired over seeds. None where nothing was measured.
    """
    offline = summarize_offline(rows, methods)
    ratios = _ratios(rows)
    first, final = (
        [end | ratios[end["method"], end["seed"], end["round"]] for end in offline[part]]
        for part in ("first_round", "rows")
    )
    ends = [*first, *final]
    order = names.ordered(dict.fromkeys(end["method"] for end in ends), methods)
    known = [end for end in final if end[START] is not None]
    warm = names.find(methods, names.WARM)
    return offline | {
        "rows": final,
        "first_round": first,
        "start": {name: _mean(ends, name, START) for name in order},
        "end": {name: _mean(ends, name, END) for name in order},
        "evened": {name: paired(known, warm, name, START) for name in order if name not in (FIRST, warm)},
    }


def ratio(row: Row) -> float | None:
    """A row's new gradient norm over its old one; None where one was not measured."""
    old, new = row.get(OLD), row.get(NEW)
    return new / old if old and new is not None else None


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences; in brackets 95 % intervals over seeds."""
    evened = {name: found for name, found in summary["evened"].items() if found is not None}
    warm = next((found["minuend"] for found in evened.values()), None)
    sentences = []
    for name, start in summary["start"].items():
        if start is None or name == FIRST:
            continue
        numbers = (
            f"the new half's gradients are {with_bounds(start, '.2f')} times the old half's as the second round starts"
        )
        if end := summary["end"][name]:
            numbers += f", {with_bounds(end, '.2f')} as it ends"
        sentence = f"{names.label(name)}: {numbers}."
        if name == warm:
            sentence += f" {_claim(start)}"
        elif name in evened and start["low"] is not None and side(summary["start"][warm], 1) == 1:
            sentence += f" {_evened(evened[name], start, summary['start'][warm])}"
        sentences.append(sentence)
    return sentences


def came(runs: Sequence[DrawnRun], which: str = "") -> str:
    """What a caption says came out: each method's ratio as the second round starts, of several runs side by side."""
    starts = [summarize(run.rows, run.methods)["start"] for run in runs]
    every = {name: spec for run in runs for name, spec in run.methods.items()}
    known = names.ordered(dict.fromkeys(name for start in starts for name in start if name != FIRST), every)
    values = [f"{names.label(name)} {' / '.join(_cell(start.get(name)) for start in starts)}" for name in known]
    return f"New / old half's norm as the second round starts{which}: {'; '.join(values)}." if values else ""


def table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of a gradients summary's table, a row a method."""
    lines = []
    for name, start in summary["start"].items():
        own = [end for end in (*summary["first_round"], *summary["rows"]) if end["method"] == name]
        accuracy = interval([end["test_accuracy"] for end in own])["mean"]
        lines.append([names.label(name), str(len(own)), _cell(start), _cell(summary["end"][name]), f"{accuracy:.2%}"])
    return ["method", "seeds", "new / old at start", "at end", "test accuracy"], lines


def _ratios(rows: Sequence[Row]) -> dict[tuple[str, int, int], dict[str, float | None]]:
    """The first and the last ratio of each round, by method, seed and round."""
    found: dict[tuple[str, int, int], dict[str, float | None]] = {}
    for row in rows:
        own = found.setdefault((row["method"], row["seed"], row["round"]), {START: ratio(row)})
        own[END] = ratio(row)
    return found


def _mean(ends: Sequence[Row], name: str, field: str) -> dict[str, Any] | None:
    values = [end[field] for end in ends if end["method"] == name and end[field] is not None]
    return interval(values) if values else None


def _claim(start: Mapping[str, Any]) -> str:
    return {
        1: "After a warm start the new half's gradients are larger.",
        -1: "After a warm start the new half's gradients are smaller here.",
        0: "No difference between the halves can be told.",
        None: "One seed gives no interval, so this says nothing sure.",
    }[side(start, 1)]


def _evened(difference: Mapping[str, Any], start: Mapping[str, Any], warm: Mapping[str, Any]) -> str:
    """How much of what the warm start's ratio is above 1 is not there in another method's."""
    if side(difference) == -1:
        return "It is further from 1 than after a warm start."
    if side(difference) != 1:
        return "That it is nearer to 1 than after a warm start cannot be told."
    if side(start, 1) == -1:
        return "Here the new half's are smaller instead."
    left = " and none can be told any more" if side(start, 1) == 0 else ""
    return f"Of the warm start's difference {difference['mean'] / (warm['mean'] - 1):.0%} is gone{left}."


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.2f}" + ("" if value["low"] is None else f" ± {value['high'] - value['mean']:.2f}")
