"""What is measured of runs for the parts of a claim: differences of methods, their growth, what a summary holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wsjax.results import cells, controls, early_stopping, gradients, hyperparameters, names, transfer
from wsjax.results.merge import DrawnRun
from wsjax.results.stats import slope
from wsjax.results.summary import differences, interval, less, paired, summarize_offline, summarize_online
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import FIRST, Row

Part = Mapping[str, Any]


class Group(NamedTuple):
    """Runs that differ in seeds and methods only: merged, and each by itself."""

    run: DrawnRun
    each: list[RunRecords]


Found = Mapping[str, Any] | None
"""What was measured: a mean over seeds with its interval, as `summary.interval` has it; None where nothing was."""


def _difference(part: Part, group: Group) -> Found:
    """The paired difference of two methods at the end of the last round, in test accuracy."""
    one, other = (_named(group.run, spec) for spec in part["of"])
    return paired(_ends(group.run), one, other)


def _change(part: Part, group: Group, other: Group) -> Found:
    """How much larger the difference of two methods is in one run than in another, paired by seed."""
    gaps = []
    for run in (group.run, other.run):
        minuend, subtrahend = (_named(run, spec) for spec in part["of"])
        gaps.append(differences(_ends(run), minuend, subtrahend))
    return less(*gaps)


def _summary(part: Part, group: Group) -> Found:
    """An interval that the experiment's summary holds, by its place there; a method stands for its name."""
    at: Any = SUMMARIES[part["runs"][0]["experiment"]](group.run.rows, group.run.methods)
    for key in part["at"]:
        key = _named(group.run, key) if isinstance(key, Mapping) else key
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):  # it was not measured
            return None
    return at


def _shrunk(part: Part, group: Group) -> Found:
    """How much accuracy a network has left after a shrink, less what it had, over seeds; less the published change."""
    curves = [curve for run in group.each for curve in (run.summary or {}).get("measured", ())]
    changes = {}
    for curve in curves:
        if (curve["network"], curve["evaluation"]) == (part["network"], part["evaluation"]):
            at = int(np.argmin(np.abs(np.asarray(curve["shrinks"]) - part["shrink"])))
            changes[curve["seed"]] = curve["accuracies"][at] - curve["accuracies"][-1] - part.get("published", 0)
    return _interval(list(changes.values()))


def _pair(part: Part, group: Group) -> Found:
    """A paired difference of two methods after a transfer to a target, on a share of it."""
    ends, table = transfer.ends_by_kind(group.run.rows, group.run.methods), transfer.kinds(group.run.methods)
    own = [end for end in ends if end["target"] == part["target"] and end["fraction"] == part["fraction"]]
    one, other = (names.matching(table, spec) for spec in part["of"])
    return paired(own, one, other)


def _left(part: Part, group: Group) -> Found:
    """A shrink-perturb less random initialisation at its best learning rate of several."""
    drawn, ends = controls.merge_rates(group.each)
    if len({end[controls.RATE] for end in ends}) < 2:
        return None
    compared = controls.compare(ends, drawn.methods)
    found = [own["left"]["RI"] for own in compared if part["of"][0].items() <= drawn.methods[own["curve"]].items()]
    return found[0] if found else None


def _less(part: Part, group: Group, other: Group) -> Found:
    """How much larger a value of one run's summary is than the same of another's, paired by seed."""
    values: list[dict[int, float]] = []
    for whole in (_of_best(part, group), _of_best(part, other)):
        rows_of: dict[int, list[Row]] = {}
        for row in whole.run.rows:
            rows_of.setdefault(row["seed"], []).append(row)
        alone = {seed: whole._replace(run=whole.run._replace(rows=rows)) for seed, rows in rows_of.items()}
        found = {seed: _summary(part, own) for seed, own in alone.items()}
        values.append({seed: own["mean"] for seed, own in found.items() if own})
    return less(*values)


def _of_best(part: Part, group: Group) -> Group:
    """Of a part on the best cells the rounds of these only: chosen for each seed anew, its noise would choose."""
    if part["at"][0] != "best":
        return group
    best = hyperparameters.summarize(group.run.rows, group.run.methods)["best"] or {}
    chosen = {
        name
        for name, spec in group.run.methods.items()
        if spec["cells"][0] == best.get(hyperparameters.STARTS[spec["reinit"]])
    }
    return group._replace(run=group.run._replace(rows=[row for row in group.run.rows if row["method"] in chosen]))


def _share(part: Part, group: Group) -> Found:
    """The steps of an online method over all rounds, as a share of random initialisation's."""
    shares = summarize_online(group.run.rows, group.run.methods)["steps_of_RI"]
    return shares.get(_named(group.run, part["of"][0]))


def _growth(part: Part, group: Group) -> Found:
    """How much a round's steps grow from round to round, by least squares for each seed, or that as a share of
    another method's growth."""
    slopes = [_slopes(group.run, spec) for spec in part["of"]]
    if len(slopes) == 1:
        return _interval(list(slopes[0].values()))
    return _interval([slopes[0][seed] / slopes[1][seed] for seed in sorted(slopes[0].keys() & slopes[1].keys())])


def _slopes(run: DrawnRun, spec: Mapping[str, Any]) -> dict[int, float]:
    """The slope of a method's steps over its rounds, by seed."""
    name = _named(run, spec)
    steps: dict[int, dict[int, int]] = {}
    for row in run.rows:
        if row["method"] == name and row["stop"] and row["round"] > 1:
            steps.setdefault(row["seed"], {})[row["round"]] = row["steps"]
    return {seed: float(slope(own)) for seed, own in steps.items() if len(own) > 2}


def _mean(part: Part, group: Group) -> Found:
    """How far a method's mean is from that of the published seeds, in their combined standard errors."""
    name = _named(group.run, part["of"][0])
    values = [end["test_accuracy"] for end in _ends(group.run) if end["method"] == name]
    if len(values) < 2:
        return None
    own, there = (cells.score_of(scores) for scores in (values, [score / 100 for score in part["published"]]))
    assert own.error is not None
    assert there.error is not None
    distance = (own.mean - there.mean) / math.hypot(own.error, there.error)
    return {"mean": distance, "low": distance, "high": distance, "seeds": len(values)}


MEASURES: dict[str, Callable[..., Found]] = {
    "difference": _difference,
    "change": _change,
    "summary": _summary,
    "mean": _mean,
    "share": _share,
    "growth": _growth,
    "shrunk": _shrunk,
    "pair": _pair,
    "left": _left,
    "less": _less,
}
SUMMARIES: dict[str, Callable[..., dict[str, Any]]] = {
    "offline": summarize_offline,
    "online": summarize_online,
    "early_stopping": early_stopping.summarize,
    "hyperparameters": hyperparameters.summarize,
    "gradients": gradients.summarize_gradients,
}


def _named(run: DrawnRun, spec: Mapping[str, Any]) -> str | None:
    """The name of the method that is what `spec` says, at the run's own learning rate where it says none."""
    rate = spec.get(controls.RATE)
    return names.matching({name: own for name, own in run.methods.items() if own.get(controls.RATE) == rate}, spec)


def _ends(run: DrawnRun) -> list[Row]:
    """The last row of each method and seed that have ended the last round."""
    ends = [row for row in run.rows if row["stop"] and row["method"] != FIRST]
    last = max((row["round"] for row in ends), default=0)
    return [row for row in ends if row["round"] == last]


def _interval(values: Sequence[float]) -> Found:
    return interval(values) if values else None
