"""What transfer runs come to: how each method ends on every share of every other data set.

A method of such a run is one of the usual, a *kind*, on a share of a target. Its entry in the run's table tells all:
`{"kind": "SP", "target": "svhn", "fraction": 0.3, "reinit": "shrink_perturb", "shrink": 0.3, "perturb": 0.0001}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.results import names, words
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun
from wsjax.results.names import Methods
from wsjax.results.stats import Unit, unit_of
from wsjax.results.summary import minus, paired, side, unit_of_summary, with_half
from wsjax.results.tables import Table, over_seeds
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import FIRST, Row, grouped, round_ends

_PLACE = ("kind", "target", "fraction")
_OF_SOURCE = ("datasets", "num_train", "num_test")  # settings that runs of other sources differ in


class Pair(NamedTuple):
    """A source and a target."""

    source: str
    target: str

    @property
    def title(self) -> str:
        """As figures and captions have it."""
        return f"{words.phrase('dataset', self.source)} to {words.phrase('dataset', self.target)}"


def spec_of(kind: str, spec: names.Spec, target: str, fraction: float) -> dict[str, Any]:
    """What the table of a run says of a kind of method on a share of a target."""
    return {"kind": kind, "target": target, "fraction": fraction, **spec}


def name_of(kind: str, target: str, fraction: float) -> str:
    """How it is called, such as "RI cifar100 0.3"."""
    return f"{kind} {target} {exact(fraction)}"


def exact(fraction: float) -> str:
    """A share, no two alike."""
    return repr(float(fraction)).removesuffix(".0")


def kinds(methods: Methods) -> dict[str, names.Spec]:
    """The kinds that a run's table has, as a table of their own."""
    return {
        spec["kind"]: {name: value for name, value in spec.items() if name not in _PLACE} for spec in methods.values()
    }


def ends_by_kind(rows: Sequence[Row], methods: Methods) -> list[Row]:
    """How each transfer ended: its last row, whose method is the kind, with "target" and "fraction"."""
    ends = []
    for end in round_ends(rows):
        if end["method"] != FIRST:
            spec = methods[end["method"]]
            ends.append(end | {"method": spec["kind"], "target": spec["target"], "fraction": spec["fraction"]})
    return ends


