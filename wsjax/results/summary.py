"""What a run's rows come to: how each method ended, paired differences of methods, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from wsjax.results import names, speedup
from wsjax.results.names import Methods
from wsjax.results.stats import CONFIDENCE, Unit, mean_interval, slope, unit_of
from wsjax.storage.rows import CAP, FIRST, Row, grouped, round_ends

_SUMS = ("epochs", "steps", "samples_seen")
_SECONDS = ("train_seconds", "eval_seconds")


def summarize_offline(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of an offline run.

    Args:
      rows: a row an epoch.
      methods: what each method is, by name; see `names`.

    Returns:
      "rows": each method's and seed's end; "first_round": each seed's; "gap": random initialisation minus warm start
      in test accuracy, paired over seeds, or None where one of them did not run; "gain": each other method minus warm
      start, or minus random initialisation where no warm start ran, likewise; "from_scratch": how soon each method has
      random initialisation's accuracy, see `speedup`.
    """
    ends = _with_factors(round_ends(rows), methods)
    final = [end for end in ends if end["method"] != FIRST and end["round"] > 1]  # some have a first one of their own
    random, warm = names.both(methods)
    base = _base(final, random, warm)
    return {
        "rows": final,
        "first_round": [end for end in ends if end["method"] == FIRST],
        "gap": paired(final, random, warm),
        "gain": {name: paired(final, name, base) for name in _others(final, random, warm)},
        "from_scratch": speedup.speedups(rows, methods),
    }


