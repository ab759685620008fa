"""Tables of offline runs beside published numbers: a cell is a model on a data set by an optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wsjax.errors import RunError
from wsjax.results import names, words
from wsjax.results.captions import Caption, progress, seeds_told
from wsjax.results.groups import Key, merge_groups
from wsjax.results.merge import DrawnRun, ran_on
from wsjax.results.sheets import MARK, Sheet
from wsjax.results.stats import ACCURACY, unit_of
from wsjax.results.summary import paired, side, with_half
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import CAP

SEEDS = 5  # of the report's means
INITS = {"random": names.RANDOM, "warm": names.WARM}
"""The two as the report's tables name them."""
_TITLES = {"model": "Model", "dataset": "Data", "optimizer": "Optimiser", "weight_decay": "Weight decay"}
_EVALUATIONS = ("running", "reestimated", "batch")


class Score(NamedTuple):
    """A mean in percent and its standard error over seeds, None where one seed gives none."""

    mean: float
    error: float | None
    seeds: int


class Entry(NamedTuple):
    """What was published of one cell.

    Attributes:
        key: the cell's values of the table's settings.
        scores: by re-initialiser.
        printed: the same as they were printed, of which less may be left.
        settings: all that was published of how it ran.
    """

    key: Key
    scores: Mapping[str, Score]
    printed: Mapping[str, str]
    settings: Mapping[str, Any]


def published_score(mean: float, spread: float | None) -> Score:
    """A published mean; its standard error over 5 seeds was taken with ddof 0, which makes it sqrt(4 / 5) of ours."""
    return Score(
        mean, None if spread is None else spread * math.sqrt(SEEDS / (SEEDS - 1)), 1 if spread is None else SEEDS
    )


def score_of(values: Sequence[float]) -> Score:
    """The mean of accuracies, with its standard error (ddof 1)."""
    count, percent = len(values), 100 * np.asarray(values)
    error = None if count < 2 else float(np.std(percent, ddof=1) / math.sqrt(count))
    return Score(float(np.mean(percent)), error, count)


def is_off(own: Score, other: Score) -> bool:
    """Whether two means are further apart than 2 combined standard errors.

    A published mean of one seed is taken to scatter as ours do; where neither has an error nothing can be said.
    """
    if own.error is None:
        return False
    error = own.error * math.sqrt(own.seeds) if other.error is None else other.error
    return abs(own.mean - other.mean) > 2 * math.hypot(own.error, error)


def table(
    runs: Sequence[RunRecords], by: Sequence[str], entries: Sequence[Entry], what: str, notes: str
) -> tuple[Sheet, Caption]:
    """A table of RI and WS with a row a cell, and its caption.

    Args:
        runs: offline runs; those of one cell differ in seeds and methods only.
        by: the settings that tell cells apart.
        entries: what was published; each has a row whether or not it ran. Other cells that ran come after.
        what: what the caption calls it.
        notes: what the caption says more.

    Raises:
        RunError: as `merge_groups`; two runs are of one cell, or no second round has ended.
    """
    groups = merge_groups(runs, "offline", [*by, "evaluation"], None, reinits=tuple(names.SHORT))
    cells: dict[Key, dict[str, DrawnRun]] = {}
    for (*key, evaluation), run in groups.runs.items():
        if run.settings["model"] != "resnet18":  # has no BatchNorm
            evaluation = _EVALUATIONS[0]
        if evaluation in cells.setdefault(tuple(key), {}):
            raise RunError(f"two runs of one cell, {_names(by, key)}, differ in evaluation: give one of them")
        cells[tuple(key)][evaluation] = run
    known = {entry.key: entry for entry in entries}
    evaluations = [name for name in _EVALUATIONS if any(name in own for own in cells.values())]
    keys = list(dict.fromkeys([*known, *cells]))
    made = [
        _cell(key, name, cells[key][name], known.get(key))
        for key in keys
        for name in evaluations
        if name in cells.get(key, {})
    ]
    if not any(cell.scores for cell in made):
        raise RunError("no second round has ended yet: wait for the first one")
    sheet = _sheet(by, keys, made, known, evaluations)
    return sheet, _caption(by, made, len(known), groups.whole, what, notes)


class _Cell(NamedTuple):
    """What ran of one cell, with one kind of evaluation; `capped` says whether a round ended at the cap of epochs."""

    key: Key
    evaluation: str
    run: DrawnRun
    entry: Entry | None
    scores: Mapping[str, Score]
    gap: Mapping[str, Any] | None
    capped: bool

    @property
    def comparable(self) -> bool:
        """Whether network, data, optimiser and stop rule are the published ones."""
        return self.entry is not None and words.is_published(self.run.settings, self.entry.settings)

    @property
    def compared(self) -> list[str]:
        """The re-initialisers whose means stand beside published ones of the same settings."""
        return [reinit for reinit in self.scores if self.comparable and self.entry and reinit in self.entry.scores]

    @property
    def off(self) -> list[str]:
        """Those of them that are further from the published means than chance explains."""
        there = self.entry.scores if self.entry else {}
        return [reinit for reinit in self.compared if is_off(self.scores[reinit], there[reinit])]


