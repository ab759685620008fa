"""A race of ways to retrain within a time: more and more seeds for fewer and fewer ways, from rung to rung.

The first rung tries all ways on few seeds, as far as a share of the time reaches. Each later one takes twice as many
new seeds as there were, for the ways that are not beaten (`advice.judge`). Where that does not fit into what is left of
the time, the ways that the rule would take last are left aside, down to half of them or three, and then fewer seeds are
taken. Every rung is a run's folder of its own; `plan.json` holds what was decided, so that a race that was stopped goes
on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsjax.errors import NonFiniteLoss
from wsjax.results import advice, names
from wsjax.results.names import Methods
from wsjax.results.summary import summarize_offline
from wsjax.scripts import run
from wsjax.scripts.build import is_stacked
from wsjax.scripts.config import Common
from wsjax.scripts.console import duration, say
from wsjax.storage.files import read_json, write_json
from wsjax.storage.records import CONFIG, read_run
from wsjax.storage.rows import FIRST, Row, round_ends

if TYPE_CHECKING:
    from wsjax.rounds.legs import Method, Round
    from wsjax.training.train import Setup

PLAN = "plan.json"
RESERVE = 6.0
"""Seconds that starting and drawing take."""
MARGIN = 1.15
"""What a rung may take beyond what the ones before it say."""
GROWTH = 3
"""From rung to rung, the number of all seeds so far."""
STACK = 4
"""Seeds of the first rung, where they train as one program; else it is one."""
SHARE_OF_STACK, SHARE_OF_ONE = 0.6, 0.33
"""The share of the time after which the first rung ends: a stack tells something by itself, a single seed does not."""
LEAST = 3
"""Ways that a rung has where the time is short: scratch, the recommended one, and the next by the rule."""
ENOUGH = 3
"""Ways that must have ended the first rung by then."""


class Race(NamedTuple):
    """What races, and for how long.

    Attributes:
      config: the settings, but for the seeds.
      setup: what is trained, and on what.
      rounds: before the new data, and with them.
      methods: the ways, from the one to try first on; scratch is among them.
      table: what each is.
      folder: for rungs and plan.
      budget: seconds.
      most: seeds.
      tolerance: as for `advice.judge`.
      clock: the seconds of this call so far.
    """

    config: Common
    setup: Setup
    rounds: Sequence[Round]
    methods: Mapping[str, Method]
    table: Methods
    folder: Path
    budget: float
    most: int
    tolerance: float
    clock: Callable[[], float]


class OutOfTime(Exception):
    """The time of a rung is over."""


def race(own: Race) -> tuple[list[Row], dict[str, Any]]:
    """Runs what is left of a race; returns how ways and seeds ended (`advice.costed`), and the plan.

    The plan has "rungs" (each with "seeds", "ways", "seconds" and whether it "ended"), the "seconds" of all calls so
    far, and the ways that dropped out: "unseen" (the time did not reach them), "aside" and "diverged", with the reason.
    """
    path = own.folder / PLAN
    plan = _with_killed(own, read_json(path)) if path.exists() else _first_plan(own)
    before = plan["seconds"]

    def spent() -> float:
        return before + own.clock()

    while spent() < own.budget - RESERVE and (rung := _due(own, plan, own.budget - RESERVE - spent())) is not None:
        write_json(path, plan)
        try:
            _run(own, plan, rung, spent)
        finally:
            plan["seconds"] = spent()
            write_json(path, plan)
    return ends_of(own, plan), plan


def ends_of(own: Race, plan: Mapping[str, Any]) -> list[Row]:
    """How ways and seeds ended so far."""
    rows = [row for rung in plan["rungs"] for row in _rows(own, rung)]
    return advice.costed(round_ends(rows), own.table)


def enough_for_two(own: Race, plan: Mapping[str, Any]) -> float | None:
    """The budget, in seconds, that suffices for two ways on the first seeds; None where no epoch tells.

    By the epochs that the first round has had, and as if each round went on to its cap.
    """
    first = [row["train_seconds"] for row in _rows(own, plan["rungs"][0]) if row["method"] == FIRST]
    (old, old_epochs), (total, epochs) = ((here.num_samples, here.max_epochs) for here in own.rounds)
    if not first or old_epochs is None or epochs is None:
        return None
    passes = old_epochs + 2 * epochs * total / old  # over the images of the first round
    return RESERVE + MARGIN * len(plan["rungs"][0]["seeds"]) * passes * sum(first) / len(first)


def out_of(plan: Mapping[str, Any]) -> list[str]:
    """The ways that are no longer followed."""
    return [*plan["unseen"], *plan["aside"], *plan["diverged"]]


def next_rung(
    ways: Sequence[str], wanted: int, seconds: Mapping[str, float], overhead: float, left: float
) -> tuple[list[str], int]:
    """The ways and the number of new seeds of a rung that fits into a time; no seed where none does.

    Args:
      ways: scratch and the recommended one, which stay, and the others from the best on.
      wanted: seeds.
      seconds: of a seed of each way, and of the first round, which all share.
      overhead: seconds of the rung whatever its ways and seeds.
      left: seconds.
    """
    keep, least = list(ways), max(-(-len(ways) // 2), LEAST)

    def fits(count: int) -> bool:
        each = seconds[FIRST] + sum(seconds[way] for way in keep)
        return MARGIN * (overhead + count * each) <= left

    while len(keep) > least and not fits(wanted):
        keep.pop()
    return keep, next((count for count in range(wanted, 0, -1) if fits(count)), 0)


def _first_plan(own: Race) -> dict[str, Any]:
    seeds = min(STACK if is_stacked(own.config) else 1, own.most)
    first = {"seeds": list(range(seeds)), "ways": list(own.methods), "seconds": 0.0, "ended": False}
    return {"rungs": [first], "seconds": 0.0, "unseen": [], "aside": [], "diverged": {}}


def _with_killed(own: Race, plan: dict[str, Any]) -> dict[str, Any]:
    """A plan with the seconds of a call that was killed before it wrote them, as far as its rows tell."""
    for rung in plan["rungs"]:
        rung["seconds"] = max(rung["seconds"], _measured(_rows(own, rung)))
    return plan | {"seconds": max(plan["seconds"], sum(rung["seconds"] for rung in plan["rungs"]))}


def _measured(rows: Sequence[Row]) -> float:
    return sum(row["train_seconds"] + row["eval_seconds"] for row in rows)


def _due(own: Race, plan: dict[str, Any], left: float) -> dict[str, Any] | None:
    """The rung to run: one that has not ended, else a new one; None where more seeds are of no use, or do not fit."""
    last = plan["rungs"][-1]
    if not last["ended"]:
        say(f"{_words(last)}, as far as the time reaches")
        return last
    judged = advice.judge(ends_of(own, plan), own.table, own.tolerance, out_of(plan))
    total = last["seeds"][-1] + 1
    wanted = min((GROWTH - 1) * total, own.most - total)
    if wanted <= 0 or not advice.is_open(judged):
        return None
    racing = advice.ranked(judged)
    rows = _rows(own, last)
    seconds = _seconds([row for rung in plan["rungs"] for row in _rows(own, rung)]) | _seconds(rows)
    overhead = max(last["seconds"] - _measured(rows), 0.0)
    ways, count = next_rung(racing, wanted, seconds, overhead, left)
    if count == 0:
        return None
    plan["aside"] += [way for way in racing if way not in ways]
    ways = [way for way in own.methods if way in ways]
    plan["rungs"].append({"seeds": list(range(total, total + count)), "ways": ways, "seconds": 0.0, "ended": False})
    about = overhead + count * (seconds[FIRST] + sum(seconds[way] for way in ways))
    say(f"{_words(plan['rungs'][-1])}, about {duration(about)}")
    return plan["rungs"][-1]


def _words(rung: Mapping[str, Any]) -> str:
    seeds = len(rung["seeds"])
    return f"{seeds} {'more ' * bool(rung['seeds'][0])}seed{'s' * (seeds > 1)} of {len(rung['ways'])} ways"


def _run(own: Race, plan: dict[str, Any], rung: dict[str, Any], spent: Callable[[], float]) -> None:
    """Runs a rung until it has ended or its time is over; a way whose training diverges drops out."""
    began, count, is_first = spent(), len(rung["seeds"]), rung is plan["rungs"][0]
    hard = own.budget - RESERVE
    share = SHARE_OF_STACK if count > 1 else SHARE_OF_ONE
    soft = share * own.budget if is_first else hard
    try:
        watch = _watch(spent, soft, hard, count, _rows(own, rung))
        while (diverged := _run_ways(own, rung, watch, hard - spent())) is not None:
            plan["diverged"][diverged.method] = str(diverged.__cause__ or diverged)
            rung["ways"].remove(diverged.method)
    finally:
        rung["seconds"] += spent() - began
    ended = _ended(_rows(own, rung), count)
    if is_first and len(ended) >= ENOUGH and spent() < hard:
        plan["unseen"] = [way for way in rung["ways"] if way not in ended]
        rung["ways"] = [way for way in rung["ways"] if way in ended]
    rung["ended"] = set(rung["ways"]) <= set(ended)


def _run_ways(
    own: Race, rung: Mapping[str, Any], watch: Callable[[list[Row]], None], within: float
) -> NonFiniteLoss | None:
    """Runs a rung's ways; returns the error of one that diverged, other than scratch, without which there is nothing.

    Those that are not of the rung are run for no seed: its folder is that of all ways, so that one may drop out.
    """
    config = dataclasses.replace(own.config, seeds=tuple(rung["seeds"]), run=_name(own, rung))
    ways = {name: method if name in rung["ways"] else method._replace(seeds=()) for name, method in own.methods.items()}
    try:
        run.run("advise", config, own.setup, own.rounds, ways, summarize_offline, own.table, watch=watch, within=within)
    except OutOfTime:
        say("the time for these seeds is over")
    except NonFiniteLoss as error:
        if own.table.get(str(error.method), {"reinit": names.RANDOM}) == {"reinit": names.RANDOM}:
            raise
        return error
    return None


def _watch(
    spent: Callable[[], float], soft: float, hard: float, seeds: int, rows: Sequence[Row]
) -> Callable[[list[Row]], None]:
    """What ends a rung when its time is over: at once, or once enough ways have ended."""
    known = list(rows)

    def watch(rows: list[Row]) -> None:
        known.extend(row for row in rows if row["stop"])
        if spent() > hard or (spent() > soft and len(_ended(known, seeds)) >= ENOUGH):
            raise OutOfTime

    return watch


def _ended(rows: Sequence[Row], seeds: int) -> list[str]:
    """The ways that have ended for all of so many seeds."""
    counts = Counter(row["method"] for row in rows if row["stop"] and row["method"] != FIRST)
    return [way for way, count in counts.items() if count >= seeds]


def _seconds(rows: Collection[Row]) -> dict[str, float]:
    """The seconds that a seed of each way took, and of the first round."""
    seeds: dict[str, set[int]] = {}
    total: Counter[str] = Counter()
    for row in rows:
        seeds.setdefault(row["method"], set()).add(row["seed"])
        total[row["method"]] += row["train_seconds"] + row["eval_seconds"]
    return {way: seconds / len(seeds[way]) for way, seconds in total.items()}


def _name(own: Race, rung: Mapping[str, Any]) -> str:
    """A rung's run, within the race's own."""
    return f"{own.folder.name}/seeds-{rung['seeds'][0]}-{rung['seeds'][-1]}"


def _rows(own: Race, rung: Mapping[str, Any]) -> list[Row]:
    """The rows of a rung so far."""
    folder = own.folder.parent / _name(own, rung)
    return read_run(folder).rows if (folder / CONFIG).exists() else []
