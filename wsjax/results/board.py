"""The board: methods by protocols, each against random initialisation in accuracy, in cost, and in time to accuracy.

A protocol here is any set of settings; runs that differ in seeds and methods only are of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.results import claims, names, speedup, words
from wsjax.results.captions import Caption, seeds_told
from wsjax.results.merge import DrawnRun, check_experiment, ran_on
from wsjax.results.sheets import Sheet
from wsjax.results.stats import ACCURACY, Unit, unit_of
from wsjax.results.summary import interval, paired, shares_of, side, summarize_online, with_bounds, with_half
from wsjax.storage.records import RunRecords, setting
from wsjax.storage.rows import FIRST, round_ends

EXPERIMENTS = ("online", "offline")
"""Those whose runs a board takes, in its order."""
SCALE = ("width", "num_train")
"""Settings that a run of a published protocol may have smaller, and still be called one; its numbers are then none to
compare with."""

Interval = Mapping[str, Any]


class Entry(NamedTuple):
    """How a method came out on a protocol.

    Attributes:
      name: the method's.
      score: its test score at the end.
      win: that less random initialisation's, paired by seed; None of random initialisation itself, or without it.
      cost: its steps as a share of random initialisation's: offline of the second round, online of all rounds.
      last_cost: the same of the last round alone; None offline.
      until: how soon it has random initialisation's accuracy, as `speedup.speedups` has it.
      published: its accuracy less random initialisation's, in points, as published; None where nothing was.
      published_cost: its steps as a share of random initialisation's, as published.
    """

    name: str
    score: Interval
    win: Interval | None
    cost: Interval | None
    last_cost: Interval | None
    until: Mapping[str, Any] | None
    published: float | None = None
    published_cost: float | None = None


class Block(NamedTuple):
    """A protocol with its entries.

    Attributes:
      title: what it is, in words.
      run: what was merged for it.
      entries: a method each, in a legend's order, random initialisation among them.
      round: the round that is looked at, the last that random initialisation has ended.
      missing: what is not there, in words.
      random: what random initialisation is called; None where it did not run.
      unit: of the scores.
      source: of its published numbers; empty where none are shown.
    """

    title: str
    run: DrawnRun
    entries: list[Entry]
    round: int
    missing: list[str]
    random: str | None
    unit: Unit
    source: str


def blocks(runs: Sequence[RunRecords], protocols: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The protocols that runs are of, online ones first, the largest first.

    Args:
      runs: of the offline and the online experiment, as `read_run` gives them.
      protocols: what was published, as figures/published/board.json has it.

    Raises:
      RunError: there is no run, one is of another experiment, or none has ended a second round.
    """
    check_experiment(runs, *EXPERIMENTS)
    found = [(name, group.run) for name in EXPERIMENTS for group in claims.groups(runs, {"experiment": name})]
    titles = _titles(found, protocols)
    made = [_block(name, run, title, protocols) for (name, run), title in zip(found, titles, strict=True)]
    if not any(made):
        raise RunError("no second round has ended yet: wait for the first one")
    return [block for block in made if block is not None]


def tells_until(boards: Sequence[Block]) -> bool:
    """Whether any board tells when a method reached RI's accuracy, for which rounds must have been tested on their
    way."""
    entries = (entry for block in boards for entry in block.entries if entry.name != block.random)
    return any(entry.until and entry.until["steps"] for entry in entries)


def table(boards: Sequence[Block]) -> Sheet:
    """The board as a table: means with half of their 95 % intervals."""
    columns = ["Protocol", "Method", "Test", "Method - RI", "the same, published", "Steps, % of RI's"]
    columns += ["in the last round", "To RI's accuracy, times as fast", "Seeds"]
    rows = [
        [
            block.title,
            names.label(entry.name),
            with_half(entry.score, block.unit, sign=False),
            "" if entry.win is None else with_half(entry.win, block.unit),
            "" if entry.published is None else f"{entry.published:+.1f}",
            *("" if own is None else with_half(own, ACCURACY, 0, sign=False) for own in (entry.cost, entry.last_cost)),
            "" if entry.until is None else _until(entry.until),
            str(entry.score["seeds"]),
        ]
        for block in boards
        for entry in block.entries
    ]
    empty = {"the same, published": not any(block.source for block in boards)}
    empty["in the last round"] = not any(entry.last_cost for block in boards for entry in block.entries)
    kept = [place for place, name in enumerate(columns) if not empty.get(name)]
    columns, *rows = [[line[place] for place in kept] for line in (columns, *rows)]
    return Sheet(columns, rows, 2)


