"""Verdicts on published claims, computed from runs.

A claim is data (figures/published/claims.json): parts, each with the runs that it is about, what is measured of them
(`measures`), and the range that the claim puts it in. A claim of the "tour" may be told of by the embedded digits too,
where nothing larger was run.

What rounds of a fixed length come to is the mean of their last epochs (`measures.LAST`).

A claim is reproduced where the whole 95 % interval of each part lies in its range, and not where that of one part lies
outside. Chances to err are paid for: of several parts one must lie outside by an interval at 1 - 0.05 / parts, for each
of them could by chance; and where seeds were added to those of a run before, or went on to further rounds, as one does
who has looked, all intervals are at 1 - 0.05 / looks. Parts that are judged "together", means that are each the
published one or not, are reproduced where no more of them lie outside than chance puts there in one of twenty such
tables.

So, with up to four looks, a verdict errs to either side in fewer than five of a hundred cases, as a test simulates,
though intervals at 1 - 0.05 / looks miss the truth more often than that together, to one side or the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import bdtrc, stdtr, stdtrit

from wsjax.errors import RunError
from wsjax.results import cells, names, words
from wsjax.results.measures import MEASURES, Group, Part, lately, least_trained
from wsjax.results.merge import DrawnRun, merge_runs, methods_of, unlike
from wsjax.results.stats import CONFIDENCE
from wsjax.storage.records import CONFIG, RunRecords, read_run, setting

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = "reproduced", "not reproduced", "undecided", "not run"
ERROR = 1 - CONFIDENCE
"""How often a verdict may err by chance."""


class Estimate(NamedTuple):
    """What was measured for one part of a claim.

    Attributes:
      what: in words.
      mean: over seeds.
      low: of its 95 % interval; None of one seed.
      high: likewise.
      seeds: how many.
      unit: "points", which are fractions here, "standard errors", or "" of plain numbers.
      lies_in: the range that the claim puts it in; None is open.
      looks: how many runs one after another its seeds came by, or had come by to an earlier round.
      fitted: the train accuracy with which the least trained method ended, where that is less than the claim needs:
        then nothing is decided.
      sizes: how large each of its runs is, in words.
      parts: how many the claim has of which one outside decides.
    """

    what: str
    mean: float
    low: float | None
    high: float | None
    seeds: int
    unit: str
    lies_in: tuple[float | None, float | None]
    looks: int = 1
    sizes: tuple[str, ...] = ()
    parts: int = 1
    fitted: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval that must lie in the range: the wider, the more looks there were; None of one seed."""
        return None if self.low is None else self._bounds(ERROR / self.looks)

    @property
    def verdict(self) -> str:
        """What it says of its part of the claim."""
        if self.interval is None or self.fitted is not None:
            return UNDECIDED
        least, most = (bound if bound is not None else end for bound, end in zip(self.lies_in, _ENDS, strict=True))
        low, high = self.interval
        if least <= low and high <= most:
            return REPRODUCED
        low, high = self._bounds(ERROR / self.looks / self.parts)
        return NOT_REPRODUCED if high < least or low > most else UNDECIDED

    def _bounds(self, error: float) -> tuple[float, float]:
        """The interval that misses the mean that often, by Student's t."""
        assert self.low is not None
        assert self.high is not None
        degrees = max(self.seeds - 1, 1)
        wider = stdtrit(degrees, 1 - error / 2) / stdtrit(degrees, 1 - ERROR / 2)
        return self.mean - wider * (self.mean - self.low), self.mean + wider * (self.high - self.mean)


class Verdict(NamedTuple):
    """What the runs say of a claim; `missing` are the parts that no run tells of.

    `others` are what runs of other widths say, by "wider" and "narrower", where that is something else.
    """

    claim: Mapping[str, Any]
    verdict: str
    estimates: list[Estimate]
    missing: list[str]
    others: Mapping[str, Verdict] = {}

    @property
    def scale(self) -> str:
        """How large the runs are, in words, and of how many seeds, in how many looks, is told."""
        told: dict[str, list[Estimate]] = {}
        for estimate in self.estimates:
            for size in dict.fromkeys(estimate.sizes):
                told.setdefault(size, []).append(estimate)
        return "; ".join(_alike({size: _seeds(own) for size, own in told.items()}))


def _seeds(estimates: Sequence[Estimate]) -> str:
    """ "12 seeds in 3 looks", of several estimates from the fewest to the most."""
    seeds, looks = ([getattr(own, name) for own in estimates] for name in ("seeds", "looks"))
    text = f"{_span(seeds)} seed{'s' * (max(seeds) > 1)}"
    return text + f" in {_span(looks)} looks" * (max(looks) > 1)


