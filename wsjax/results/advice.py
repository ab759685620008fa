"""How to retrain, by a small study: which way its rows speak for, and the sentences and the table that say so.

A *way* is a method, or one at a learning rate of its own. All of this is a pure function of how ways and seeds ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from wsjax.results import names, tables
from wsjax.results.names import Methods
from wsjax.results.stats import ACCURACY, mean_interval
from wsjax.results.summary import differences, in_points, interval, paired, shares, side, with_half
from wsjax.storage.rows import FIRST, Row

COST, ACCURATE = "cost", "test_accuracy"
"""Fields of an end: the round's steps, with what a method takes before them; and what is to be high."""
BEATEN = 0.99
"""The confidence at which a way drops out: a race looks at many pairs of ways, and again at every rung."""
TOLERANCE = 0.01
"""A way that loses more than this, of 1, to the best on average is not taken for its cost, told or not."""


def costed(ends: Sequence[Row], table: Methods) -> list[Row]:
    """The ends of the ways' rounds with their cost: the steps, and for DASH an epoch's for its pass over the images."""
    passes = {name: spec.get("reinit") == "dash" for name, spec in table.items()}
    return [
        end | {COST: end["steps"] + passes[end["method"]] * (end["steps"] // end["epochs"])}
        for end in ends
        if end["method"] != FIRST and end["round"] > 1
    ]


def judge(
    ends: Sequence[Row], table: Methods, tolerance: float = TOLERANCE, aside: Collection[str] = ()
) -> dict[str, Any]:
    """Which way the rows speak for.

    Everything is paired by seed, with the 95 % interval over seeds, and *told* where that lies on one side of 0. Ways
    that are *beaten* drop out: another one, not left aside, is told to be more accurate, at 99 %, and to take no more
    steps. *Level* are the most accurate of the others, by the mean difference to scratch, and those that are not told
    to be less accurate than it and lose no more than the tolerance to it on average. Recommended is the cheapest of
    these; of several that are not told to take more steps than it, the first in the table's order, from the simplest
    way on. The runner-up is what the same rule takes of the other ways.

    Args:
      ends: as `costed` gives them, of any seeds; scratch must have one.
      table: what each way is, from the simplest on. Scratch is the plain random initialisation.
      tolerance: see `TOLERANCE`.
      aside: ways that are not to be recommended, as those that a study did not follow to its end.

    Returns:
      JSON values: "scratch", "tolerance", "recommended", "runner_up" (None where there is no other way), "order" (the
      ways as the rule takes them one after the other), "level", "alike" (of the level ones, not told to take more steps
      than the cheapest), "better" (of the level ones, told to be more accurate than the recommended one), "untold"
      (ways that the recommended one is not told to be more accurate than), "beaten" (way to way), "aside" and "ways":
      by name "seeds", "accuracy", "steps", and against scratch "gain" and "share" (of its steps), each a mean with its
      interval.
    """
    scratch = names.matching(table, {"reinit": names.RANDOM})
    seeds = {end["seed"] for end in ends if end["method"] == scratch}
    here = [name for name in table if any(end["method"] == name and end["seed"] in seeds for end in ends)]
    assert scratch in here
    gains = {name: _mean(ends, name, scratch, ACCURATE) for name in here}
    running = [name for name in here if name not in aside]
    recommended, level, alike = _choose(ends, running, gains, tolerance)
    order, rest = [recommended], [name for name in running if name != recommended]
    while rest:
        order.append(_choose(ends, rest, gains, tolerance)[0])
        rest.remove(order[-1])
    return {
        "scratch": scratch,
        "tolerance": tolerance,
        "recommended": recommended,
        "runner_up": order[1] if len(order) > 1 else None,
        "order": order,
        "level": level,
        "alike": alike,
        "untold": [name for name in here if name != recommended and not _more(ends, recommended, name, ACCURATE)],
        "beaten": _beaten(ends, here, running, gains),
        "better": [name for name in level if _more(ends, name, recommended, ACCURATE)],
        "aside": [name for name in here if name in aside],
        "ways": {name: _way(ends, name, scratch) for name in here},
    }


def ranked(judged: Mapping[str, Any]) -> list[str]:
    """The ways that are still in the race: scratch, which all are compared with, and others as the rule takes them."""
    scratch = judged["scratch"]
    return [scratch, *(name for name in judged["order"] if name != scratch and name not in judged["beaten"])]


def is_open(judged: Mapping[str, Any]) -> bool:
    """Whether more seeds could change the recommendation: a way that is in the race is not told from it."""
    return bool(set(judged["untold"]) & set(ranked(judged)))


def _choose(
    ends: Sequence[Row], candidates: Sequence[str], gains: Mapping[str, float], tolerance: float
) -> tuple[str, list[str], list[str]]:
    """The way that the rule takes of some, those level with it in accuracy, and those of them alike in cost."""
    beaten = _beaten(ends, candidates, candidates, gains)
    candidates = [name for name in candidates if name not in beaten] or list(candidates)
    best = max(candidates, key=lambda name: gains[name])
    level = [
        name
        for name in candidates
        if not _more(ends, best, name, ACCURATE) and _mean(ends, best, name, ACCURATE) <= tolerance
    ]
    cheapest = min(level, key=lambda name: float(np.mean(shares(ends, name, best, COST))))
    alike = [name for name in level if not _more(ends, name, cheapest, COST)]
    return alike[0], level, alike


def _beaten(ends: Sequence[Row], some: Sequence[str], by: Sequence[str], gains: Mapping[str, float]) -> dict[str, str]:
    """Those of some ways that are beaten by others, each with the most accurate that beats it."""
    order = sorted(by, key=lambda name: -gains[name])
    found = {name: next((other for other in order if _beats(ends, other, name)), None) for name in some}
    return {name: other for name, other in found.items() if other is not None}


def _beats(ends: Sequence[Row], one: str, other: str) -> bool:
    """Whether a way is told to be more accurate than another, and told to take no more steps."""
    accuracy, cost = list(differences(ends, one, other, ACCURATE).values()), paired(ends, other, one, COST)
    if cost is None or cost["low"] is None:
        return False
    return mean_interval(accuracy, BEATEN).low > 0 and cost["low"] >= 0


def _more(ends: Sequence[Row], one: str, other: str, field: str) -> bool:
    """Whether a field is told to be larger for one way than for another; a single seed tells nothing."""
    difference = paired(ends, one, other, field)
    return difference is not None and side(difference) == 1


def _mean(ends: Sequence[Row], one: str, other: str, field: str) -> float:
    """The mean difference over the seeds that both have; below every number where there is none."""
    found = differences(ends, one, other, field)
    return sum(found.values()) / len(found) if found else float("-inf")


def _way(ends: Sequence[Row], name: str, scratch: str) -> dict[str, Any]:
    own = [end for end in ends if end["method"] == name]
    return {
        "seeds": len(own),
        "accuracy": interval([end[ACCURATE] for end in own]),
        "steps": interval([end[COST] for end in own]),
        "gain": paired(ends, name, scratch, ACCURATE),
        "share": interval(shares(ends, name, scratch, COST)),
    }


def sentences(judged: Mapping[str, Any]) -> list[str]:
    """What the rows speak for, why, what is the next best, and what could not be told."""
    name, scratch, ways = judged["recommended"], judged["scratch"], judged["ways"]
    said = [f"Recommended: {_against(name, judged)}.", _why(judged)]
    low = ways[name]["gain"]["low"]
    if low is not None and low < -judged["tolerance"]:
        loss = f"{ACCURACY.number(-low, 1)} points"
        said.append(f"That leaves room for a loss of {loss}: more seeds, by a larger --budget, would tell.")
    if judged["runner_up"] is not None:
        said.append(f"Runner-up: {_against(judged['runner_up'], judged)}.")
    rest = [way for way in judged["untold"] if way not in judged["level"]]
    aside, behind = ([way for way in rest if (way in judged["aside"]) == left] for left in (True, False))
    ahead = [way for way in behind if ways[way]["gain"]["mean"] > ways[name]["gain"]["mean"]]
    behind = [way for way in behind if way not in ahead]
    if behind:
        said.append(f"Not told from {names.label(name)} in accuracy either, but behind on average: {_list(behind)}.")
    if ahead:
        why = "but told to be less accurate than another, or beaten"
        said.append(f"Ahead of {names.label(name)} on average, {why}: {_list(ahead)}.")
    if aside:
        said.append(f"Left aside, and not told to be less accurate: {_list(aside)}.")
    if judged["beaten"]:
        by = [f"{names.label(way)} (by {names.label(other)})" for way, other in judged["beaten"].items()]
        said.append(f"Beaten, by a way that is more accurate, told at 99 %, and no dearer: {', '.join(by)}.")
    if ways[scratch]["seeds"] == 1:
        said.append("One seed gives no interval: nothing is told, and all of this may be chance.")
    return said


def faster_scratch(judged: Mapping[str, Any], table: Methods) -> float | None:
    """The learning rate at which scratch is told to be more accurate than at its own, if any: a rate to begin with."""
    gains = {name: judged["ways"][name]["gain"] for name in judged["ways"]}
    told = [
        table[name]["learning_rate"]
        for name, gain in gains.items()
        if table[name]["reinit"] == names.RANDOM and name != judged["scratch"] and (gain["low"] or 0) > 0
    ]
    return told[0] if told else None


def _against(name: str, judged: Mapping[str, Any]) -> str:
    """A way with what it gains, loses and saves against scratch."""
    way, label = judged["ways"][name], names.label(name)
    if name == judged["scratch"]:
        return f"{label}, {with_half(way['accuracy'], ACCURACY, sign=False)} % in {way['steps']['mean']:,.0f} steps"
    gain = way["gain"]
    points = in_points(gain, ACCURACY)
    verb = "gains" if gain["mean"] > 0 else "loses"
    if not side(gain):
        accuracy = f"is not told from {names.label(judged['scratch'])} in accuracy, {points}"
    else:
        accuracy = f"{verb} accuracy against {names.label(judged['scratch'])}, {points}"
    return f"{label}; it {accuracy}, and {saved(way['share'])}"


def saved(share: Mapping[str, Any]) -> str:
    """What a share of scratch's steps saves, in words."""
    mean, low, high = (None if share[key] is None else 1 - share[key] for key in ("mean", "high", "low"))
    assert mean is not None
    if mean == 0 and low in (0, None):
        return "takes as many steps"
    verb, sign = ("saves", 1) if mean >= 0 else ("takes", -1)
    what = f"{verb} {abs(mean):.0%} {'of the' if sign > 0 else 'more'} steps"
    if low is None or high is None:
        return what
    ends = sorted((sign * low, sign * high))
    return f"{what} (95 % interval {ends[0]:.0%} to {ends[1]:.0%})"


def _why(judged: Mapping[str, Any]) -> str:
    name, better = judged["recommended"], judged["better"]
    level = [way for way in judged["level"] if way not in (name, *better)]
    alike = [way for way in judged["alike"] if way != name]
    others = "every other way" + " that was not left aside" * bool(judged["aside"])
    points = f"{ACCURACY.number(judged['tolerance'], 1)} points"
    if not (level or better) and set(judged["untold"]) - set(judged["aside"]):
        return f"{others.capitalize()} is told to be less accurate, or is more than {points} behind on average."
    if not (level or better):
        return f"It is told to be more accurate than {others}."
    everything = not set(judged["ways"]) - {name, *level}
    begin = "None of these ways is told to be more accurate"
    if not everything:
        begin = f"In accuracy it is not told from {_list(level)}"
    if better:
        ahead = f"{_list(better)} {'is' if len(better) == 1 else 'are'} told to be more accurate, by {points} at most"
        begin = f"{ahead} on average" + f"; from {_list(level)} it is not told" * bool(level)
    if not alike:
        return f"{begin}: it is the cheapest{'' if everything else ' of these'}."
    nor = "it is not told" if better else "nor is it told"
    return f"{begin}; {nor} to take more steps than {_list(alike)}: of such ways the simplest is taken."


def table(judged: Mapping[str, Any]) -> tables.Table:
    """Columns and rows of the table: a row a way, those in the race first."""
    scratch = judged["scratch"]
    order = [*ranked(judged), *judged["beaten"], *judged["aside"]]
    lines = []
    for name in dict.fromkeys(order):
        way = judged["ways"][name]
        against = name != scratch
        lines.append(
            [
                names.label(name) + _mark(name, judged),
                str(way["seeds"]),
                with_half(way["accuracy"], ACCURACY, sign=False),
                with_half(way["gain"], ACCURACY) if against else "",
                f"{way['steps']['mean']:,.0f}",
                f"{with_half(way['share'], ACCURACY, 0, sign=False)} %" if against else "",
            ]
        )
    return ["way", "seeds", "test %", f"- {names.label(scratch)}", "steps", f"of {names.label(scratch)}"], lines


def _mark(name: str, judged: Mapping[str, Any]) -> str:
    marks = {judged["runner_up"]: " (runner-up)", judged["recommended"]: " (recommended)"}
    marks = {way: " (beaten)" for way in judged["beaten"]} | {way: " (left aside)" for way in judged["aside"]} | marks
    return marks.get(name, "")


def _list(ways: Sequence[str]) -> str:
    return ", ".join(map(names.label, ways))