def summarize(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of the transfers from one source.

    Args:
      rows: a row an epoch.
      methods: the run's table.

    Returns:
      "rows": how each transfer ended, see `ends_by_kind`; "first_round": how each seed ended on the source; "pairs":
      for each target and fraction the differences in test accuracy, paired over seeds: "gap", random initialisation
      minus warm start, and "gain", of each other kind minus random initialisation; None where one did not run.
    """
    ends, table = ends_by_kind(rows, methods), kinds(methods)
    return {
        "rows": ends,
        "first_round": [end for end in round_ends(rows) if end["method"] == FIRST],
        "pairs": [
            {"target": target, "fraction": fraction, "samples": own[0]["samples"], **gap_and_gains(own, table)}
            for (target, fraction), own in by_place(ends).items()
        ],
    }


def by_place(ends: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """The ends of each target and fraction, the fractions in their order."""
    targets = list(dict.fromkeys(end["target"] for end in ends))
    own = grouped(ends, itemgetter("target", "fraction"))
    return {place: own[place] for place in sorted(own, key=lambda place: (targets.index(place[0]), place[1]))}


def gap_and_gains(ends: Sequence[Row], table: Methods) -> dict[str, Any]:
    """The paired "gap" and "gain" of the kinds' ends in one place."""
    random, warm = names.both(table)
    others = [
        name
        for name in names.ordered(dict.fromkeys(end["method"] for end in ends), table)
        if name not in (random, warm)
    ]
    return {"gap": paired(ends, random, warm), "gain": {name: paired(ends, name, random) for name in others}}


def table(summary: Mapping[str, Any], methods: Methods) -> Table:
    """Columns and rows of a summary's table: a row a target and fraction."""
    unit = unit_of_summary(summary)
    columns = names.ordered(dict.fromkeys(end["method"] for end in summary["rows"]), kinds(methods))
    titles: dict[str, None] = {}
    lines = []
    for pair, own in zip(summary["pairs"], by_place(summary["rows"]).values(), strict=True):
        there = [[end for end in own if end["method"] == name] for name in columns]
        found = {minus(each): with_half(each, unit) for each in (pair["gap"], *pair["gain"].values()) if each}
        titles |= dict.fromkeys(found)
        means = [over_seeds(ends, "test_accuracy", unit, spread=False) if ends else "" for ends in there]
        lines.append(([pair["target"], exact(pair["fraction"]), f"{pair['samples']:,}", *means], found))
    sign = "%" if unit.percent else unit.word
    return ["target", "share", "images", *(f"{names.label(name)} {sign}" for name in columns), *titles], [
        [*cells, *(found.get(title, "") for title in titles)] for cells, found in lines
    ]


def verdict(summary: Mapping[str, Any], source: str) -> list[str]:
    """What the numbers say: for each target and difference, where it is above 0, below, or cannot be told."""
    unit, sentences = unit_of_summary(summary), []
    for target in dict.fromkeys(pair["target"] for pair in summary["pairs"]):
        own = [pair for pair in summary["pairs"] if pair["target"] == target]
        places: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}  # by title: not all need be at every share
        for pair in own:
            for found in filter(None, (pair["gap"], *pair["gain"].values())):
                places.setdefault(minus(found), []).append((pair["fraction"], found))
        for title, each in places.items():
            told = "; ".join(f"{exact(fraction)}: {with_half(found, unit)}" for fraction, found in each)
            points = "points, " * unit.percent + "by share of the target"
            sentences.append(f"{source} to {target}, {title} ({points}) {told}. {_signs(each)}")
    return sentences


def merge_sources(runs: Sequence[RunRecords]) -> tuple[DrawnRun, dict[Pair, list[Row]]]:
    """Merges the runs of several sources.

    Returns:
      What is drawn, whose methods, of the rows too, are the kinds, and the ends of each pair, see `ends_by_kind`.

    Raises:
      RunError: as `merge_runs`; runs of two sources differ in more than that, or no transfer has ended yet.
    """
    groups = merge_groups(runs, "transfer", ["dataset"], _OF_SOURCE)
    merged = {str(source): run for (source,), run in groups.runs.items()}
    table, renamed = names.merge([kinds(run.methods) for run in merged.values()])
    found: dict[Pair, list[Row]] = {}
    rows: list[Row] = []
    for (source, run), own in zip(merged.items(), renamed, strict=True):
        called = {name: own[spec["kind"]] for name, spec in run.methods.items()} | {FIRST: FIRST}
        rows += [row | {"method": called[row["method"]]} for row in run.rows]
        for end in ends_by_kind(run.rows, run.methods):
            found.setdefault(Pair(source, end["target"]), []).append(end | {"method": own[end["method"]]})
    if not found:
        raise RunError("no transfer has ended yet: wait for the first one")
    sets = list(dict.fromkeys(name for run in merged.values() for name in run.settings["datasets"]))
    settings = {name: value for name, value in groups.whole.settings.items() if name != "dataset"} | {"datasets": sets}
    return groups.whole._replace(settings=settings, methods=table, rows=rows), found


def of_source(pair: Pair, pairs: Mapping[Pair, Sequence[Row]], table: Methods) -> list[Row]:
    """How random initialisation ended on the shares of a pair's source, which other pairs have as their target."""
    random = names.find(table, names.RANDOM)
    for other, ends in pairs.items():
        if other.target == pair.source:
            return [end for end in ends if end["method"] == random]
    return []


