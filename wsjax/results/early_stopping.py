"""What an early-stopping run comes to: how much a warm start loses, by how long the network trained before it.

*Damage* is how far a warm start ends below random initialisation, in test accuracy: RI - WS, positive where warm
starting loses. Of RI in percent it is 100 (RI - WS) / RI; the report's Figure 3 draws its opposite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsjax.results import names
from wsjax.results.names import Methods
from wsjax.results.stats import ACCURACY, PERCENT, slope
from wsjax.results.summary import in_points, interval, side, with_half
from wsjax.results.tables import Table, over_seeds
from wsjax.storage.rows import FIRST, Row, round_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AFTER = "after"
"""What the table of methods calls the epochs that a warm start's network trained on the first part of the data."""


def summarize(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of an early-stopping run.

    Args:
      rows: a row an epoch.
      methods: what each method is, by name; a warm start's `AFTER` says after how many epochs it branches off.

    Returns:
      "rows": each method's and seed's end, with its "after", None for random initialisation; "first_rounds": the end of
      each shared round, whose "after" is its epochs and those of all before it; "damage": by "after", from the
      shortest, RI - WS in accuracy ("points") and in percent of RI ("percent"), paired over seeds; "slope": how these
      two change an epoch, by least squares over "after" for each seed, None where no seed has two of them.
    """
    final = [end | {AFTER: methods.get(end["method"], {}).get(AFTER)} for end in round_ends(rows)]
    final = [end for end in final if end["method"] != FIRST]
    damage = damages(final, methods)
    by_after = {after: [own[after] for own in damage.values() if after in own] for after in _afters(damage)}
    slopes = [tuple(map(float, slope(own))) for own in damage.values() if len(own) > 1]
    return {
        "rows": final,
        "first_rounds": [row | {AFTER: row["epoch"]} for row in trunk(rows) if row["stop"]],
        "damage": [{AFTER: after, **_both(values)} for after, values in by_after.items()],
        "slope": _both(slopes) if slopes else None,
    }


def trunk(rows: Sequence[Row]) -> list[Row]:
    """The rows of the shared rounds, with their epochs counted on from round to round."""
    last = {(row["seed"], row["round"]): row["epoch"] for row in rows if row["method"] == FIRST}
    return [
        row | {"epoch": row["epoch"] + sum(last.get((row["seed"], before), 0) for before in range(1, row["round"]))}
        for row in rows
        if row["method"] == FIRST
    ]


def damages(ends: Sequence[Row], methods: Methods) -> dict[int, dict[int, tuple[float, float]]]:
    """By seed and epochs before the warm start, the damage in accuracy and in percent of random initialisation."""
    random = {end["seed"]: end["test_accuracy"] for end in ends if _is(methods, end, names.RANDOM)}
    found: dict[int, dict[int, tuple[float, float]]] = {}
    for end in ends:
        if _is(methods, end, names.WARM) and random.get(end["seed"]):
            scratch = random[end["seed"]]
            lost = scratch - end["test_accuracy"]
            found.setdefault(end["seed"], {})[methods[end["method"]][AFTER]] = (lost, 100 * lost / scratch)
    return {seed: dict(sorted(found[seed].items())) for seed in sorted(found)}


def table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of its table: a row for each time to start from, and one for random initialisation."""
    columns = ["start", "epochs before", "their test %", "seeds", "test %", "RI - WS", "% of RI"]
    damage = {own[AFTER]: own for own in summary["damage"]}
    lines = []
    for after in dict.fromkeys(end[AFTER] for end in summary["rows"]):
        own = [end for end in summary["rows"] if end[AFTER] == after]
        first = [end for end in summary["first_rounds"] if end[AFTER] == after]
        lost = [] if after not in damage else [with_half(damage[after][kind], unit) for kind, unit in _UNITS.items()]
        lines.append(
            [
                "RI" if after is None else "WS",
                "" if after is None else str(after),
                over_seeds(first, "test_accuracy", ACCURACY) if first else "",
                str(len(own)),
                over_seeds(own, "test_accuracy", ACCURACY),
                *(lost or ["", ""]),
            ]
        )
    return columns, lines


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences: is there a gap after the first epochs already, and does it grow."""
    damage, slope = summary["damage"], summary["slope"]
    if not damage:
        return []
    sentences = [_gap_sentence(damage[0], " already")]
    if len(damage) > 1:
        sentences.append(_gap_sentence(damage[-1]))
    if slope is not None:
        sentences.append(_slope_sentence(slope["points"], damage[1][AFTER] - damage[0][AFTER]))
    return sentences


def curves(rows: Sequence[Row], methods: Methods) -> Figure:
    """Draws the test accuracy while training on the first part, and what a warm start from there loses."""
    from matplotlib.figure import Figure

    from wsjax.results import plots

    shared, damage = trunk(rows), damages(round_ends(rows), methods)
    length, afters = max((row["epoch"] for row in shared), default=1), _afters(damage)
    figure = Figure(figsize=(plots.WIDTH, plots.HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)

    tested = [row for row in shared if row["test_accuracy"] is not None]
    epochs, tests = plots.by_seed(tested, "epoch", "test_accuracy")
    style = names.styles([FIRST], {})[FIRST]
    plots.mean_band(left, epochs, 100 * tests, label="first part", style=style)
    marked = [number for number, epoch in enumerate(epochs) if epoch in afters]
    means = np.nanmean(100 * tests[:, marked], axis=0)
    left.plot([epochs[number] for number in marked], means, "o", color=style.color, markersize=3)
    plots.dress(left, "Test accuracy (%)", length, "Epochs on the first part of the data")

    style = names.styles(["WS"], {"WS": {"reinit": names.WARM}})["WS"]
    found = [{"seed": seed, AFTER: x, "percent": own} for seed, ys in damage.items() for x, (_, own) in ys.items()]
    _, lost = plots.by_seed(found, AFTER, "percent")
    plots.mean_band(right, afters, lost, label="damage", style=style)
    right.plot(afters, np.nanmean(lost, axis=0), "o", color=style.color, markersize=3)
    right.axhline(0, color="#777777", linewidth=0.8, zorder=1)
    if not afters:
        at = {"transform": right.transAxes, "ha": "center", "va": "bottom", "fontsize": plots.SMALL}
        right.text(0.5, 0.55, "no seed has both RI and WS yet", **at)
    plots.dress(right, "Damage (RI - WS) / RI (%)", length, "Epochs before the warm start")
    return figure


_UNITS = {"points": ACCURACY, "percent": PERCENT}


def _is(methods: Methods, end: Row, reinit: str) -> bool:
    return methods.get(end["method"], {}).get("reinit") == reinit


def _afters(damage: Mapping[int, Mapping[int, Any]]) -> list[int]:
    return sorted({after for own in damage.values() for after in own})


def _both(values: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    points, percent = zip(*values, strict=True)
    return {"points": interval(points), "percent": interval(percent)}


def _gap_sentence(damage: Mapping[str, Any], already: str = "") -> str:
    points = damage["points"]
    lost = f"RI - WS = {in_points(points, ACCURACY)}, {damage['percent']['mean']:+.1f} % of RI"
    after = f"fter {damage[AFTER]} epochs on the first part"
    told = side(points)
    if told is None:
        return f"A{after}: {lost}; one seed gives no interval, so this says nothing sure about a gap."
    if told == 0:
        return f"No warm-starting gap can be told a{after}: {lost}."
    return f"Warm starting {'costs' if told > 0 else 'gains'} accuracy{already} a{after}: {lost}."


def _slope_sentence(slope: Mapping[str, Any], step: int) -> str:
    """What an epoch changes, told for as many as lie between two warm starts."""
    scaled = dict(slope) | {key: slope[key] and step * slope[key] for key in ("mean", "low", "high")}
    change = f"RI - WS changes by {in_points(scaled, ACCURACY)} with every {step} epochs before"
    told = {1: "grows", -1: "shrinks", 0: "cannot be told to grow or to shrink", None: ""}[side(slope)]
    return f"The gap {told} with the epochs before the warm start: {change}." if told else f"{change}."
