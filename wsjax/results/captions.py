"""The caption of a figure: what is drawn, what ran, how that differs from what was published, and what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from wsjax.errors import printable
from wsjax.results import names, words
from wsjax.results.merge import DrawnRun, ran_on
from wsjax.results.stats import ACCURACY, Unit, unit_of
from wsjax.results.summary import interval, minus, paired, with_half
from wsjax.storage.rows import CAP, FIRST, Row, grouped


class Caption(NamedTuple):
    """What is said of a figure.

    Attributes:
      what: what is drawn.
      ran: with which settings, and seeds.
      differs: how these are not the published ones, and what is missing.
      came: what came out.
      notes: all else, for the text beside the picture only.
    """

    what: str
    ran: str = ""
    differs: str = ""
    came: str = ""
    notes: str = ""

    @property
    def text(self) -> str:
        """All of it, a line each."""
        return "\n".join(printable(line) for line in self if line)


def offline_caption(
    run: DrawnRun,
    what: str,
    settings: Mapping[str, Any] | None = None,
    final: Mapping[str, float] | None = None,
    notes: str = "",
) -> Caption:
    """The caption of an offline run: how its second round ended.

    Args:
        run: its rows are those drawn.
        what: what is drawn.
        settings: the published settings, in the words of the run's; None where there is nothing to compare with.
        final: method to published final test accuracy, in percent.
        notes: what the text beside the picture says more.
    """
    unit, came = unit_of(run.rows), ""
    if ends := run.ends:
        came = scores(run, f"Final test {unit.word}", ends, final) + _spread(run)
    if run.finished and run.settings.get("stop") != [CAP]:
        notes += " A seed that stopped earlier holds its last value."
    return compose(run, what, settings, came, notes)


def online_caption(
    run: DrawnRun,
    what: str,
    summary: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    published: Mapping[str, float] | None = None,
    notes: str = "",
) -> Caption:
    """The caption of an online run: how it stands at the last number of images that all methods and seeds have reached.

    Args:
        run: its rows are those drawn.
        what: what is drawn.
        summary: what `summarize_online` makes of those rows.
        settings: the published settings, in the words of the run's; None where there is nothing to compare with.
        published: method to published test accuracy, in percent, at that number of images.
        notes: what the text beside the picture says more.
    """
    unit, came, more = unit_of(run.rows), "", [notes]
    samples = common_samples(summary["rounds"])
    if samples is not None:
        ends = [row for row in summary["rounds"] if row["samples"] == samples]
        came = scores(run, f"Test {unit.word} at {samples:,} images", ends, published) + _spread(run)
    if slope := summary["gap_slope"]:
        low, high = slope["low"], slope["high"]
        bounds = "" if low is None else f" [{unit.number(low, sign=True)}, {unit.number(high, sign=True)}]"
        change = unit.number(slope["mean"], sign=True) + " points" * unit.percent
        more.append(f"{minus(slope)} changes by {change}{bounds} a round.")
    shares = {name: share for name, share in summary["steps_of_RI"].items() if share is not None}
    if run.finished and shares:
        of = names.label(next(iter(shares.values()))["of"])
        took = "; ".join(f"{names.label(name)} {_number(share, None, ACCURACY)}" for name, share in shares.items())
        more.append(f"Steps over all rounds, in percent of {of}'s: {took}.")
    stops = [row["stop"] for row in run.rows if row["stop"]]
    if (capped := stops.count(CAP)) and run.settings.get("stop") != [CAP]:
        cap = run.settings.get("epochs")
        more.append(f"{capped} of {len(stops)} rounds ended at the cap of {cap} epochs.")
    return compose(run, what, settings, came, " ".join(filter(None, more)))


def compose(
    run: DrawnRun,
    what: str,
    settings: Mapping[str, Any] | None,
    came: str,
    notes: str = "",
    means: str | None = None,
) -> Caption:
    """A caption, with what is the same for all figures: what ran, how it differs, where, and what bands are.

    Args:
        run: its rows are those drawn.
        what: what is drawn.
        settings: the published settings, in the words of the run's; None where there is nothing to compare with. Those
            of another data set or model are not compared.
        came: what came out.
        notes: what the text beside the picture says more.
        means: what is said of means over seeds, where they are not lines in bands.
    """
    own = words.told(run.settings)
    drawn = dict.fromkeys(row["method"] for row in run.rows)
    differs = [] if run.finished else [progress(run.rows)]
    if settings is not None and words.is_alike(run.settings, settings):
        differ = words.not_as_published(own, settings, capped=any(row["stop"] == CAP for row in run.rows))
        differs.append(f"Not as published: {'; '.join(differ)}." if differ else "Settings as published.")
    return Caption(
        what,
        f"{'; '.join([words.ran(own), *names.told(run.methods, drawn), _seeds_by_method(run)])}.",
        " ".join(differs),
        came,
        " ".join(filter(None, [bands(run) if means is None else means, notes.strip(), *ran_on(run)])),
    )


def joined(captions: Sequence[Caption], names: Sequence[str]) -> Caption:
    """One caption of parts that are drawn together: what they have in common, and after it by its name each one's own.

    Settings and differences are lists, of which that is told item by item.
    """

    def told(field: str, *texts: str) -> str:
        if len(set(texts)) == 1:
            return texts[0]
        separator = _LISTS.get(field)
        lists = [[text] if separator is None else text.removesuffix(".").split(separator) for text in texts]
        shared = [item for item in lists[0] if all(item in own for own in lists)]
        if separator is None or not shared:
            return " ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True) if text)
        own = [separator.join(item for item in items if item not in shared) for items in lists]
        each = [f" {name}: {text}." for name, text in zip(names, own, strict=True) if text]
        return f"{separator.join(shared)}.{''.join(each)}"

    return Caption(*map(told, Caption._fields, *captions))


_LISTS = {"ran": ", ", "differs": "; "}
"""What stands between the items of a caption's field."""