def told(pairs: Mapping[Pair, Sequence[Row]], table: Methods) -> tuple[str, str]:
    """What came out: how often each difference lies above and below 0, and all of them in numbers."""
    sides: dict[str, list[int]] = {}
    for ends in pairs.values():
        for difference in itertools.chain.from_iterable(_differences(ends, table).values()):
            sides.setdefault(minus(difference), []).append(side(difference) or 0)
    counts = [
        f"{name} is above 0 in {own.count(1)} of {len(own)}, below in {own.count(-1)}, not to be told in {own.count(0)}"
        for name, own in sides.items()
    ]
    numbers = {pair: _numbers(ends, table, _unit(pairs)) for pair, ends in pairs.items()}
    every = [f"{pair.title}: {_joined(own)}." for pair, own in numbers.items() if own]
    points = " in points" * _unit(pairs).percent
    came = f"Over pairs and shares {'; '.join(counts)}." if counts else ""
    return came, f"Differences of test {_unit(pairs).word}{points}: {' '.join(every)}" if every else ""


def told_wrong(pairs: Mapping[Pair, Sequence[Row]], table: Methods) -> str:
    """What the differences would read if random initialisation were taken from the source, as the report did."""
    random, said, without = names.find(table, names.RANDOM), [], []
    for pair, ends in pairs.items():
        wrong = of_source(pair, pairs, table)
        others = [end for end in ends if end["method"] != random]
        if numbers := _numbers([*others, *wrong], table, _unit(pairs)) if wrong else {}:
            said.append(f"{pair.title}: {_joined(numbers)}.")
        else:
            without.append(pair.title)
    text = []
    if said:
        text.append(f"With the RI of the source in the place of the target's, as the report drew it: {' '.join(said)}")
    if without:
        text.append(f"No run has the source as a target, so that its RI is not known: {', '.join(without)}.")
    return " ".join(text)


def missing(pairs: Mapping[Pair, Sequence[Row]]) -> str:
    """Which ends are not there that others of the figure have, in a sentence; empty where none is missing."""
    kinds_, seeds = ({end[name] for ends in pairs.values() for end in ends} for name in ("method", "seed"))
    fractions = sorted({end["fraction"] for ends in pairs.values() for end in ends})
    lacks = []
    for pair, ends in pairs.items():
        there = {(end["method"], end["fraction"], end["seed"]) for end in ends}
        due = {(kind, fraction, seed) for kind in kinds_ for fraction in fractions for seed in seeds}
        if count := len(due - there):
            lacks.append(f"{pair.title} lacks {count} of {len(due)}")
    return f"Not all ends are there: {'; '.join(lacks)}." if lacks else ""


def _signs(places: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
    """Which of two is better at which fractions, as far as intervals tell."""
    first, second = (names.label(places[0][1][part]) for part in ("minuend", "subtrahend"))
    said = []
    for told, what in ((1, f"{first} is better"), (-1, f"{second} is better"), (0, "No difference can be told")):
        if where := [exact(fraction) for fraction, found in places if side(found) == told]:
            said.append(f"{what} at {', '.join(where)}.")
    return " ".join(said) or "One seed gives no interval."


def _differences(ends: Sequence[Row], table: Methods) -> dict[float, list[dict[str, Any]]]:
    """The differences of one pair at each share."""
    found = {}
    for fraction, there in sorted(grouped(ends, itemgetter("fraction")).items()):
        own = gap_and_gains(there, table)
        found[fraction] = [each for each in (own["gap"], *own["gain"].values()) if each]
    return found


def _numbers(ends: Sequence[Row], table: Methods, unit: Unit) -> dict[float, list[str]]:
    """The same in words, of shares that have any."""
    found = _differences(ends, table)
    return {at: [f"{minus(each)} {with_half(each, unit)}" for each in own] for at, own in found.items() if own}


def _joined(numbers: Mapping[float, Sequence[str]]) -> str:
    return "; ".join(f"at {exact(fraction)} {', '.join(texts)}" for fraction, texts in numbers.items())


def _unit(pairs: Mapping[Pair, Sequence[Row]]) -> Unit:
    return unit_of([end for ends in pairs.values() for end in ends])