def _cell(key: Key, evaluation: str, run: DrawnRun, entry: Entry | None) -> _Cell:
    ends = run.ends
    if not unit_of(ends).percent:
        raise RunError("scores that are no accuracies cannot stand beside the report's")
    named = {reinit: names.matching(run.methods, {"reinit": reinit}) for reinit in names.SHORT}
    values = {reinit: [e["test_accuracy"] for e in ends if e["method"] == name] for reinit, name in named.items()}
    scores = {reinit: score_of(own) for reinit, own in values.items() if own}
    gap = paired(ends, named[names.RANDOM], named[names.WARM])
    return _Cell(key, evaluation, run, entry, scores, gap, any(row["stop"] == CAP for row in run.rows))


def _sheet(
    by: Sequence[str],
    keys: Sequence[Key],
    made: Sequence[_Cell],
    known: Mapping[Key, Entry],
    evaluations: Sequence[str],
) -> Sheet:
    found = {(cell.key, cell.evaluation): cell for cell in made}
    columns = [_TITLES[name] for name in by]
    for name in evaluations:
        of = "" if name == _EVALUATIONS[0] else f", {name} statistics"
        first = name == evaluations[0]
        columns += [
            part for reinit in names.SHORT.values() for part in (reinit + of, f"{reinit} published")[: 1 + first]
        ]
        columns += [f"RI - WS{of}", f"seeds{of}"]
    rows = []
    for key in keys:
        row = [words.shown(name, value) for name, value in zip(by, key, strict=True)]
        for name in evaluations:
            cell = found.get((key, name))
            for reinit in names.SHORT:
                row.append(_measured(cell, reinit))
                if name == evaluations[0]:
                    row.append(known[key].printed.get(reinit, "") if key in known else "")
            row += [_gap(cell), _seed_count(cell)]
        rows.append(row)
    return Sheet(columns, rows, len(by))


def _measured(cell: _Cell | None, reinit: str) -> str:
    if cell is None or reinit not in cell.scores:
        return ""
    score = cell.scores[reinit]
    return with_error(score.mean, score.error) + f" {MARK}" * (reinit in cell.off)


def with_error(mean: float, error: float | None) -> str:
    """A mean in percent with its standard error, where it has one."""
    return f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")


def _gap(cell: _Cell | None) -> str:
    if cell is None or cell.gap is None:
        return ""
    return with_half(cell.gap, ACCURACY, 1)


def _seed_count(cell: _Cell | None) -> str:
    """How many seeds a cell has, of each method where they differ."""
    counts = [] if cell is None else [str(score.seeds) for score in cell.scores.values()]
    return "/".join(dict.fromkeys(counts)) if len(set(counts)) < 2 else "/".join(counts)


def _caption(by: Sequence[str], made: Sequence[_Cell], known: int, whole: DrawnRun, what: str, notes: str) -> Caption:
    there = len({cell.key for cell in made if cell.entry is not None and cell.scores})
    seeds = seeds_told(sorted({row["seed"] for row in whole.rows}))
    differs = [] if whole.finished else [progress(whole.rows)]
    means, off = (sum(len(own) for own in each) for each in zip(*((c.compared, c.off) for c in made), strict=True))
    gaps = [told for cell in made if cell.gap is not None and (told := side(cell.gap)) is not None]
    came = [
        f"{off} of {means} means with the published network, data, optimiser and stop rule are off ({MARK})."
    ] * bool(means)
    if gaps:
        came.append(f"RI - WS is above 0 in {gaps.count(1)} of {len(gaps)} cells, below in {gaps.count(-1)}.")
    return Caption(
        what,
        f"{there} of {known} published cells ran; {seeds}.",
        " ".join([*differs, *_not_as_published(by, made)]),
        " ".join(came),
        " ".join([_MARKS, notes, *ran_on(whole)]),
    )


_MARKS = (
    "Behind ± stand standard errors of means over seeds (ddof 1; the report's, as printed, of ddof 0), and for RI - WS "
    f"half of its paired 95 % t-interval. {MARK}: further than 2 combined standard errors from the published mean."
)


def _not_as_published(by: Sequence[str], made: Sequence[_Cell]) -> list[str]:
    """How cells are not as published; which, where it is not all that were."""
    known = [cell for cell in made if cell.entry is not None]
    differ: dict[str, list[str]] = {}
    for cell in known:
        own, there = words.told(cell.run.settings), cell.entry.settings if cell.entry else {}
        for text in words.not_as_published(own, there, cell.capped):
            differ.setdefault(text, []).append(_names(by, cell.key))
    told = [f"{text} ({', '.join(own)})" if len(own) < len(known) else text for text, own in differ.items()]
    return [f"Not as published: {'; '.join(told)}."] if told else ["Settings as published."] * bool(known)


def _names(by: Sequence[str], key: Sequence[Any]) -> str:
    return " ".join(words.shown(name, value) for name, value in zip(by, key, strict=True))
