"""Verdicts on published claims, computed from runs.

A claim is data (figures/published/claims.json): parts, each with the runs that it is about, what is measured of them,
and the range that the claim puts it in. A claim of the "tour" may be told of by the embedded digits too, where nothing
larger was run. A part holds where the whole interval lies in the range, and does not where it
lies outside; a claim is reproduced where all of its parts hold, and not where one does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.errors import RunError
from wsjax.results import cells, controls, early_stopping, gradients, hyperparameters, names, transfer, words
from wsjax.results.merge import DrawnRun, merge_runs, unlike
from wsjax.results.summary import differences, interval, paired, summarize_offline, summarize_online
from wsjax.storage.records import BEFORE, CONFIG, RunRecords, read_run
from wsjax.storage.rows import FIRST, Row

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = "reproduced", "not reproduced", "undecided", "not run"


class Estimate(NamedTuple):
    """What was measured for one part of a claim.

    Attributes:
      what: in words.
      mean: over seeds.
      low: of its interval; None of one seed.
      high: likewise.
      seeds: how many.
      unit: "points", "percent" or "" of plain numbers; the first two are fractions here.
      lies_in: the range that the claim puts it in; None is open.
    """

    what: str
    mean: float
    low: float | None
    high: float | None
    seeds: int
    unit: str
    lies_in: tuple[float | None, float | None]

    @property
    def verdict(self) -> str:
        """What it says of its part of the claim."""
        if self.low is None or self.high is None:
            return UNDECIDED
        least, most = (bound if bound is not None else end for bound, end in zip(self.lies_in, _ENDS, strict=True))
        if least <= self.low and self.high <= most:
            return REPRODUCED
        return NOT_REPRODUCED if self.high < least or self.low > most else UNDECIDED


class Verdict(NamedTuple):
    """What the runs say of a claim; `missing` are the parts that no run tells of, `scale` is that of the runs."""

    claim: Mapping[str, Any]
    verdict: str
    estimates: list[Estimate]
    missing: list[str]
    scale: str


class StudyRun(NamedTuple):
    """A run and its folder."""

    folder: Path
    records: RunRecords


_ENDS = (-math.inf, math.inf)


def read_study(folder: Path) -> list[StudyRun]:
    """All runs in a folder, at any depth, by their names. Raises RunError where one is damaged."""
    return [StudyRun(path.parent, read_run(path.parent)) for path in sorted(folder.rglob(CONFIG))]


def verdicts(claims: Iterable[Mapping[str, Any]], runs: Sequence[StudyRun]) -> list[Verdict]:
    """The verdict on each claim; see the module for what a claim is."""
    return [judge(claim, runs) for claim in claims]


def judge(claim: Mapping[str, Any], runs: Sequence[StudyRun]) -> Verdict:
    """The verdict on one claim, by the largest runs that tell of each of its parts."""
    estimates: list[Estimate] = []
    missing, scales = [], []
    for part in claim["parts"]:
        found = _measure(part, runs) or (_measure(_toured(part), runs) if claim.get("tour") else None)
        if found is None:
            missing.append(part["what"])
        else:
            estimates += found[0]
            scales.append(found[1])
    told = {estimate.verdict for estimate in estimates}
    if not estimates:
        verdict = NOT_RUN
    elif NOT_REPRODUCED in told:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNDECIDED if missing or UNDECIDED in told else REPRODUCED
    return Verdict(claim, verdict, estimates, missing, "; ".join(dict.fromkeys(scales)))


class Group(NamedTuple):
    """Runs that differ in seeds and methods only: merged, and each by itself."""

    run: DrawnRun
    each: list[RunRecords]


def groups(runs: Sequence[StudyRun], wanted: Mapping[str, Any]) -> list[Group]:
    """The runs of those settings, "experiment" among them, merged where they differ in seeds and methods only.

    The largest comes first: several seeds before one, then by width, images, epochs and seeds.
    """
    settings = {name: value for name, value in wanted.items() if name != "experiment"}
    together: list[list[RunRecords]] = []
    for run in (run.records for run in runs):
        own = run.config["config"]
        if run.config.get("experiment") != wanted["experiment"] or not run.rows:
            continue
        if any(own.get(name, BEFORE.get(name)) != value for name, value in settings.items()):
            continue
        for group in together:
            if not unlike(group[0].config["config"], own):
                group.append(run)
                break
        else:
            together.append([run])
    merged: list[Group] = []
    for group in together:
        try:
            merged.append(Group(merge_runs(group, wanted["experiment"]), group))
        except RunError:  # they mean different things by a name: each stands alone
            merged += [Group(merge_runs([run], wanted["experiment"]), [run]) for run in group]
    return sorted(merged, key=lambda group: _size(group.run), reverse=True)


def scale(run: DrawnRun, seeds: int) -> str:
    """How large a run is, in words, and of how many of its seeds is told."""
    own = run.settings
    parts = [f"width {own['width']}"] if _is_resnet(own) and own.get("width") else []
    parts += [f"{own['num_train']:,} images"] if own.get("num_train") else []
    parts += [f"{own['epochs']} epochs" if own.get("stop") == ["epochs"] else "to " + _stop(own)]
    return ", ".join([words.label(own.get("dataset", "")), *parts, f"{seeds} seed{'s' * (seeds > 1)}"])


def _of_scale(run: DrawnRun) -> tuple[Any, ...]:
    """What runs that are compared must share; what they are compared in may ask for more epochs."""
    own = run.settings
    return own.get("dataset"), _is_resnet(own) and own.get("width"), own.get("num_train")


def _stop(own: Mapping[str, Any]) -> str:
    return f"{own['threshold']:.4g} train accuracy" if "accuracy" in own.get("stop", ()) else "a plateau"


def _is_resnet(own: Mapping[str, Any]) -> bool:
    return "resnet18" in (own.get("networks") or [own.get("model")])


def _size(run: DrawnRun) -> tuple[Any, ...]:
    own, seeds = run.settings, len({row["seed"] for row in run.rows})
    width = own.get("width") or 0 if _is_resnet(own) else 0
    return seeds > 1, width, own.get("num_train") or 0, own.get("epochs") or 0, seeds


def _toured(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part as the embedded digits may tell of it, whatever network and optimiser they were trained with."""
    free = ("dataset", "model", "optimizer", "threshold")
    runs = [{name: value for name, value in wanted.items() if name not in free} for wanted in part["runs"]]
    return {**part, "runs": [{**wanted, "dataset": "digits"} for wanted in runs]}