def caption(boards: Sequence[Block]) -> Caption:
    """What is said of a board."""
    until = tells_until(boards)
    measured = "its steps, and its steps until RI's accuracy" if until else "and its steps"
    published = "; diamonds: as published" * any(block.source for block in boards)
    what = f"Board: each method less random initialisation (RI) in test accuracy, {measured}{published}."
    several = len(boards) > 1
    ran, missing, came = [], [], []
    for block in boards:
        title = f"{block.title}: " * several
        seeds = seeds_told(sorted({row["seed"] for row in block.run.rows}))
        settings = words.ran(words.told(block.run.settings))
        ran.append(f"{title}{'; '.join([settings, *_factors(block), seeds])}.")
        missing += [f"{title}{'; '.join(block.missing)}."] * bool(block.missing)
        if told := _came(block):
            came.append(f"{title}{told}." if several else f"{told[0].upper()}{told[1:]}.")
    sources = [f"Published numbers, diamonds, {block.title}: {block.source}." for block in boards if block.source]
    notes = [_UNTIL if until else _NOTES, *sources, *ran_on(*(block.run for block in boards))]
    return Caption(what, " ".join(ran), " ".join(missing), " ".join(came), " ".join(notes))


_NOTES = (
    "Bars are 95 % t-intervals of the mean, paired by seed; a hollow point is one seed. Steps are those of the second "
    "round offline, of all rounds online."
)
_UNTIL = (
    f"{_NOTES} Steps until RI's accuracy: those of the last round until a test first shows the accuracy with which RI "
    "of the same seed ends it, as a share of those that RI itself took until then, their intervals on logarithms. An "
    "arrow to the right is the least that it can be, where seeds ended without it: how many reached it stands beside; "
    "one to the left the most, where half of the seeds or more show it at their first test. Nothing is told of runs "
    "that were tested at rounds' ends only."
)


def _block(experiment: str, run: DrawnRun, title: str, protocols: Sequence[Mapping[str, Any]]) -> Block | None:
    """A protocol's block; None where no second round has ended."""
    ends = [end for end in round_ends(run.rows) if end["method"] != FIRST and end["round"] > 1]
    random = names.find(run.methods, names.RANDOM)
    of_random = [end["round"] for end in ends if end["method"] == random]
    if not ends:
        return None
    last = max(of_random or [end["round"] for end in ends])
    final = [end for end in ends if end["round"] == last]
    there = {(end["method"], end["seed"]) for end in final}
    rows = [
        row
        for row in run.rows
        if row["round"] <= last and (row["method"] == FIRST or (row["method"], row["seed"]) in there)
    ]
    of_last = shares_of(final, random, "steps")
    online = experiment == "online"
    costs = summarize_online(rows, run.methods)["steps_of_RI"] if online else of_last
    untils = speedup.speedups(rows, run.methods)
    protocol = _protocol(experiment, run.settings, protocols)
    known = _published(protocol, run, last) if protocol and not _smaller(run.settings, protocol) else {}
    entries = [
        Entry(
            name,
            interval([end["test_accuracy"] for end in final if end["method"] == name]),
            paired(final, name, random) if name != random else None,
            costs.get(name),
            of_last.get(name) if online else None,
            untils.get(name),
            *known.get(name, (None, None)),
        )
        for name in names.ordered(dict.fromkeys(end["method"] for end in final), run.methods)
    ]
    source = protocol["source"] if protocol and known else ""
    return Block(title, run, entries, last, _missing(run, entries, last), random if of_random else None,
                 unit_of(run.rows), source)  # fmt: skip


