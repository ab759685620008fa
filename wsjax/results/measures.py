"""What is measured of runs for the parts of a claim: differences of methods, their growth, what a summary holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from wsjax.results import cells, controls, early_stopping, gradients, hyperparameters, names, transfer
from wsjax.results.merge import DrawnRun
from wsjax.results.stats import slope
from wsjax.results.summary import differences, interval, less, paired, summarize_offline, summarize_online
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import Row, grouped

Part = Mapping[str, Any]


class Group(NamedTuple):
    """Runs that differ in seeds and methods only: merged, and each by itself."""

    run: DrawnRun
    each: list[RunRecords]


LAST = 3
"""Epochs at the end of rounds of a fixed length over which test accuracies are taken together: one may be luck."""


def lately(group: Group) -> Group:
    """The group with the mean of the `LAST` test accuracies at the end of each round, where rounds have a fixed length.

    Where another rule ends them, their ends are what it chose.
    """
    if group.run.epochs is None:
        return group

    def smoothed(rows: Sequence[Row]) -> list[Row]:
        accuracies = grouped(rows, itemgetter("method", "seed", "round"))

        def mean(end: Row) -> float | None:
            own = accuracies[end["method"], end["seed"], end["round"]][-LAST:]
            known = [row["test_accuracy"] for row in own if row["test_accuracy"] is not None]
            return float(np.mean(known)) if known else None

        return [row | {"test_accuracy": mean(row)} if row["stop"] else row for row in rows]

    run, each = group.run, group.each
    return Group(run._replace(rows=smoothed(run.rows)), [own._replace(rows=smoothed(own.rows)) for own in each])


def least_trained(part: Part, groups: Iterable[Group]) -> float:
    """The least train accuracy, a mean over seeds, with which a method that the part compares ends."""
    means = []
    for run in (group.run for group in groups):
        compared = {names.matching(run.methods, spec) for spec in part["of"]}
        own = grouped([end for end in run.ends if end["method"] in compared], itemgetter("method"))
        means += [float(np.mean([end["train_accuracy"] for end in ends])) for ends in own.values()]
    return min(means)


Found = Mapping[str, Any] | None
"""What was measured: a mean over seeds with its interval, as `summary.interval` has it; None where nothing was."""


def _difference(part: Part, group: Group) -> Found:
    """The paired difference of two methods at the end of the last round, in test accuracy."""
    one, other = (names.matching(group.run.methods, spec) for spec in part["of"])
    return paired(group.run.ends, one, other)


def _change(part: Part, group: Group, other: Group) -> Found:
    """How much larger the difference of two methods is in one run than in another, paired by seed."""
    gaps = []
    for run in (group.run, other.run):
        minuend, subtrahend = (names.matching(run.methods, spec) for spec in part["of"])
        gaps.append(differences(run.ends, minuend, subtrahend))
    return less(*gaps)


def _summary(part: Part, group: Group) -> Found:
    """An interval that the experiment's summary holds, by its place there; a method stands for its name."""
    at: Any = SUMMARIES[part["runs"][0]["experiment"]](group.run.rows, group.run.methods)
    for key in part["at"]:
        key = names.matching(group.run.methods, key) if isinstance(key, Mapping) else key
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
    return interval(list(changes.values())) if changes else None


def _pair(part: Part, group: Group) -> Found:
    """A paired difference of two methods after a transfer to a target, on a share of it."""
    ends, table = transfer.ends_by_kind(group.run.rows, group.run.methods), transfer.kinds(group.run.methods)
    own = [end for end in ends if end["target"] == part["target"] and end["fraction"] == part["fraction"]]
    one, other = (names.matching(table, spec) for spec in part["of"])
    return paired(own, one, other)


def _left(part: Part, group: Group) -> Found:
    """A shrink-perturb less random initialisation at its best learning rate of several."""
    if not group.run.ends:  # a study that is under way
        return None
    drawn, ends = controls.merge_rates(group.each)
    if len({end[controls.RATE] for end in ends}) < 2:
        return None
    compared = controls.compare(ends, drawn.methods)
    found = [own["left"]["RI"] for own in compared if part["of"][0].items() <= drawn.methods[own["curve"]].items()]
    return found[0] if found else None


def _less(part: Part, group: Group, other: Group) -> Found:
    """How much larger a value of one run's summary is than the same of another's, paired by seed."""
    values: list[dict[int, float]] = []
    for whole in (group, other):
        rows_of = grouped(whole.run.rows, itemgetter("seed"))
        alone = {seed: whole._replace(run=whole.run._replace(rows=rows)) for seed, rows in rows_of.items()}
        found = {seed: _summary(part, own) for seed, own in alone.items()}
        values.append({seed: own["mean"] for seed, own in found.items() if own})
    return less(*values)


def _share(part: Part, group: Group) -> Found:
    """The steps of an online method over all rounds, as a share of random initialisation's."""
    shares = summarize_online(group.run.rows, group.run.methods)["steps_of_RI"]
    return shares.get(names.matching(group.run.methods, part["of"][0]))


def _growth(part: Part, group: Group) -> Found:
    """How much a round's steps grow from round to round, by least squares for each seed; or the mean of that over seeds
    as a share of another method's mean, in the rounds that both have ended.

    The interval of such a share is that of its linearisation: a mean of the seeds' own shares would follow those whose
    denominator is small by chance.
    """
    steps = [_steps(group.run, spec) for spec in part["of"]]
    seeds = sorted(set.intersection(*(set(own) for own in steps)))
    shared = {seed: set.intersection(*(set(own[seed]) for own in steps)) for seed in seeds}
    slopes = np.array(
        [[slope({at: own[seed][at] for at in sorted(rounds)}) for own in steps]
         for seed, rounds in shared.items() if len(rounds) > 2]
    )  # fmt: skip
    if not len(slopes):
        return None
    if len(steps) == 1:
        return interval(slopes[:, 0].tolist())
    own, other = slopes.T
    share = own.mean() / other.mean()
    return interval((share + (own - share * other) / other.mean()).tolist())


def _steps(run: DrawnRun, spec: Mapping[str, Any]) -> dict[int, dict[int, int]]:
    """A method's steps by seed and round, but for the first round, which is the same for all."""
    name = names.matching(run.methods, spec)
    ended = [row for row in run.rows if row["method"] == name and row["stop"] and row["round"] > 1]
    by_seed = grouped(ended, itemgetter("seed"))
    return {seed: {row["round"]: row["steps"] for row in own} for seed, own in by_seed.items()}


def _mean(part: Part, group: Group) -> Found:
    """How far a method's mean is from that of the published seeds, in their combined standard errors."""
    name = names.matching(group.run.methods, part["of"][0])
    values = [end["test_accuracy"] for end in group.run.ends if end["method"] == name]
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
    "gradients": gradients.summarize,
}