def _measure(part: Mapping[str, Any], runs: Sequence[StudyRun]) -> tuple[list[Estimate], str] | None:
    """What a part of a claim comes to, and the scale; None where no run tells of it."""
    among = [groups(runs, wanted) for wanted in part["runs"]]
    compared = {name for wanted in part["runs"] for name in wanted}

    def distance(own: Sequence[Group]) -> int:
        """In how many settings, beside those that they are compared in, runs differ."""
        return sum(len(unlike(own[0].run.settings, group.run.settings).keys() - compared) for group in own[1:])

    for own in sorted(itertools.product(*among), key=distance):  # the most alike, and the largest, that were measured
        if len({_of_scale(group.run) for group in own}) > 1:
            continue
        if found := MEASURES[part["measure"]](part, *own):
            estimates = [
                Estimate(part["what"] if len(found) == 1 else f"{part['what']}: {what}", mean, low, high, seeds,
                         part.get("unit", "points"), tuple(part["lies_in"]))
                for what, mean, low, high, seeds in found
            ]  # fmt: skip
            seeds = max(estimate.seeds for estimate in estimates)
            return estimates, "; ".join(dict.fromkeys(scale(group.run, seeds) for group in own))
    return None


Found = list[tuple[str, float, float | None, float | None, int]]
"""What was measured: in words, mean, bounds and the number of seeds."""


def _difference(part: Mapping[str, Any], group: Group) -> Found:
    """The paired difference of two methods at the end of the last round, in a field, by default test accuracy."""
    one, other = (_named(group.run, spec) for spec in part["of"])
    return _found(paired(_ends(group.run), one, other, part.get("field", "test_accuracy")))


def _change(part: Mapping[str, Any], group: Group, other: Group) -> Found:
    """How much larger the difference of two methods is in one run than in another, paired by seed."""
    gaps = []
    for run in (group.run, other.run):
        minuend, subtrahend = (_named(run, spec) for spec in part["of"])
        gaps.append(differences(_ends(run), minuend, subtrahend))
    return _paired(*gaps)