def _missing(run: DrawnRun, entries: Sequence[Entry], last: int) -> list[str]:
    """What is not there yet, in words."""
    there = {entry.name: entry.score["seeds"] for entry in entries}
    seeds = len({row["seed"] for row in run.rows})
    told = []
    if names.find(run.methods, names.RANDOM) not in there:
        told.append("RI has not ended, so that there is nothing to compare with")
    for name in names.ordered(run.methods, run.methods):
        if there.get(name, 0) < seeds:
            told.append(f"{names.label(name)} has {there.get(name, 0)} of {seeds} seeds at round {last}")
    return told if told or run.finished else [f"under way; this is round {last}"]


def _came(block: Block) -> str:
    """Which methods can be told from random initialisation, in words."""
    sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for entry in block.entries:
        if entry.win is not None and (told := side(entry.win)) is not None:
            sides[told].append(f"{names.label(entry.name)} ({with_half(entry.win, block.unit, 1)})")
    kinds = zip(("above RI", "below RI", "not told from RI"), sides.values(), strict=True)
    return "; ".join(f"{kind}: {', '.join(own)}" for kind, own in kinds if own)


def _factors(block: Block) -> list[str]:
    return names.told(block.run.methods, [entry.name for entry in block.entries])


def _titles(found: Sequence[tuple[str, DrawnRun]], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title for each protocol: its published name or its data and network, and what tells it from others."""
    own = [words.told(run.settings) for _, run in found]
    plain = []
    for name, run in found:
        known = _protocol(name, run.settings, protocols)
        width = f" of width {run.settings['width']}" if run.settings.get("model") == "resnet18" else ""
        what = f"{words.label(run.settings.get('dataset', ''))}, {words.label(run.settings['model'], 'model')}{width}"
        plain.append(f"{known['name'] if known else name.capitalize()}: {what}")
    titles = []
    for number, title in enumerate(plain):
        others = [own[other] for other in range(len(plain)) if other != number and plain[other] == title]
        for name, value in own[number].items():
            # What one of them has no use for does not tell it apart.
            if any(value != other.get(name, value) for other in others):
                title += f", {words.phrase(name, value)}"
                others = [other for other in others if other.get(name, value) == value]
        titles.append(title)
    return titles


def _protocol(
    experiment: str, settings: Mapping[str, Any], protocols: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The published protocol that settings are of, at whatever scale; None where they are of none."""
    for protocol in protocols:
        there = {name: value for name, value in protocol["settings"].items() if name not in SCALE}
        if protocol["experiment"] == experiment and all(setting(settings, name) == there[name] for name in there):
            return protocol
    return None


def _smaller(settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
    return any(setting(settings, name) != protocol["settings"][name] for name in SCALE)


def _published(protocol: Mapping[str, Any], run: DrawnRun, last: int) -> dict[str, tuple[float | None, float | None]]:
    """What was published of each method at a round: accuracy less random initialisation's, and its share of steps."""
    numbers = {}
    for own in protocol["numbers"]:
        name = names.matching(run.methods, own["method"])
        if own["round"] == last and name is not None:
            numbers[name] = own
    random = numbers.pop(str(names.find(run.methods, names.RANDOM)), None)
    if random is None:
        return {}
    return {
        name: (
            own["accuracy"] - random["accuracy"],
            own["steps"] / random["steps"] if "steps" in own and "steps" in random else None,
        )
        for name, own in numbers.items()
    }


def _until(own: Mapping[str, Any]) -> str:
    """How many times as fast, with its interval or as a bound; of censored seeds how many reached it."""
    ratio = own["steps"]
    if own["at_least"] and ratio is not None:
        return f"at least {ratio['mean']:.2f}"
    if own["at_most"] or ratio is None:
        most = "" if ratio is None or not own["reached"] else f" (at most {ratio['mean']:.2f})"
        return f"{own['reached']} of {own['seeds']} seeds{most}"
    return with_bounds(ratio, ".2f")
