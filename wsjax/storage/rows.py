"""What a run's rows are: an epoch each, with the names that everything else goes by. Standard library only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from wsjax.errors import RunError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Row = dict[str, Any]
Key = tuple[str, int, int, int]
"""What no two rows of a run share: (method, seed, round, epoch)."""

FIRST = "first"
"""The method that rows of the rounds name which all methods share, by default the first."""

CAP = "epochs"
"""The reason to stop that says the number of epochs ran out."""

DIVERGED = "diverged"
"""The reason to stop that says a loss or a score was not finite; the row has None in its place."""

CRC = "crc"
"""The field that a row has in its file only: a checksum of its others."""

MEND = "restore the file from a copy, or remove this line and all after it, which are then trained again"
"""What to do about a line that is no row."""

OTHER_RUN = "give another file for another run"
"""What to do about a row that is as good as any, but not of this run."""

_LARGEST = sys.float_info.max  # a number above it, infinity, is not finite; NaN lies in no range
_COUNT = 2**63 - 1


class Field(NamedTuple):
    """What a field of a row may hold.

    Attributes:
      kind: str (not empty), int or float (which an int may stand for).
      low: the smallest number, of `unit`.
      high: the largest.
      unit: what its numbers count or measure.
      optional: whether it may be None.
    """

    kind: type
    low: float = -_LARGEST
    high: float = _LARGEST
    unit: str = ""
    optional: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the field may hold a value."""
        if value is None:
            return self.optional
        if self.kind is str:
            return isinstance(value, str) and value != ""
        numbers = int if self.kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def wanted(self) -> str:
        """What it may hold, in words."""
        what = {str: "a text", int: "an integer", float: "a finite number"}[self.kind]
        if self.low in (0, 1):
            what += f" of {self.low:g} or more"
        if self.unit:
            what += f" ({self.unit})"
        return what + " or null" * self.optional


FIELDS: dict[str, Field] = {
    "method": Field(str),
    "seed": Field(int, -_COUNT, _COUNT),
    "round": Field(int, 1, _COUNT),
    "epoch": Field(int, 1, _COUNT, "epochs of the round"),
    "samples": Field(int, 1, _COUNT, "samples that the round trains on"),
    "steps": Field(int, 0, _COUNT, "steps since the round began"),
    "samples_seen": Field(int, 0, _COUNT, "samples since the round began"),
    # A user's own score may be any finite number; of a classifier, it is the share that is right, in [0, 1].
    "train_accuracy": Field(float, optional=True),
    "train_loss": Field(float, optional=True),
    "test_accuracy": Field(float, optional=True),
    "test_loss": Field(float, optional=True),
    "stop": Field(str, optional=True),
    "train_seconds": Field(float, 0, unit="seconds"),
    "eval_seconds": Field(float, 0, unit="seconds"),
}
"""The fields that every row has. `stop` is why the round ended with this epoch; None stands for a test that was not
due, and for a loss or a score that was not finite."""

MORE = Field(float, optional=True)
"""What a row's further fields hold, which probes add."""


# A million rows are checked whenever they are read: what nearly all values are is told without a call.
_CHECKS = [
    (name, field, {int: (int,), float: (int, float), str: ()}[field.kind], field.low, field.high)
    for name, field in FIELDS.items()
]


def key_of(row: Row) -> Key:
    """What tells a row from all others of its run."""
    return row["method"], row["seed"], row["round"], row["epoch"]


def name_of(row: Row) -> str:
    """A row's place in words."""
    return f"{row['method']}, seed {row['seed']}, round {row['round']}, epoch {row['epoch']}"


def check_row(row: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the field, where a row's fields are not those of `FIELDS` and `MORE`.

    A train loss or accuracy is None in a row whose round diverged, and in no other.
    """
    for name, field, plain, low, high in _CHECKS:
        value = row.get(name)
        if type(value) in plain and low <= value <= high:  # type: ignore[operator]
            continue
        if name not in row:
            raise ValueError(f"it has no field '{name}', {field.wanted}")
        if not field.holds(value):
            raise ValueError(f"{name} is {value!r:.40}; it must be {field.wanted}")
    for name in ("train_loss", "train_accuracy"):
        if row[name] is None and row["stop"] != DIVERGED:
            raise ValueError(f"{name} is None; it must be a finite number, unless stop is {DIVERGED!r}")
    if len(row) == len(FIELDS):
        return
    for name, value in row.items():
        if name not in FIELDS and (name == CRC or not MORE.holds(value)):
            raise ValueError(f"{name:.40} is {value!r:.40}; a further field must be {MORE.wanted}")


def check_rows(
    rows: Sequence[Row], methods: Mapping[str, range], seeds: Collection[int], source: object = "the records"
) -> None:
    """Checks that rows are those of a run: every round's epochs in their order, without a hole.

    Args:
      rows: each of them is a row (`check_row`), in the order of their lines.
      methods: the rounds of each method, `FIRST` among them: `{"first": range(1, 2), "RI": range(2, 4)}`.
      seeds: the run's.
      source: where the rows come from, for the message.

    Raises:
      RunError: names the first line that does not belong there.
    """
    last: dict[tuple[str, int, int], Row] = {}
    lines: dict[tuple[str, int, int], int] = {}
    for number, row in enumerate(rows, 1):
        method, seed, at, epoch = key_of(row)
        here, before = (method, seed, at), last.get((method, seed, at))
        lines.setdefault(here, number)
        due = 1 if before is None else before["epoch"] + 1
        reason = None
        if method not in methods:
            reason = f"its methods are {', '.join(methods)}"
        elif seed not in seeds:
            reason = f"its seeds are {', '.join(map(str, seeds))}"
        elif at not in methods[method]:
            begin, end = methods[method].start, methods[method].stop - 1
            reason = f"{method} has " + (f"rounds {begin} to {end}" if begin < end else f"round {begin} only")
        elif before is not None and before["stop"]:
            reason = f"round {at} ended with epoch {before['epoch']}"
        elif epoch != due:
            reason = f"round {at}, epoch {due} should come here"
        if reason is not None:
            raise _stranger(row, number, reason, source)
        last[here] = row
    for (method, seed, at), row in last.items():
        before = last.get((method, seed, at - 1))
        if at > methods[method].start and not (before and before["stop"]):
            reason = f"round {at - 1} should have ended first"
            raise _stranger(row, lines[method, seed, at], reason, source)


def _stranger(row: Row, number: int, reason: str, source: object) -> RunError:
    mend = f"{OTHER_RUN}; where this one is damaged, {MEND}"
    return RunError(f"{source}, line {number}, does not belong to this run ({name_of(row)}): {reason}; {mend}")


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by a key, in their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def round_ends(rows: Sequence[Row]) -> list[Row]:
    """How each method and seed ended each of its rounds: the round's last row, with the seconds of all its epochs."""
    seconds: dict[tuple[str, int, int], list[float]] = {}
    ends = []
    for row in rows:
        total = seconds.setdefault((row["method"], row["seed"], row["round"]), [0.0, 0.0])
        total[0] += row["train_seconds"]
        total[1] += row["eval_seconds"]
        if row["stop"]:
            end = dict(row)
            end["epochs"] = end.pop("epoch")
            ends.append(end | {"train_seconds": round(total[0], 3), "eval_seconds": round(total[1], 3)})
    return ends
