"""What a run's rows are: an epoch each, with the names that everything else goes by. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

FIRST = "first"
"""The method that rows of the common first round name."""

CAP = "epochs"
"""The reason to stop that says the number of epochs ran out."""


def round_ends(rows: Sequence[Row]) -> list[Row]:
    """How each method and seed ended each of its rounds: the round's last row, with the seconds of all its epochs.

    Fields that are no single value, such as a list, stay with the epochs.
    """
    seconds: dict[tuple[str, int, int], list[float]] = {}
    ends = []
    for row in rows:
        total = seconds.setdefault((row["method"], row["seed"], row["round"]), [0.0, 0.0])
        total[0] += row["train_seconds"]
        total[1] += row["eval_seconds"]
        if row["stop"]:
            end = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
            end |= {"epochs": end.pop("epoch")}
            ends.append(end | {"train_seconds": round(total[0], 3), "eval_seconds": round(total[1], 3)})
    return ends
