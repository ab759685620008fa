"""What a run's rows come to: how each way ended, paired differences between ways, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsjax.results.stats import CONFIDENCE, Interval, mean_interval
from wsjax.storage.rows import CAP, ENDS, FIRST, Row, round_ends

Factors = Mapping[str, tuple[float, float]]
Table = tuple[list[str], list[list[str]]]


def summarize_offline(rows: Sequence[Row], sp_factors: Factors) -> dict[str, Any]:
    """The summary of an offline run.

    Args:
      rows: a row an epoch.
      sp_factors: (shrink, perturb) by the name of each shrink-perturb way.

    Returns:
      "rows": each way's and seed's end; "first_round": each seed's; "gap": RI - WS in test accuracy, paired over
      seeds, or None where one of them did not run; "gain": each other way minus WS, likewise.
    """
    ends = _with_factors(round_ends(rows), sp_factors)
    final = [end for end in ends if end["method"] != FIRST]
    return {
        "rows": final,
        "first_round": [end for end in ends if end["method"] == FIRST],
        "gap": paired(final, "RI", "WS"),
        "gain": {name: paired(final, name, "WS") for name in _others(final)},
    }


def summarize_online(rows: Sequence[Row], sp_factors: Factors) -> dict[str, Any]:
    """The summary of an online run.

    Args:
      rows: a row an epoch.
      sp_factors: (shrink, perturb) by the name of each shrink-perturb way.

    Returns:
      "rounds": a row a round for each way and seed; the first round, which all ways share, stands in each of them.
      "rows": each way and seed over all rounds: the last round's accuracies, "mean_test_accuracy" over the rounds
      after the first, and total epochs, steps and seconds. "gap", "gain": as offline, at the end; "mean_gap",
      "mean_gain": of the means over rounds; "gap_slope": the change of RI - WS a round, by least squares;
      "steps_of_RI", "seconds_of_RI": each way's total as a share of RI's. All are paired over seeds, with intervals;
      None where a way did not run.
    """
    ends = round_ends(rows)
    ways = [name for name in dict.fromkeys(end["method"] for end in ends) if name != FIRST]
    rounds = [end | {"method": way} for way in ways for end in ends if end["method"] in (FIRST, way)]
    by_seed: dict[tuple[str, int], list[Row]] = {}
    for end in rounds:
        by_seed.setdefault((end["method"], end["seed"]), []).append(end)
    totals = _with_factors([_total(own) for own in by_seed.values()], sp_factors)
    others = [way for way in ways if way != "RI"]
    return {
        "rows": totals,
        "rounds": rounds,
        "gap": paired(totals, "RI", "WS"),
        "gain": {name: paired(totals, name, "WS") for name in _others(totals)},
        "mean_gap": paired(totals, "RI", "WS", "mean_test_accuracy"),
        "mean_gain": {name: paired(totals, name, "WS", "mean_test_accuracy") for name in _others(totals)},
        "gap_slope": _slope(by_seed),
        "steps_of_RI": {way: _share(totals, way, "steps") for way in others},
        "seconds_of_RI": {way: _share(totals, way, "train_seconds") for way in others},
    }


def paired(ends: Sequence[Row], method: str, other: str, field: str = "test_accuracy") -> dict[str, Any] | None:
    """The difference of two ways in a field, paired by seed: its mean and interval; None where no seed has both."""
    differences = [a - b for a, b in _pairs(ends, method, other, field)]
    return {"minuend": method, "subtrahend": other, **_interval(differences)} if differences else None


def offline_table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of an offline summary's table, a row a way."""
    columns = ["way", "seeds", "test %", "train %", "epochs", "steps", "seconds"]
    return columns, [
        [
            "first round" if name == FIRST else name,
            str(len(own)),
            _percent(mean_interval([end["test_accuracy"] for end in own])),
            _percent(mean_interval([end["train_accuracy"] for end in own])),
            f"{_mean(own, 'epochs'):.4g}",
            f"{_mean(own, 'steps'):,.0f}",
            f"{_mean(own, 'train_seconds'):.3g}",
        ]
        for name, own in _by_way([*summary["first_round"], *summary["rows"]])
    ]


def online_table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of an online summary's table, a row a way."""
    columns = ["way", "seeds", "last test %", "mean", "steps", "of RI", "seconds", "capped"]
    lines = []
    for name, own in _by_way(summary["rows"]):
        share = summary["steps_of_RI"].get(name)
        lines.append(
            [
                name,
                str(len(own)),
                _percent(mean_interval([end["test_accuracy"] for end in own])),
                f"{100 * _mean(own, 'mean_test_accuracy'):.2f}",
                f"{_mean(own, 'steps'):,.0f}",
                "" if share is None else f"{share['mean']:.0%}",
                f"{_mean(own, 'train_seconds'):.3g}",
                f"{_mean(own, 'capped_rounds'):.3g}",
            ]
        )
    return columns, lines


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    gap, sentences = summary["gap"], []
    if gap is not None:
        sentences.append(_gap_sentence(gap))
    for name, gain in summary["gain"].items():
        if gain is not None:
            sentences.append(_gain_sentence(name, gain, gap))
    for mean in (summary.get("mean_gap"), *summary.get("mean_gain", {}).values()):
        if mean is not None:
            sentences.append(f"Mean over the rounds after the first: {mean['minuend']} - WS = {_points(mean)}.")
    if summary.get("gap_slope"):
        sentences.append(_slope_sentence(summary["gap_slope"]))
    for name, share in summary.get("steps_of_RI", {}).items():
        if share is not None:
            sentences.append(f"{name} took {_range(share)} of RI's steps.")
    return sentences


