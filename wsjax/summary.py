"""What a run's rows come to: how each way ended, paired differences between ways, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsjax.records import Row
from wsjax.stats import CONFIDENCE, Interval, mean_interval

FIRST = "first"
"""The method that rows of the common first round name."""

Factors = Mapping[str, tuple[float, float]]


def summarize(rows: Sequence[Row], sp_factors: Factors) -> dict[str, Any]:
    """The summary of an offline run.

    Args:
      rows: a row an epoch.
      sp_factors: (shrink, perturb) by the name of each shrink-perturb way.

    Returns:
      "rows": each way's and seed's end; "first_round": each seed's; "gap": RI - WS in test accuracy, paired over
      seeds, or None where one of them did not run; "gain": each other way minus WS, likewise.
    """
    factors = {"RI": (0.0, 1.0), "WS": (1.0, 0.0), **sp_factors}
    ends = [_end(rows, last, *factors.get(last["method"], (None, None))) for last in rows if last["stop"]]
    final = [end for end in ends if end["method"] != FIRST]
    others = [name for name in dict.fromkeys(end["method"] for end in final) if name not in ("RI", "WS")]
    return {
        "rows": final,
        "first_round": [end for end in ends if end["method"] == FIRST],
        "gap": paired(final, "RI", "WS"),
        "gain": {name: paired(final, name, "WS") for name in others},
    }


def paired(ends: Sequence[Row], method: str, other: str, field: str = "test_accuracy") -> dict[str, Any] | None:
    """The difference of two ways in a field, paired by seed: its mean and interval; None where no seed has both."""
    values = [{end["seed"]: end[field] for end in ends if end["method"] == name} for name in (method, other)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if not seeds:
        return None
    mean, low, high = mean_interval([values[0][seed] - values[1][seed] for seed in seeds])
    bounds = {"low": low, "high": high} if len(seeds) > 1 else {"low": None, "high": None}
    return {
        "minuend": method,
        "subtrahend": other,
        "mean": mean,
        **bounds,
        "confidence": CONFIDENCE,
        "seeds": len(seeds),
    }


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the summary's table, a row a way."""
    columns = ["way", "seeds", "test %", "train %", "epochs", "steps", "seconds"]
    ends = [*summary["first_round"], *summary["rows"]]
    lines = []
    for name in dict.fromkeys(end["method"] for end in ends):
        own = [end for end in ends if end["method"] == name]
        mean = {field: sum(end[field] for end in own) / len(own) for field in ("epochs", "steps", "train_seconds")}
        lines.append(
            [
                "first round" if name == FIRST else name,
                str(len(own)),
                _percent(mean_interval([end["test_accuracy"] for end in own])),
                _percent(mean_interval([end["train_accuracy"] for end in own])),
                f"{mean['epochs']:.4g}",
                f"{mean['steps']:,.0f}",
                f"{mean['train_seconds']:.3g}",
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
    return sentences


def _end(rows: Sequence[Row], last: Row, shrink: float | None, perturb: float | None) -> Row:
    """How one way and seed ended a round, with the seconds of all the round's epochs."""
    which = ("method", "seed", "round")
    own = [row for row in rows if all(row[name] == last[name] for name in which)]
    seconds = {name: round(sum(row[name] for row in own), 3) for name in ("train_seconds", "eval_seconds")}
    return {
        "method": last["method"],
        "seed": last["seed"],
        "test_accuracy": last["test_accuracy"],
        "train_accuracy": last["train_accuracy"],
        "epochs": last["epoch"],
        "steps": last["steps"],
        **seconds,
        "stop": last["stop"],
        "shrink": shrink,
        "perturb": perturb,
    }


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