def _summary(part: Mapping[str, Any], group: Group) -> Found:
    """An interval that the experiment's summary holds, by its place there; a method stands for its name."""
    at: Any = SUMMARIES[part["runs"][0]["experiment"]](group.run.rows, group.run.methods)
    for key in part["at"]:
        key = _named(group.run, key) if isinstance(key, Mapping) else key
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):  # it was not measured
            return []
    return _found(at)


def _shrunk(part: Mapping[str, Any], group: Group) -> Found:
    """How much accuracy a network has left after a shrink, less what it had, over seeds."""
    curves = [curve for run in group.each for curve in (run.summary or {}).get("measured", ())]
    changes = {}
    for curve in curves:
        if (curve["network"], curve["evaluation"]) == (part["network"], part["evaluation"]):
            at = int(np.argmin(np.abs(np.asarray(curve["shrinks"]) - part["shrink"])))
            changes[curve["seed"]] = curve["accuracies"][at] - curve["accuracies"][-1]
    return _interval(list(changes.values()))


def _pair(part: Mapping[str, Any], group: Group) -> Found:
    """A paired difference of two methods after a transfer to a target, on a share of it."""
    ends, table = transfer.ends_by_kind(group.run.rows, group.run.methods), transfer.kinds(group.run.methods)
    own = [end for end in ends if end["target"] == part["target"] and end["fraction"] == part["fraction"]]
    one, other = (names.matching(table, spec) for spec in part["of"])
    return _found(paired(own, one, other))


def _left(part: Mapping[str, Any], group: Group) -> Found:
    """A shrink-perturb less random initialisation at its best learning rate of several."""
    drawn, ends = controls.merge_rates(group.each)
    if len({end[controls.RATE] for end in ends}) < 2:
        return []
    compared = controls.compare(ends, drawn.methods)
    found = [own["left"]["RI"] for own in compared if part["of"][0].items() <= drawn.methods[own["curve"]].items()]
    return _found(found[0]) if found else []


def _less(part: Mapping[str, Any], group: Group, other: Group) -> Found:
    """How much larger a value of one run's summary is than the same of another's, paired by seed."""
    values: list[dict[int, float]] = []
    for whole in (group, other):
        rows_of: dict[int, list[Row]] = {}
        for row in whole.run.rows:
            rows_of.setdefault(row["seed"], []).append(row)
        alone = {seed: whole._replace(run=whole.run._replace(rows=rows)) for seed, rows in rows_of.items()}
        found = {seed: _summary(part, own) for seed, own in alone.items()}
        values.append({seed: estimate[0][1] for seed, estimate in found.items() if estimate})
    return _paired(*values)


def _share(part: Mapping[str, Any], group: Group) -> Found:
    """The steps of an online method over all rounds, as a share of random initialisation's."""
    return _found(
        summarize_online(group.run.rows, group.run.methods)["steps_of_RI"].get(_named(group.run, part["of"][0]))
    )


def _growth(part: Mapping[str, Any], group: Group) -> Found:
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
    return {seed: float(np.polyfit(list(own), list(own.values()), 1)[0]) for seed, own in steps.items() if len(own) > 2}


def _mean(part: Mapping[str, Any], group: Group) -> Found:
    """How far a method's mean is from the published one, in their combined standard errors."""
    name = _named(group.run, part["of"][0])
    values = [end["test_accuracy"] for end in _ends(group.run) if end["method"] == name]
    if len(values) < 2:
        return []
    own, there = cells.score_of(values), cells.published_score(*part["published"])
    assert own.error is not None
    assert there.error is not None
    distance = (own.mean - there.mean) / math.hypot(own.error, there.error)
    return [("", distance, distance, distance, len(values))]


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
    """The name of the method that is what `spec` says, and nothing more where several are."""
    return names.matching(run.methods, spec)


def _ends(run: DrawnRun) -> list[Row]:
    """The last row of each method and seed that have ended the last round."""
    ends = [row for row in run.rows if row["stop"] and row["method"] != FIRST]
    last = max((row["round"] for row in ends), default=0)
    return [row for row in ends if row["round"] == last]


def _paired(one: Mapping[Any, float], two: Mapping[Any, float]) -> Found:
    """The interval of the differences of values with the same key."""
    return _interval([one[key] - two[key] for key in sorted(one.keys() & two.keys())])


def _interval(values: Sequence[float]) -> Found:
    return _found(interval(values) if values else None)


def _found(value: Mapping[str, Any] | None) -> Found:
    return [] if value is None else [("", value["mean"], value["low"], value["high"], value["seeds"])]