def _span(values: Sequence[int]) -> str:
    return " to ".join(map(str, sorted({min(values), max(values)})))


def _alike(told: Mapping[str, str]) -> list[str]:
    """Sizes with their seeds; those that differ in the data set alone as one."""
    found: dict[str, list[str]] = {}
    for size, seeds in told.items():
        data, _, rest = f"{size}, {seeds}".partition(", ")
        found.setdefault(rest, []).append(data)
    return [f"{' and '.join(data)}, {rest}" for rest, data in found.items()]


_ENDS = (-math.inf, math.inf)


def read_study(folder: Path) -> list[RunRecords]:
    """All runs in a folder, at any depth, by their names. Raises RunError where one is damaged."""
    return [read_run(path.parent) for path in sorted(folder.rglob(CONFIG))]


def verdicts(claims: Iterable[Mapping[str, Any]], runs: Sequence[RunRecords]) -> list[Verdict]:
    """The verdict on each claim; see the module for what a claim is."""
    return [judge(claim, runs) for claim in claims]


def judge(claim: Mapping[str, Any], runs: Sequence[RunRecords]) -> Verdict:
    """The verdict on one claim, by the widest networks whose runs decide it, or by the widest where none do."""
    widths = sorted({_width(run.config["config"]) for run in runs}, reverse=True) or [0]
    widest, *rest = (_judge(claim, [run for run in runs if _width(run.config["config"]) <= most]) for most in widths)
    decided = [verdict for verdict in rest if verdict.verdict in (REPRODUCED, NOT_REPRODUCED)]
    if widest.verdict == UNDECIDED and decided:
        return decided[0]._replace(others={"wider": widest})
    contrary = [verdict for verdict in decided if verdict.verdict != widest.verdict]
    return widest._replace(others={"narrower": contrary[0]}) if contrary else widest


def _judge(claim: Mapping[str, Any], runs: Sequence[RunRecords]) -> Verdict:
    """The same by the largest runs that tell of each of the claim's parts."""
    estimates: list[Estimate] = []
    missing: list[str] = []
    for part in parts_of(claim):
        found = _measure(part, runs) or (_measure(_toured(part), runs) if claim.get("tour") else None)
        if found is None:
            missing.append(part["what"])
        else:
            estimates.append(found)
    estimates = [estimate._replace(parts=len(estimates)) for estimate in estimates]
    told = {estimate.verdict for estimate in estimates}
    if claim.get("together") and estimates:
        told = {REPRODUCED if _is_by_chance(estimates) else NOT_REPRODUCED}
    if not estimates:
        verdict = NOT_RUN
    elif NOT_REPRODUCED in told:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNDECIDED if missing or UNDECIDED in told else REPRODUCED
    return Verdict(claim, verdict, estimates, missing)


def parts_of(claim: Mapping[str, Any]) -> list[Part]:
    """The parts of a claim, each with what all of them have: "shared", and in their runs the settings "run"."""
    parts = ({**claim.get("shared", {}), **part} for part in claim["parts"])
    return [{**part, "runs": [{**claim.get("run", {}), **own} for own in part.get("runs", [{}])]} for part in parts]


def _is_by_chance(estimates: Sequence[Estimate]) -> bool:
    """Whether chance explains how many of several distances, in combined standard errors, lie outside.

    Each is like Student's t of the degrees of both means, and their number binomial.
    """
    outside = sum(estimate.verdict != REPRODUCED for estimate in estimates)
    chances = [2 * stdtr(own.seeds + cells.SEEDS - 2, -(own.lies_in[1] or 0)) for own in estimates]
    return outside == 0 or bdtrc(outside - 1, len(estimates), sum(chances) / len(chances)) >= ERROR


def groups(runs: Sequence[RunRecords], wanted: Mapping[str, Any]) -> list[Group]:
    """The runs of those settings, "experiment" among them, merged where they differ in seeds and methods only.

    The largest comes first: by width, images, epochs and seeds.
    """
    settings = {name: value for name, value in wanted.items() if name != "experiment"}
    together: list[list[RunRecords]] = []
    for run in runs:
        own = run.config["config"]
        if run.config.get("experiment") != wanted["experiment"] or not run.rows:
            continue
        if any(setting(own, name) != value for name, value in settings.items()):
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


def size_told(run: DrawnRun) -> str:
    """How large a run is, in words."""
    own = run.settings
    parts = [f"width {width}"] if (width := _width(own)) else []
    parts.append(f"{_images(run):,} images")
    parts += [f"{own['epochs']} epochs" if own.get("stop") == ["epochs"] else "to " + _stop(own)]
    return ", ".join([words.label(own.get("dataset", "")), *parts])


