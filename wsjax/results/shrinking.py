"""What a run of the shrink-only experiment comes to: how far a trained network can be shrunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from wsjax.results.names import Methods
from wsjax.results.summary import interval, with_bounds
from wsjax.results.tables import Table
from wsjax.storage.rows import Row, grouped, round_ends

LABELS = {
    "resnet18": "ResNet-18",
    "relu": "MLP, ReLU",
    "relu_no_bias": "MLP, ReLU without bias",
    "tanh": "MLP, tanh",
    "tanh_no_bias": "MLP, tanh without bias",
}
"""The networks, in a legend's order."""

EVALUATIONS = {"running": "running", "reestimated": "re-estimated", "batch": "each batch's"}
"""In words: the statistics that a ResNet's BatchNorm is evaluated with."""

POINT = 0.01

Curve = Mapping[str, Any]
"""{"network", "seed", "evaluation", "shrinks": [L], "accuracies": [L]}, the last shrink being 1."""


def summarize(rows: Sequence[Row], methods: Methods, curves: Sequence[Curve]) -> dict[str, Any]:
    """The summary of a shrink-only run.

    Args:
      rows: a row an epoch; a network is what elsewhere is a method.
      methods: what each network is.
      curves: those of each network, seed and evaluation.

    Returns:
      "rows": each network's and seed's end of training. "curves": for each network and evaluation, means over seeds
      with intervals: "accuracy", unshrunk, and "holds_from" (`holds_from`).
    """
    del methods
    groups = grouped(curves, itemgetter("network", "evaluation"))
    return {
        "rows": round_ends(rows),
        "curves": [
            {
                "network": network,
                "evaluation": evaluation,
                "accuracy": interval([curve["accuracies"][-1] for curve in own]),
                "holds_from": interval([holds_from(curve) for curve in own]),
            }
            for (network, evaluation), own in groups.items()
        ],
    }


def holds_from(curve: Curve) -> float:
    """The smallest shrink from which on, up to 1, a network loses at most a point of its accuracy; it may gain some."""
    smallest = 1.0
    for shrink, accuracy in zip(reversed(curve["shrinks"]), reversed(curve["accuracies"]), strict=True):
        if curve["accuracies"][-1] - accuracy > POINT + 1e-6:
            break
        smallest = shrink
    return smallest


def title(network: str, evaluation: str) -> str:
    """A curve's name; of networks without batch statistics the evaluation says nothing."""
    statistics = f", {EVALUATIONS[evaluation]} statistics" if network == "resnet18" else ""
    return LABELS.get(network, network) + statistics


def labels(networks: Collection[str]) -> str:
    """The names of several networks together."""
    of_mlps = len(networks) > 1 and all(LABELS.get(name, "").startswith("MLP") for name in networks)
    return "MLPs" if of_mlps else " and ".join(LABELS.get(name, name) for name in networks)


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences; in brackets 95 % intervals over seeds."""
    return [
        f"{title(own['network'], own['evaluation'])}: from shrink {_told(own['holds_from'])} on, at most a point is "
        f"lost of the unshrunk network's {own['accuracy']['mean']:.1%}."
        for own in summary["curves"]
    ]


def table(summary: Mapping[str, Any]) -> Table:
    """Columns and rows of a shrink-only summary's table, a row a curve."""
    return ["network", "seeds", "test accuracy", "holds from shrink"], [
        [
            title(own["network"], own["evaluation"]),
            str(own["accuracy"]["seeds"]),
            f"{own['accuracy']['mean']:.2%}",
            _told(own["holds_from"]),
        ]
        for own in summary["curves"]
    ]


def came(curves: Sequence[Curve]) -> str:
    """What a caption says came out."""
    values = [
        f"{_short(own['network'], own['evaluation'])} {own['holds_from']['mean']:.2f}"
        for own in summarize([], {}, curves)["curves"]
    ]
    return f"The smallest shrink down to which at most a point is lost: {'; '.join(values)}."


def _short(network: str, evaluation: str) -> str:
    """A curve's name in a line that has many."""
    return f"ResNet-18 {EVALUATIONS[evaluation]}" if network == "resnet18" else LABELS[network].removeprefix("MLP, ")


def _told(value: Mapping[str, Any]) -> str:
    bounds = {} if value["low"] is None else {"low": max(value["low"], 0), "high": min(value["high"], 1)}
    return with_bounds({**value, **bounds}, ".2f")
