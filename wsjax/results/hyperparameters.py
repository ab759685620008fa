"""What a hyperparameters run comes to: cost and accuracy of random initialisations and warm starts, cell by cell.

A *cell* is a learning rate with a batch size. A method's "cells" in the table of methods are those of its rounds: one
for random initialisation; for a warm start that of the first part of the data, then one a round on all of them. What
counts is a round on all of the data, its cell and its cost, as in the report: the first part was trained on before
these came, with settings that nobody can choose any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from wsjax.results import names
from wsjax.results.names import Methods, Spec
from wsjax.results.stats import ACCURACY
from wsjax.results.summary import in_points, interval, share_range, side
from wsjax.results.tables import Table, over_seeds
from wsjax.storage.rows import CAP, DIVERGED, Row, grouped, round_ends

Cell = tuple[float, int]
"""A learning rate and a batch size."""

COSTS = {"samples_seen": "samples", "steps": "steps", "train_seconds": "seconds"}
"""What a round costs: fields and words."""

_MEANS = ("test_accuracy", *COSTS)


def spec_of(start: str, cells: Sequence[Cell]) -> Spec:
    """What a method is in the table: its start, "RI" or "WS", and the cell of each of its rounds."""
    return {**names.from_settings([start], (), ())[start], "cells": [list(cell) for cell in cells]}


def name_of(start: str, cells: Sequence[Cell]) -> str:
    """A method's name: "RI 0.1/128", "WS 0.1/128, 0.01/64", or "WS 0.1/128, chained" where more rounds follow."""
    first, *later = (f"{rate!r}/{size}" for rate, size in cells)  # exact, so that no two are alike
    return ", ".join([f"{start} {first}", *(["chained"] if len(later) > 1 else later)])


def summarize(rows: Sequence[Row], methods: Methods) -> dict[str, Any]:
    """The summary of a hyperparameters run.

    Args:
      rows: a row an epoch.
      methods: what each method is, by name; see `spec_of`.

    Returns:
      "rows": the end of each round on all of the data, with its "start" ("RI" or "WS"), its "cell", and whether it
      "converged" before the cap; "first_rounds": the ends of the warm starts' first rounds. "cells": for each start and
      cell, means over seeds of accuracy and costs, and how many rounds were "capped" or "diverged", a chain's after it
      diverged among them. "best": of either start the cell of the largest mean accuracy among those whose rounds all
      converged and that half of the seeds have or more, the "gap" RI - WS of the two, paired by the seeds that have
      both, and the costs of WS as shares "of_RI". "same": the gap and shares with the same cell, the mean over a
      seed's warm starts. None where one is missing.
    """
    ends = [_with_cells(end, methods[end["method"]]) for end in round_ends(rows) if end["method"] in methods]
    final = [end for end in ends if _is_final(end)]
    groups = _groups(final)
    return {
        "rows": final,
        "first_rounds": [end for end in ends if not _is_final(end)],
        "cells": [_cell(start, cell, own) for (start, cell), own in groups.items()],
        "best": _best(groups),
        "same": _same(final),
    }


def table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of its table: a row for each start and cell."""
    columns = ["start", "rate", "batch", "seeds", "test %", "samples seen", "steps", "seconds", "capped", "diverged"]
    groups = _groups(summary["rows"])
    lines = []
    for cell in summary["cells"]:
        own = [_mean(ends) for ends in _by_seed(groups[cell["start"], tuple(cell["cell"])]).values()]
        costs = [cell[name]["mean"] for name in COSTS]
        lines.append(
            [
                cell["start"],
                *(f"{value:g}" for value in cell["cell"]),
                str(len(own)),
                over_seeds(own, "test_accuracy", ACCURACY),
                *(f"{cost:,.0f}" for cost in costs[:2]),
                f"{costs[2]:.3g}",
                *(f"{cell[name]} of {cell['rounds']}" for name in ("capped", "diverged")),
            ]
        )
    return columns, lines


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    best, same, sentences = summary["best"], summary["same"], []
    if best is not None:
        sentences += [f"{_best_sentence(best)}.", f"The best WS took {_shares(best)} of the best RI's."]
    elif {end["start"] for end in summary["rows"]} == {"RI", "WS"}:
        sentences.append("RI and WS have no cells to compare: such whose rounds all converged, of one seed at least.")
    if same is not None:
        gap = in_points(same["gap"], ACCURACY)
        sentences.append(f"With the same settings on all of the data RI - WS = {gap}; WS took {_shares(same)} of RI's.")
    return sentences + [f"{text}." for text in not_converged(summary)]


def not_converged(summary: Mapping[str, Any]) -> list[str]:
    """How many rounds on all of the data did not converge, and how they ended, in words."""
    counts = _counts(summary["rows"])
    ways = {"capped": "ended at the cap on epochs", "diverged": "diverged: their loss was not finite"}
    found = {way: counts[name] for name, way in ways.items() if counts[name]}
    return [f"{count} of {counts['rounds']} rounds on all of the data {way}" for way, count in found.items()]


def _with_cells(end: Row, spec: Spec) -> Row:
    start, cell = names.SHORT[spec["reinit"]], spec["cells"][end["round"] - 1]
    return end | {"start": start, "cell": cell, "converged": end["stop"] not in (CAP, DIVERGED)}


def _is_final(end: Row) -> bool:
    """Whether a round was on all of the data."""
    return end["start"] == "RI" or end["round"] > 1


def _groups(ends: Sequence[Row]) -> dict[tuple[str, Cell], list[Row]]:
    """Rounds by start and cell: random initialisation first, and the cells in its order."""
    order = list(dict.fromkeys(tuple(end["cell"]) for end in ends))
    ends = sorted(ends, key=lambda end: (end["start"], order.index(tuple(end["cell"]))))
    return grouped(ends, lambda end: (end["start"], tuple(end["cell"])))


def _by_seed(ends: Sequence[Row]) -> dict[int, list[Row]]:
    return dict(sorted(grouped(ends, itemgetter("seed")).items()))


def _mean(ends: Sequence[Row]) -> Row:
    """One seed's rounds of a cell: warm starts from several others may have come to it."""
    return {name: float(np.mean([end[name] for end in ends])) for name in _MEANS}


