"""What one figure draws: a run, or several that differ in seeds and methods only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.results import names
from wsjax.results.names import Methods
from wsjax.results.summary import summarize_online
from wsjax.results.words import NEUTRAL, acts_early
from wsjax.storage.records import RunRecords, differing
from wsjax.storage.rows import FIRST, Row, grouped

_UNITED = ("seeds", "methods", "shrink", "networks")  # a figure's are all of its runs'


class DrawnRun(NamedTuple):
    """One run, or several merged: what to draw and what to say of it. `methods` is the table of the rows' methods."""

    settings: dict[str, Any]
    methods: Methods
    rows: list[Row]
    finished: bool
    about: tuple[str, ...]  # where it ran, each place once

    @property
    def ends(self) -> list[Row]:
        """The last row of each method and seed that have ended the last round; of the shared first one none."""
        ends = [row for row in self.rows if row["stop"] and row["method"] != FIRST]
        last = max((row["round"] for row in ends), default=0)
        return [row for row in ends if row["round"] == last]

    @property
    def epochs(self) -> int | None:
        """A round's length, where it is fixed."""
        fixed = self.settings.get("stop") == ["epochs"] and not self.settings.get("first_epochs")
        return self.settings.get("epochs") if fixed else None


def check_experiment(runs: Sequence[RunRecords], *possible: str) -> None:
    """Raises RunError where there is no run, or one is of another experiment than those."""
    if not runs:
        raise RunError("nothing to draw: give the folder of one run or of several")
    for run in runs:
        if (own := run.config.get("experiment")) not in possible:
            raise RunError(f"not a run of the {' or '.join(possible)} experiment but of {own!r}")


def merge_runs(
    runs: Sequence[RunRecords], experiment: str, *, reinits: Collection[str] | None = None, first_round: bool = True
) -> DrawnRun:
    """Merges runs of an experiment that differ in seeds, methods and what is neutral only.

    A method's curve of one seed comes from the run that has most of it. A method is what it does, whatever a run calls
    it; "SP" becomes "SP 0.3", as in runs of several shrinks.

    Args:
        runs: as `read_run` gives them.
        experiment: the name of the experiment that they must be of.
        reinits: draw the methods that do one of these; by default all.
        first_round: whether the first round, which the methods share, is drawn too.

    Raises:
        RunError: there is no run, one is of another experiment, their other settings differ, they mean different
            things by a name, or there is no row to draw.
    """
    check_experiment(runs, experiment)
    settings = [run.config["config"] for run in runs]
    for other in settings[1:]:
        if differ := [f"{name} {first} and {second}" for name, (first, second) in unlike(settings[0], other).items()]:
            raise RunError(f"runs of different settings cannot share a figure: {'; '.join(differ)}")

    methods, renamed = names.merge([methods_of(run) for run in runs])
    drawn = {name: spec for name, spec in methods.items() if reinits is None or spec.get("reinit") in reinits}
    curves = _furthest(runs, renamed, {*drawn, *([FIRST] if first_round else [])})
    rows = [row for found in curves.values() for row in found]
    if not rows:
        raise RunError("there are no epochs to draw yet: wait for the first one of the figure's methods")
    united = {name: sorted({value for own in settings for value in own.get(name) or ()}) for name in _UNITED}
    united["perturb"] = sorted(names.perturbs(drawn.get(name, {}) for name, _ in curves))
    drawn_of = [drawn.keys() & own.values() for own in renamed]
    about = dict.fromkeys(_about(run.config) for run, own in zip(runs, drawn_of, strict=True) if own)
    finished = _have_ended(curves, drawn_of, runs)
    return DrawnRun(settings[0] | united, drawn, rows, finished, tuple(filter(None, about)))


def ran_on(*runs: DrawnRun) -> list[str]:
    """Where all of the runs ran, as a sentence; none where nothing is known."""
    places = dict.fromkeys(place for run in runs for place in run.about)
    return [f"Ran on {'; '.join(places)}."] if places else []


def _furthest(
    runs: Sequence[RunRecords], renamed: Sequence[Mapping[str, str]], wanted: Collection[str]
) -> dict[tuple[str, int], list[Row]]:
    """The rows of each wanted method and seed, under its name in `renamed`, from the run where it has come furthest.

    Of several where it has ended as many rounds, the first: how many epochs a round took says nothing of which is best.
    """
    curves: dict[tuple[str, int], list[Row]] = {}
    for run, own in zip(runs, renamed, strict=True):
        named = ((own.get(row["method"], FIRST), row) for row in run.rows)
        # Not copied where nothing changes: there may be a million.
        drawn = (row if name == row["method"] else row | {"method": name} for name, row in named if name in wanted)
        for key, rows in grouped(drawn, itemgetter("method", "seed")).items():
            curves[key] = max(curves.get(key, []), rows, key=_come)
    return curves


def _come(rows: Sequence[Row]) -> tuple[int, int]:
    """How far a curve has come: rounds that have ended, and epochs of one under way."""
    ended = [number for number, row in enumerate(rows, 1) if row["stop"]]
    return len(ended), len(rows) - (ended[-1] if ended else 0)


def _have_ended(
    curves: Mapping[tuple[str, int], Sequence[Row]], methods: Sequence[Collection[str]], runs: Sequence[RunRecords]
) -> bool:
    """Whether the curves that unfinished runs were to have are whole, as where another run has what one lacks.

    Only a finished run tells which round is the last. `methods` are those that are drawn of each run.
    """
    due = {
        (name, seed)
        for run, own in zip(runs, methods, strict=True)
        if run.summary is None
        for name in own
        for seed in run.config["config"].get("seeds", ())
    }
    last = max((row["round"] for run in runs if run.summary is not None for row in run.rows), default=None)
    return all(key in curves and curves[key][-1]["stop"] and curves[key][-1]["round"] == last for key in due)


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which runs must not differ to be merged, and do: both values of each, by name."""
    free = NEUTRAL | {"perturb"}  # the table of methods says it
    if not (acts_early(one) and acts_early(other)):
        free |= {"own_first"}
    return {name: values for name, values in differing(one, other).items() if name not in free}


def summarize_drawn(run: DrawnRun) -> dict[str, Any]:
    """The online summary of what is drawn. Raises RunError where no round has ended yet."""
    ends = summarize_online(run.rows, run.methods)
    if not ends["rounds"]:
        raise RunError("no round has ended yet: wait for the first one")
    return ends


def methods_of(run: RunRecords) -> Methods:
    """A run's methods; one that only its rows name does what its name says, for all that is known."""
    table = dict(names.of_run(run.config))
    extra = dict.fromkeys(row["method"] for row in run.rows)
    return table | {name: {"reinit": name} for name in extra if name != FIRST and name not in table}


def short_commit(commit: str) -> str:
    """A commit's first digits; a + stays behind those of one with changes of its own."""
    return commit[:9] + "+" * commit.endswith("+")


def _about(config: Mapping[str, Any]) -> str:
    """Where a run ran: devices, jax's version and the commit, as far as they are known, and what config.json notes."""
    jax = (config.get("versions") or {}).get("jax")
    commit = short_commit(config.get("git_commit") or "")
    parts = [
        *dict.fromkeys(config.get("devices") or []),
        jax and f"jax {jax}",
        commit and f"commit {commit}",
        config.get("note"),
    ]
    return ", ".join(str(part) for part in parts if part)