def _of_scale(run: DrawnRun) -> tuple[Any, ...]:
    """What runs that are compared must share; what they are compared in may ask for more epochs."""
    own = run.settings
    return own.get("dataset"), _width(own), own.get("num_train")


def _stop(own: Mapping[str, Any]) -> str:
    rules = {"accuracy": f"{100 * own.get('threshold', 1):.4g} % train accuracy", "plateau": "a plateau"}
    return " or ".join(text for rule, text in rules.items() if rule in own.get("stop", ()))


def _width(own: Mapping[str, Any]) -> int:
    """The width of a run's ResNet, 0 of another network."""
    is_resnet = "resnet18" in (own.get("networks") or [own.get("model")])
    return own.get("width") or 0 if is_resnet else 0


def _size(run: DrawnRun) -> tuple[Any, ...]:
    own, seeds = run.settings, len({row["seed"] for row in run.rows})
    return _width(own), _images(run), own.get("epochs") or 0, seeds


def _images(run: DrawnRun) -> int:
    """How many images a run has trained on at its end: of a run over growing data fewer, perhaps, than there are."""
    return max(row["samples"] for row in run.rows)


def _toured(part: Part) -> Part:
    """The part as the embedded digits may tell of it, whatever network and optimiser they were trained with."""
    free = ("dataset", "model", "optimizer", "threshold", "stop", "train_accuracy", "stem_pool", "conv_init")
    runs = [{name: value for name, value in wanted.items() if name not in free} for wanted in part["runs"]]
    return {**part, "runs": [{**wanted, "dataset": "digits"} for wanted in runs]}


def _measure(part: Part, runs: Sequence[RunRecords]) -> Estimate | None:
    """What a part of a claim comes to; None where no run tells of it."""
    among = [[lately(group) for group in groups(runs, wanted)] for wanted in part["runs"]]
    compared = {name for wanted in part["runs"] for name in wanted}

    def distance(own: Sequence[Group]) -> int:
        """In how many settings, beside those that they are compared in, runs differ."""
        return sum(len(unlike(own[0].run.settings, group.run.settings).keys() - compared) for group in own[1:])

    told = None
    for own in sorted(itertools.product(*among), key=distance):  # the most alike first, and of these the largest
        if len({_of_scale(group.run) for group in own}) > 1:
            continue
        if found := MEASURES[part["measure"]](part, *own):
            told_of = set.intersection(*({row["seed"] for row in group.run.rows} for group in own))
            looks = max(
                sum(_looks(each, _compared(part), told_of) for each in [group, *_shorter(group, known)])
                for group, known in zip(own, among, strict=True)
            )
            estimate = Estimate(
                part["what"], found["mean"], found["low"], found["high"], found["seeds"], part.get("unit", "points"),
                tuple(part["lies_in"]), looks, tuple(size_told(group.run) for group in own),
            )  # fmt: skip
            if "fitted" in part and (fitted := least_trained(part, own)) < part["fitted"]:
                estimate = estimate._replace(fitted=fitted)
            if estimate.low is not None:  # several seeds before one
                return estimate
            told = told or estimate
    return told


def _compared(part: Part) -> Sequence[names.Spec | str]:
    """The methods that a part of a claim is about, by what they are or by name; none where it is about all."""
    if "network" in part:
        return [part["network"]]
    return part.get("of") or [key for key in part.get("at", ()) if isinstance(key, Mapping)]


def _shorter(group: Group, known: Sequence[Group]) -> list[Group]:
    """Runs of fewer rounds, of some of the same seeds and else alike: who lets such seeds go on has looked at them."""
    seeds = set(group.run.settings["seeds"])
    return [
        other
        for other in known
        if unlike(group.run.settings, other.run.settings).keys() == {"max_rounds"}
        and _images(other.run) < _images(group.run)
        and seeds & set(other.run.settings["seeds"])
    ]


def _looks(group: Group, compared: Sequence[names.Spec | str], seeds: set[int]) -> int:
    """By how many runs one after another some seeds came, which all of those methods have; any, if none is named."""
    looks, seen = 0, set()
    have: list[set[int]] = [set() for _ in compared or (None,)]
    for run in group.each:
        table = methods_of(run)
        for own, method in zip(have, compared or (None,), strict=True):
            name = names.matching(table, method) if isinstance(method, Mapping) else method
            own |= {row["seed"] for row in run.rows if method is None or row["method"] == name}
        shared = seeds.intersection(*have)
        if shared - seen:
            looks, seen = looks + 1, shared
    return max(looks, 1)
