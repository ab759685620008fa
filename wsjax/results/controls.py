"""What is left of shrink-perturb's win when other methods take learning rates of their own.

A weight that BatchNorm makes scale-invariant, shrunk by s, takes steps of SGD that are 1 / s^2 larger in effect. So
shrink-perturb is compared with random initialisation and warm starts at other learning rates too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from wsjax.errors import RunError
from wsjax.results import names
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun
from wsjax.results.names import RATE, Methods, Spec
from wsjax.results.stats import Unit
from wsjax.results.summary import paired, with_half
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import FIRST, Row, grouped, round_ends


def merge_rates(runs: Sequence[RunRecords]) -> tuple[DrawnRun, list[Row]]:
    """Merges offline runs that may differ in learning rate and warm-up too.

    A method at several learning rates of the second round is one curve. What else was varied tells curves apart: the
    warm-up and, but for random initialisation, which has no first round, the learning rate of that.

    Returns:
      What is drawn, whose methods are the curves, and how each seed ended: rows with the "learning_rate" of the second
      round.

    Raises:
      RunError: as `merge_groups`, or no second round has ended yet.
    """
    groups = merge_groups(runs, "offline", [RATE, "warmup"])
    rates, warmups = (sorted({key[place] for key in groups.runs}) for place in (0, 1))
    curves: dict[str, Spec] = {}
    ends: dict[tuple[str, int, float], Row] = {}
    tables = {key: {name: _plain(spec) for name, spec in run.methods.items()} for key, run in groups.runs.items()}
    several = len(names.perturbs(spec for table in tables.values() for spec in table.values())) > 1
    for (rate, warmup), run in groups.runs.items():
        named = {}
        for name, spec in tables[rate, warmup].items():
            curve = _kind(name, spec, several)
            if len(rates) > 1 and not _is_random(spec):
                curve, spec = f"{curve} after {rate:g}", {**spec, "first": rate}
            if len(warmups) > 1:
                curve, spec = f"{curve}, warm-up {warmup}", {**spec, "warmup": warmup}
            named[name], curves[curve] = curve, spec
        for end in round_ends(run.rows):
            if end["method"] != FIRST and end["round"] == 2:
                own = run.methods[end["method"]].get(RATE, rate)
                curve = named[end["method"]]
                ends.setdefault((curve, end["seed"], own), end | {"method": curve, RATE: own})
    if not ends:
        raise RunError("no second round has ended yet: wait for the first one")
    return groups.whole._replace(methods=curves), list(ends.values())


def compare(ends: Sequence[Row], curves: Methods) -> list[dict[str, Any]]:
    """What is left of the win of each shrink-perturb, at its best learning rate.

    Args:
      ends: rows with a learning rate, as `merge_rates` gives them.
      curves: what each method is.

    Returns:
      For each shrink-perturb, of "curve" and "learning_rate": "win", its difference to random initialisation at that
      same learning rate, and "left", to random initialisation and warm starts ("RI", "WS") at the best of all of their
      own: paired over seeds, None where there is nothing to compare with. The best is that of the highest mean over
      the seeds that the rates share, on the test images: that is in favour of what is compared with. It is these seeds
      that are compared. A rate that shares fewer than two with those of more seeds is left out; so is a seed that
      diverged.
    """
    marked = [_marked(end) for end in ends if end["test_accuracy"] is not None]
    found = []
    for curve in names.ordered(dict.fromkeys(end["curve"] for end in marked), curves):
        if curves[curve].get("reinit") != names.SHRINK or names.is_scaled(curves[curve]):
            continue
        best = _best(_of_shared_seeds([end for end in marked if end["curve"] == curve]))
        if best is None:  # it diverged
            continue
        rate = next(end[RATE] for end in marked if end["method"] == best)
        random, warm = (
            [name for name, spec in curves.items() if spec.get("reinit") == reinit]
            for reinit in (names.RANDOM, names.WARM)
        )
        own = [end for end in marked if end["method"] == best]
        at_rate = [end for end in marked if end[RATE] == rate]
        left = {name: _less_best(own, marked, of) for name, of in (("RI", random), ("WS", warm))}
        found.append({"curve": curve, RATE: rate, "win": _less_best(own, at_rate, random), "left": left})
    return found


def of_shared_seeds(ends: Sequence[Row]) -> list[Row]:
    """The ends at the seeds that all curves share, at all their learning rates: others' luck would stand between two.

    Where these are fewer than two, each curve's own.
    """
    seeds = [{end["seed"] for end in own} for own in grouped(ends, itemgetter("method", RATE)).values()]
    if len(shared := set.intersection(*seeds)) > 1:
        return [end for end in ends if end["seed"] in shared]
    kept = []
    for curve in dict.fromkeys(end["method"] for end in ends):
        own = [_marked(end) for end in ends if end["method"] == curve]
        kept += [end | {"method": curve} for end in _of_shared_seeds(own)]
    return kept


def _marked(end: Row) -> Row:
    """An end whose method is its curve at a learning rate."""
    return end | {"method": _at(end["method"], end[RATE]), "curve": end["method"]}


def told(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> str:
    """The comparisons in a sentence each."""
    sentences = []
    for own in comparisons:
        each = [own["win"], *own["left"].values()]
        parts = dict.fromkeys(f"{d['minuend']} - {d['subtrahend']} {with_half(d, unit)}" for d in each if d is not None)
        if parts:
            sentences.append("; ".join(parts))
    if not sentences:
        return ""
    points = " in points" * unit.percent
    what = f"Paired differences{points}, at SP's own rate and at the best ones"
    return f"{what}: {'. '.join(sentences)}."


def raised(curves: Methods, ends: Sequence[Row]) -> dict[str, float]:
    """For each shrink-perturb, the learning rate that is 1 / shrink^2 of its own, the lowest: its effect by theory."""
    rates: dict[str, float] = {}
    for name, spec in curves.items():
        own = [end[RATE] for end in ends if end["method"] == name]
        if own and spec.get("reinit") == names.SHRINK and spec.get("shrink"):
            rates[name] = min(own) / spec["shrink"] ** 2
    return rates


def _less_best(own: Sequence[Row], marked: Sequence[Row], curves: Sequence[str]) -> dict[str, Any] | None:
    """The paired difference of one method's ends and the best of some curves', of the seeds that they share."""
    one = next((end["method"] for end in own), None)
    shared = _of_shared_seeds([*own, *(end for end in marked if end["curve"] in curves)], one)
    return paired(shared, one, _best([end for end in shared if end["method"] != one]))


def _of_shared_seeds(ends: Sequence[Row], first: str | None = None) -> list[Row]:
    """The ends of those seeds that methods share: those of the first, and of each that leaves two of them or more."""
    seeds = {method: {end["seed"] for end in own} for method, own in grouped(ends, itemgetter("method")).items()}
    shared: set[int] = set()
    kept = []
    for method in sorted(seeds, key=lambda method: (method != first, -len(seeds[method]))):
        both = shared & seeds[method] if kept else seeds[method]
        if len(both) >= min(2, len(shared)):
            shared, kept = both, [*kept, method]
    return [end for end in ends if end["method"] in kept and end["seed"] in shared]


def _best(ends: Sequence[Row]) -> str | None:
    """The method of the highest mean; each has the same seeds."""
    own = grouped(ends, itemgetter("method"))
    return max(own, key=lambda name: float(np.mean([end["test_accuracy"] for end in own[name]])), default=None)


def _plain(spec: Spec) -> Spec:
    return {name: value for name, value in spec.items() if name != RATE}


def _kind(name: str, spec: Spec, several: bool) -> str:
    """How a method is called whatever its learning rate."""
    if spec.get("reinit") == names.SHRINK:
        return names.sp_name(spec, several)
    return names.SHORT.get(spec.get("reinit", ""), name)


def _is_random(spec: Spec) -> bool:
    """Whether a method has no first round to go on from."""
    return spec.get("reinit") == names.RANDOM or names.is_scaled(spec)


def _at(curve: str, rate: float) -> str:
    return f"{curve} at {rate:.4g}"