def _cell(start: str, cell: Cell, ends: Sequence[Row]) -> dict[str, Any]:
    seeds = [_mean(own) for own in _by_seed(ends).values()]
    means = {name: interval([own[name] for own in seeds]) for name in _MEANS}
    return {"start": start, "cell": list(cell), **means, **_counts(ends)}


def _counts(ends: Sequence[Row]) -> dict[str, int]:
    """How many rounds there are, and how many did not converge, by the way that they ended."""
    stops = [end["stop"] for end in ends]
    return {"rounds": len(ends), "capped": stops.count(CAP), "diverged": stops.count(DIVERGED)}


def _best(groups: Mapping[tuple[str, Cell], Sequence[Row]]) -> dict[str, Any] | None:
    """The best cells of both starts, and how they differ; None where one has none, or no seed has both."""
    enough = len({end["seed"] for ends in groups.values() for end in ends}) / 2  # a cell of few may be best by luck
    by_seed: dict[str, dict[Cell, dict[int, Row]]] = {"RI": {}, "WS": {}}
    for (start, cell), ends in groups.items():
        seeds = _by_seed(ends)
        if len(seeds) >= enough and all(end["converged"] for end in ends):
            by_seed[start][cell] = {seed: _mean(own) for seed, own in seeds.items()}
    if not all(by_seed.values()):
        return None
    chosen = {start: max(cells, key=lambda cell: _accuracy(cells[cell])) for start, cells in by_seed.items()}
    random, warm = (by_seed[start][cell] for start, cell in chosen.items())
    pairs = [(random[seed], warm[seed]) for seed in random if seed in warm]
    return {start: list(cell) for start, cell in chosen.items()} | _compared(pairs) if pairs else None


def _accuracy(seeds: Mapping[int, Row]) -> float:
    return float(np.mean([own["test_accuracy"] for own in seeds.values()]))


def _same(ends: Sequence[Row]) -> dict[str, Any] | None:
    """Warm starts against the random initialisation with the same settings on all of the data, both converged."""
    converged = [end for end in ends if end["converged"]]
    random = {_place(end): end for end in converged if end["start"] == "RI"}
    both = [(random[_place(end)], end) for end in converged if end["start"] == "WS" and _place(end) in random]
    seeds = grouped(both, lambda pair: pair[1]["seed"])
    pairs = [(_mean([a for a, _ in own]), _mean([b for _, b in own])) for own in seeds.values()]
    return _compared(pairs) if pairs else None


def _place(end: Row) -> tuple[int, float, int]:
    return end["seed"], *end["cell"]


def _compared(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Random initialisation and warm start of each seed: their gap, and the second's costs as shares of the first's."""
    gap = interval([a["test_accuracy"] - b["test_accuracy"] for a, b in pairs])
    shares = {name: [b[name] / a[name] for a, b in pairs if a[name]] for name in COSTS}
    return {"gap": gap, "of_RI": {name: interval(own) for name, own in shares.items() if own}}


def _best_sentence(best: Mapping[str, Any]) -> str:
    gap, (rate, size), (warm_rate, warm_size) = best["gap"], best["RI"], best["WS"]
    points = f"best RI ({rate:g}/{size}) - best WS ({warm_rate:g}/{warm_size}) = {in_points(gap, ACCURACY)}"
    return {
        1: f"No warm start is as accurate as the best RI: {points}",
        -1: f"The best warm start is more accurate than the best RI: {points}",
        0: f"The best warm start cannot be told from the best RI: {points}",
        None: f"{points}; one seed gives no interval, so this says nothing sure about a gap",
    }[side(gap)]


def _shares(compared: Mapping[str, Any]) -> str:
    """Its costs as shares of RI's, in words."""
    return ", ".join(f"{share_range(share)} of the {COSTS[name]}" for name, share in compared["of_RI"].items())