def _with_factors(ends: Sequence[Row], sp_factors: Factors) -> list[Row]:
    """The rows with each way's shrink and perturb."""
    factors = {"RI": (0.0, 1.0), "WS": (1.0, 0.0), **sp_factors}
    pairs = [factors.get(end["method"], (None, None)) for end in ends]
    return [end | {"shrink": shrink, "perturb": perturb} for end, (shrink, perturb) in zip(ends, pairs, strict=True)]


def _others(ends: Sequence[Row]) -> list[str]:
    return [name for name in dict.fromkeys(end["method"] for end in ends) if name not in ("RI", "WS")]


def _total(rounds: Sequence[Row]) -> Row:
    """One way and seed over all its rounds."""
    later = [end["test_accuracy"] for end in rounds[1:]] or [rounds[0]["test_accuracy"]]
    sums = {name: sum(end[name] for end in rounds) for name in ("epochs", "steps", "samples_seen")}
    seconds = {name: round(sum(end[name] for end in rounds), 3) for name in ("train_seconds", "eval_seconds")}
    last = {name: rounds[-1][name] for name in ENDS}
    capped = sum(end["stop"] == CAP for end in rounds)
    return last | {"mean_test_accuracy": sum(later) / len(later), **sums, **seconds, "capped_rounds": capped}


def _slope(by_seed: Mapping[tuple[str, int], Sequence[Row]]) -> dict[str, Any] | None:
    """The change of RI - WS in test accuracy from round to round, after the first."""
    slopes = []
    for seed in sorted({seed for _, seed in by_seed}):
        random, warm = by_seed.get(("RI", seed), ()), by_seed.get(("WS", seed), ())
        gaps = [a["test_accuracy"] - b["test_accuracy"] for a, b in zip(random, warm, strict=False)][1:]
        if len(gaps) > 1:
            slopes.append(float(np.polyfit(range(len(gaps)), gaps, 1)[0]))
    return _interval(slopes) if slopes else None


def _share(totals: Sequence[Row], way: str, field: str) -> dict[str, Any] | None:
    """A way's total as a share of RI's, seed by seed."""
    shares = [a / b for a, b in _pairs(totals, way, "RI", field)]
    return _interval(shares) if shares else None


def _pairs(ends: Sequence[Row], method: str, other: str, field: str) -> list[tuple[float, float]]:
    """A field of two ways, for every seed that both have."""
    values = [{end["seed"]: end[field] for end in ends if end["method"] == name} for name in (method, other)]
    return [(values[0][seed], values[1][seed]) for seed in sorted(values[0].keys() & values[1].keys())]


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds with its interval, as JSON has it."""
    mean, low, high = mean_interval(values)
    bounds = {"low": low, "high": high} if len(values) > 1 else {"low": None, "high": None}
    return {"mean": mean, **bounds, "confidence": CONFIDENCE, "seeds": len(values)}


def _gap_sentence(gap: Mapping[str, Any]) -> str:
    points = f"RI - WS = {_points(gap)}"
    if gap["low"] is None:
        return f"{points}; one seed gives no interval, so this says nothing sure about a gap."
    if gap["low"] > 0:
        return f"Warm starting costs accuracy: {points}."
    if gap["high"] < 0:
        return f"Warm starting gains accuracy here: {points}."
    return f"No warm-starting gap can be told here: {points}, which includes 0."


def _gain_sentence(name: str, gain: Mapping[str, Any], gap: Mapping[str, Any] | None) -> str:
    sentence = f"{name} - WS = {_points(gain)}"
    if gap is None or gap["low"] is None or gap["low"] <= 0:
        return sentence + "."
    share = gain["mean"] / gap["mean"]
    if share < 0:
        return f"{sentence}: {name} takes nothing of the gap back."
    return f"{sentence}: {name} takes back {share:.0%} of the gap."


def _slope_sentence(slope: Mapping[str, Any]) -> str:
    change = f"RI - WS changes by {_points(slope)} a round"
    if slope["low"] is None:
        return f"{change}."
    if slope["low"] > 0:
        return f"The gap grows with the rounds: {change}."
    return f"The gap {'shrinks' if slope['high'] < 0 else 'cannot be told to grow'} with the rounds: {change}."


def _range(share: Mapping[str, Any]) -> str:
    if share["low"] is None:
        return f"{share['mean']:.0%}"
    return f"{share['mean']:.0%} (95 % interval {share['low']:.0%} to {share['high']:.0%})"


def _by_way(ends: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(end["method"] for end in ends)
    return [(name, [end for end in ends if end["method"] == name]) for name in names]


def _mean(ends: Sequence[Row], field: str) -> float:
    return sum(end[field] for end in ends) / len(ends)


def _points(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None:
        return f"{100 * difference['mean']:+.2f} points (1 seed)"
    low, high = 100 * difference["low"], 100 * difference["high"]
    return (
        f"{100 * difference['mean']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, {difference['seeds']} seeds)"
    )


def _percent(interval: Interval) -> str:
    half = 100 * (interval.high - interval.mean)
    return f"{100 * interval.mean:.2f}" + (f" ± {half:.2f}" if half == half else "")