def summarize_online(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of an online run.

    Args:
      rows: a row an epoch.
      methods: what each method is, by name; see `names`.

    Returns:
      "rounds": a row a round for each method and seed; the first round, which all methods share, stands in each of them
      for the seeds that it has ended a later one of, or alone as the method "first" where none has. "rows": each method
      and seed over all rounds: the last round's accuracies, "mean_test_accuracy" over the rounds after the first, and
      total epochs, steps and seconds. "gap", "gain": as offline, of the seeds that reached the last round; "mean_gap",
      "mean_gain": of the means over rounds; "gap_slope": the change of the gap a round, by least squares;
      "steps_of_RI", "seconds_of_RI": each method's total as a share of random initialisation's; "from_scratch": how
      soon, in the last round, each method has random initialisation's accuracy, see `speedup`. All are paired over
      seeds, with intervals; None where a method did not run.
    """
    ends = round_ends(rows)
    own = grouped(ends, itemgetter("method"))
    first = own.pop(FIRST, [])
    rounds: list[Row] = []
    for name, later in (own or {FIRST: []}).items():
        begin, seeds = min((end["round"] for end in later), default=2), {end["seed"] for end in later or first}
        shared = [end for end in first if end["round"] < begin and end["seed"] in seeds]
        rounds += [end | {"method": name} for end in [*shared, *later]]
    by_seed = grouped(rounds, itemgetter("method", "seed"))
    totals = _with_factors([_total(curve) for curve in by_seed.values()], methods)
    last = max((end["round"] for end in totals), default=1)
    ended = [end for end in totals if end["round"] == last]
    random, warm = names.both(methods)
    others, base = _others(ended, random, warm), _base(ended, random, warm)
    return {
        "rows": totals,
        "rounds": rounds,
        "gap": paired(ended, random, warm),
        "gain": {name: paired(ended, name, base) for name in others},
        "mean_gap": paired(ended, random, warm, "mean_test_accuracy"),
        "mean_gain": {name: paired(ended, name, base, "mean_test_accuracy") for name in others},
        "gap_slope": _slope(by_seed, random, warm),
        "steps_of_RI": shares_of(ended, random, "steps"),
        "seconds_of_RI": shares_of(ended, random, "train_seconds"),
        "from_scratch": speedup.speedups(rows, methods),
    }


def paired(
    ends: Sequence[Row], method: str | None, other: str | None, field: str = "test_accuracy"
) -> dict[str, Any] | None:
    """The difference of two methods in a field, paired by seed: its mean and interval; None where no seed has both."""
    found = differences(ends, method, other, field)
    return {"minuend": method, "subtrahend": other, **interval(list(found.values()))} if found else None


def differences(
    ends: Sequence[Row], method: str | None, other: str | None, field: str = "test_accuracy"
) -> dict[tuple[int, int], float]:
    """The differences of two methods in a field, by (seed, round), where both have one."""
    return {key: one - two for key, (one, two) in _pairs(ends, method, other, field).items()}


def less(one: Mapping[Any, float], two: Mapping[Any, float]) -> dict[str, Any] | None:
    """The interval of the differences of values with the same key; None where no key has both."""
    found = [one[key] - two[key] for key in sorted(one.keys() & two.keys())]
    return interval(found) if found else None


def unit_of_summary(summary: Mapping[str, Any]) -> Unit:
    """What a summary's scores are told in."""
    return unit_of([end for part in ("rows", "first_round", "rounds") for end in summary.get(part, ())])


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    unit, gap, sentences = unit_of_summary(summary), summary["gap"], []
    if gap is not None:
        sentences.append(_gap_sentence(gap, unit))
    sentences += [_gain_sentence(gain, gap, unit) for gain in summary["gain"].values() if gain is not None]
    for mean in (summary.get("mean_gap"), *summary.get("mean_gain", {}).values()):
        if mean is not None:
            sentences.append(f"Mean over the rounds after the first: {_difference(mean, unit)}.")
    if summary.get("gap_slope"):
        sentences.append(_slope_sentence(summary["gap_slope"], unit))
    for name, share in summary.get("steps_of_RI", {}).items():
        if share is not None:
            sentences.append(f"{names.label(name)} took {share_range(share)} of {names.label(share['of'])}'s steps.")
    if told := speedup.sentence(summary.get("from_scratch", {})):
        sentences.append(told)
    if {end["method"] for end in summary["rows"]} == {FIRST}:
        sentences.append("All methods share the first round: a second one would tell them apart.")
    return sentences


def _with_factors(ends: Sequence[Row], methods: Methods) -> list[Row]:
    """The rows with each method's shrink and perturb, None where it has none."""
    known: Methods = {names.RANDOM: {"shrink": 0.0, "perturb": 1.0}, names.WARM: {"shrink": 1.0, "perturb": 0.0}}

    def factors(spec: names.Spec) -> Row:
        own = known.get(spec.get("reinit", ""), spec)
        return {name: own.get(name) for name in ("shrink", "perturb")}

    return [end | factors(methods.get(end["method"], {})) for end in ends]


def _base(ends: Sequence[Row], random: str | None, warm: str | None) -> str | None:
    """What other methods' gain is told over: warm starts, or random initialisation where there are none."""
    return warm if any(end["method"] == warm for end in ends) else random


def _others(ends: Sequence[Row], *but: str | None) -> list[str]:
    return [name for name in dict.fromkeys(end["method"] for end in ends) if name not in (FIRST, *but)]


def _total(rounds: Sequence[Row]) -> Row:
    """One method and seed over all its rounds."""
    scores = [end["test_accuracy"] for end in rounds if end["round"] > 1] or [rounds[0]["test_accuracy"]]
    scores = [score for score in scores if score is not None]
    total = {name: value for name, value in rounds[-1].items() if name != "stop"}
    total |= {name: sum(end[name] for end in rounds) for name in _SUMS}
    total |= {name: round(sum(end[name] for end in rounds), 3) for name in _SECONDS}
    capped = sum(end["stop"] == CAP for end in rounds)
    return total | {"mean_test_accuracy": sum(scores) / len(scores) if scores else None, "capped_rounds": capped}


def _slope(
    by_seed: Mapping[tuple[str, int], Sequence[Row]], random: str | None, warm: str | None
) -> dict[str, Any] | None:
    """The change of the gap in test accuracy from round to round, after the first."""
    slopes = []
    for seed in sorted(seed for name, seed in by_seed if name == random):
        both = [*by_seed[str(random), seed], *by_seed.get((str(warm), seed), ())]
        gaps = differences([end for end in both if end["round"] > 1], random, warm)
        if len(gaps) > 1:
            slopes.append(float(slope({number: gap for (_, number), gap in gaps.items()})))
    return {"minuend": random, "subtrahend": warm, **interval(slopes)} if slopes else None


def shares_of(totals: Sequence[Row], random: str | None, field: str) -> dict[str, dict[str, Any] | None]:
    """Each other method's total as a share of random initialisation's, seed by seed; None where no seed has both."""
    found = {name: shares(totals, name, random, field) for name in _others(totals, random)}
    return {name: {"of": random, **interval(own)} if own else None for name, own in found.items()}


def shares(ends: Sequence[Row], method: str, other: str | None, field: str) -> list[float]:
    """A method's values of a field as shares of another's, of each seed and round where both have one."""
    return [a / b for a, b in _pairs(ends, method, other, field).values() if b]


def _pairs(
    ends: Sequence[Row], method: str | None, other: str | None, field: str
) -> dict[tuple[int, int], tuple[float, float]]:
    """A field of two methods, by (seed, round), where both have a number there."""
    one, two = (
        {(end["seed"], end["round"]): end[field] for end in ends if end["method"] == name and end[field] is not None}
        for name in (method, other)
    )
    return {key: (one[key], two[key]) for key in sorted(one.keys() & two.keys())}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds with its interval, as JSON has it."""
    mean, low, high = mean_interval(values)
    bounds = {"low": low, "high": high} if len(values) > 1 else {"low": None, "high": None}
    return {"mean": mean, **bounds, "confidence": CONFIDENCE, "seeds": len(values)}


def side(mean: Mapping[str, Any], of: float = 0.0) -> int | None:
    """The side of a number that a whole interval lies on: 1 above, -1 below, 0 neither; None of a seed, without one."""
    return None if mean["low"] is None else int(mean["low"] > of) - int(mean["high"] < of)


def _gap_sentence(gap: Mapping[str, Any], unit: Unit) -> str:
    points, told = _difference(gap, unit), side(gap)
    if told is None:
        return f"{points}; one seed gives no interval, so this says nothing sure about a gap."
    if told == 0:
        return f"No warm-starting gap can be told here: {points}, which includes 0."
    if not unit.percent:  # whether more is better is the user's to know
        return f"Warm starting makes a difference: {points}."
    return f"Warm starting {'costs accuracy' if told > 0 else 'gains accuracy here'}: {points}."


def _gain_sentence(gain: Mapping[str, Any], gap: Mapping[str, Any] | None, unit: Unit) -> str:
    sentence, name = _difference(gain, unit), names.label(gain["minuend"])
    if gap is None or side(gap) != 1 or side(gain) is None:
        return sentence + "."
    if side(gain) == 0:
        return f"{sentence}, which includes 0: that {name} takes any of the gap back cannot be told."
    share = gain["mean"] / gap["mean"]
    if share < 0:
        return f"{sentence}: {name} takes nothing of the gap back."
    return f"{sentence}: {name} takes back {share:.0%} of the gap."


def _slope_sentence(slope: Mapping[str, Any], unit: Unit) -> str:
    change = f"{minus(slope)} changes by {in_points(slope, unit)} a round"
    told = {1: "grows", -1: "shrinks", 0: "cannot be told to grow", None: ""}[side(slope)]
    return f"The gap {told} with the rounds: {change}." if told else f"{change}."


def share_range(share: Mapping[str, Any]) -> str:
    """A share with its interval, in words."""
    return with_bounds(share, ".0%", "95 % interval ")


def _difference(difference: Mapping[str, Any], unit: Unit) -> str:
    return f"{minus(difference)} = {in_points(difference, unit)}"


def minus(difference: Mapping[str, Any]) -> str:
    """A difference's title."""
    return f"{names.label(difference['minuend'])} - {names.label(difference['subtrahend'])}"


def with_half(mean: Mapping[str, Any], unit: Unit, decimals: int = 2, sign: bool = True) -> str:
    """A mean, such as that of differences, with half of its interval, where it has one."""
    half = "" if mean["low"] is None else f" ± {unit.number((mean['high'] - mean['low']) / 2, decimals)}"
    return unit.number(mean["mean"], decimals, sign) + half


def with_bounds(mean: Mapping[str, Any], spec: str, what: str = "") -> str:
    """A mean with its interval in brackets, where it has one, each number as a format specification has it."""
    if mean["low"] is None:
        return f"{mean['mean']:{spec}}"
    return f"{mean['mean']:{spec}} ({what}{mean['low']:{spec}} to {mean['high']:{spec}})"


def in_points(difference: Mapping[str, Any], unit: Unit) -> str:
    """A difference with its interval, in words."""
    mean = unit.number(difference["mean"], sign=True) + " points" * unit.percent
    if difference["low"] is None:
        return f"{mean} (1 seed)"
    low, high = (unit.number(difference[name], sign=True) for name in ("low", "high"))
    return f"{mean} (95 % interval {low} to {high}, {difference['seeds']} seeds)"