def common_samples(rounds: Sequence[Row]) -> int | None:
    """The largest number of images that all methods and seeds have trained on, of a row a round; None of no row."""
    largest: dict[tuple[str, int], int] = {}
    for row in rounds:
        largest[row["method"], row["seed"]] = max(largest.get((row["method"], row["seed"]), 0), row["samples"])
    return min(largest.values(), default=None)


def progress(rows: Sequence[Row]) -> str:
    """Where an unfinished run is: of several curves that are under way, the one that has come least far."""
    ended = {(row["method"], row["seed"], row["round"]) for row in rows if row["stop"]}
    under_way = [row for row in rows if (row["method"], row["seed"], row["round"]) not in ended]
    if not under_way:
        return "UNFINISHED RUN, between two curves."
    curves = {(row["method"], row["seed"]): row for row in under_way}  # how far each is
    place = itemgetter("round", "epoch")
    last = min(curves.values(), key=place)
    further = ", others further" * any(place(row) > place(last) for row in curves.values())
    where = f"seed {last['seed']}, {names.label(last['method'])}, round {last['round']}, epoch {last['epoch']}"
    return f"UNFINISHED RUN, so far at {where}{further}."


def scores(run: DrawnRun, what: str, ends: Sequence[Row], published: Mapping[str, float] | None = None) -> str:
    """A sentence of each method's mean test score and the paired gap, with published percentages in brackets.

    Args:
        run: what is drawn.
        what: what the scores are.
        ends: a row for each method and seed.
        published: method to published test accuracy, in percent.
    """
    published, unit = published or {}, unit_of(run.rows)
    own = grouped(ends, itemgetter("method"))
    values = {name: [row["test_accuracy"] for row in rows] for name, rows in own.items()}
    numbers = [
        f"{names.label(name)} {_number(interval(values[name]), published.get(name), unit)}"
        for name in names.ordered(values, run.methods)
    ]
    if gap := paired(ends, *names.both(run.methods)):
        a, b = gap["minuend"], gap["subtrahend"]
        known = published[a] - published[b] if {a, b} <= published.keys() else None
        numbers.append(f"{minus(gap)} {_number(gap, known, unit)}")
    of = " in percent" * unit.percent + " (published)" * any(name in published for name in values)
    return f"{what}{of}: {'; '.join(numbers)}."


def bands(run: DrawnRun, means: str = "Lines", spread: str = "bands") -> str:
    """What a figure's lines and bands, or what else it has, and brackets are; empty of one seed."""
    seeds = Counter(name for name, _ in {(row["method"], row["seed"]) for row in run.rows})
    counts = {count for count in seeds.values() if count > 1}
    if not counts:
        return ""
    bounds = f"{spread} ranges, what follows ±" if counts == {2} else f"{spread} and what follows ±"
    also = "" if counts == {2} or 2 not in counts else f", {spread} of two seeds their range"
    return f"{means} are means over seeds, {bounds} 95 % t-intervals of the mean{also}."


def _spread(run: DrawnRun) -> str:
    """What bands and ± are, for the picture itself, where all are the same."""
    told = bands(run)
    return " Bands and ±: 95 %." * bool(told and "range" not in told)


def _seeds_by_method(run: DrawnRun) -> str:
    """The seeds of all methods, and of those that have others, as where some were added for a few methods only."""
    seeds = {name: {row["seed"] for row in own} for name, own in grouped(run.rows, itemgetter("method")).items()}
    shown = names.ordered([name for name in seeds if name != FIRST] or seeds, run.methods)
    names_of = grouped(shown, lambda name: tuple(sorted(seeds[name])))
    most, *others = sorted(names_of, key=len, reverse=True)
    if len(others) > 2:
        return f"{seeds_told(sorted(set.union(*seeds.values())))}, not all of each method"
    return "; ".join([seeds_told(most), *(f"{', '.join(names_of[own])} {seeds_told(own)} only" for own in others)])


def seeds_told(seeds: Sequence[int]) -> str:
    """Seeds in words."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _number(mean: Mapping[str, Any], published: float | None, unit: Unit) -> str:
    """A mean over seeds, half of its interval where there are several, and the published percentage in brackets."""
    known = f" ({published:.1f})" if published is not None and unit.percent else ""
    return with_half(mean, unit, 1, sign=False) + known
