"""A run's folder: config.json, records.jsonl (a row an epoch), summary.json. Loads no jax.

Every write is whole or not at all: JSON files are replaced, rows are appended as whole lines with one write, and a
last line that a crash cut short is no row. What was changed since it was written is refused, and no row is ever lost:
one that is dropped is set aside. Reading writes nothing: a file may be another program's, or read-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.storage.files import append_whole, parse, read_json, user_path, write_json, write_whole
from wsjax.storage.lock import hold
from wsjax.storage.rows import CRC, FIELDS, MEND, Key, Row, check_row, key_of, name_of

CONFIG, RECORDS, SUMMARY = "config.json", "records.jsonl", "summary.json"
DROPPED = ".dropped"
"""Behind the name of a file of rows: the file of those that were dropped from it."""

DATA = "data"
"""The setting that holds the digest of a run's data."""

BEFORE = {
    "precision": "float32",
    "augment": False,
    "bias": True,
    "conv_init": "report",
    "warmup": 0,
    "train_accuracy": "running",
    "fresh": "new",
    "at_once": False,
    "gaussian_shrink": 0.3,
    "gaussian_std": 0.01,
    "dash_shrink": 0.3,
    "dash_decay": 0.3,
    "dash_chunk": 1000,
    "fire_steps": 10,
    "warmup_share": 0.0,
    "schedule": "constant",
    "milestones": [],
    "rate_decay": 0.1,
    "label_noise": 0.0,
    "l2_init": 0.001,
    "l2_decoupled": False,
    "tortoise": 0.999,
    "tortoise_every": 10,
    "rescaling": 0.0001,
    "head_rescaling": None,
    "own_first": False,
    "probes": [],
}
"""Settings that runs did not always have, with what they were before; one that is not named here was None."""

_ABOUT = {"experiment": str, "versions": dict, "devices": list, "host": str, "git_commit": str}


class RunRecords(NamedTuple):
    """What a run's folder holds, and where that is; summary is None while the run is unfinished."""

    config: dict[str, Any]
    rows: list[Row]
    summary: dict[str, Any] | None
    folder: Path = Path()


class Records:
    """The rows of a run, in memory and, where a path is given, in that file too.

    Attributes:
      path: the file, made with the first row.
      rows: the rows so far. They change by `append` and `keep` only.
    """

    def __init__(self, path: Path | str | None = None, rows: Iterable[Row] = ()):
        self.path = None if path is None else user_path(path).absolute()
        self.rows: list[Row] = list(rows)
        self._size: int | None = None  # that of the file's whole rows; None where there is no file
        self._cut = 0  # bytes behind them: a row that was cut short
        self._made = self.path is None or self.path.parent.is_dir()
        if self.path is not None and os.path.lexists(self.path):
            self.rows, self._size, self._cut = _read_rows(self.path)
        # By method and seed, then round and epoch: a run may have a million rows, and hundreds of legs ask for theirs.
        self._curves: dict[tuple[str, int], dict[tuple[int, int], Row]] = {}
        self._index(self.rows)

    def of(self, method: str, seed: int) -> list[Row]:
        """The rows of a method and seed, in their order; not to be changed."""
        return list(self._curves.get((method, seed), {}).values())

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows; they are on the disk when it returns.

        Raises:
          RunError: a row has a value that no reader would take, or is there already; the file is gone, or was changed
            by another process. No row is added then.
          OSError: the disk takes no more. No row is added then.
        """
        keys: set[Key] = set()
        for row in rows:
            try:
                check_row(row)
            except ValueError as error:
                place = ", ".join(f"{name} {row.get(name)!r:.40}" for name in ("method", "seed", "round", "epoch"))
                raise RunError(f"a row cannot be recorded: {error} ({place})") from error
            at = self._curves.get((row["method"], row["seed"]), {})
            if (row["round"], row["epoch"]) in at or key_of(row) in keys:
                raise RunError(f"a row cannot be recorded: there is one already ({name_of(row)})")
            keys.add(key_of(row))
        if self.path is not None and rows:
            # A folder that was there and is no more was removed by someone: it is not made anew.
            if not self._made:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._made = True
            self._remove_cut()
            self._size = append_whole(self.path, _lines(rows), self._size)
        self.rows.extend(rows)
        self._index(rows)

    def keep(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """Drops the rows that are not wanted, and returns them.

        Those of a file are set aside, at the end of another one with `DROPPED` behind its name.
        """
        kept = [row for row in self.rows if wanted(row)]
        dropped = [row for row in self.rows if not wanted(row)]
        if dropped and self.path is not None:
            self.check_same()
            aside = self.path.with_name(self.path.name + DROPPED)
            append_whole(aside, _lines(dropped), aside.stat().st_size if aside.exists() else None)
            text = _lines(kept)
            write_whole(self.path, text.decode())
            self._size, self._cut = len(text), 0
        if dropped:
            self.rows, self._curves = kept, {}
            self._index(kept)
        return dropped

    def check_same(self) -> None:
        """Raises RunError where the file is not as this process read or left it."""
        if self.path is None:
            return
        size = self.path.stat().st_size if self.path.exists() else None
        if size != (None if self._size is None else self._size + self._cut):
            raise RunError(f"{self.path} was removed or changed while this process was working with it; start again")

    def _remove_cut(self) -> None:
        """Takes a last row that was cut short out of the file, for one is to be written in its place."""
        if self.path is not None and self._size is not None and self._cut:
            self.check_same()
            os.truncate(self.path, self._size)
            self._cut = 0

    def _index(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._curves.setdefault((row["method"], row["seed"]), {})[row["round"], row["epoch"]] = row


@contextlib.contextmanager
def open_run(folder: Path | str, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Records]:
    """Holds a run's folder, new or to be continued, and yields its records.

    Args:
      folder: the run's folder; made where it is missing.
      settings: all that decides the results, JSON values; `DATA` among them is the digest of the data (`data_digest`).
        A folder that holds a run of other settings, or on other data, is refused.
      about: what else config.json tells (versions, devices); kept as the run's first start had it.

    Raises:
      RunError: the folder holds another run, another process works in it, or it cannot be written.
    """
    folder = user_path(folder)
    with hold(folder):
        check_run(folder, settings)
        if not (folder / CONFIG).exists():
            if (folder / RECORDS).exists():
                raise RunError(
                    f"{folder} has {RECORDS} but no {CONFIG}: not a run of this program; choose another --run"
                )
            write_json(folder / CONFIG, {**about, "config": settings})
        yield Records(folder / RECORDS)


def check_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises RunError where a folder holds a run of other settings, or on other data; it need not be there."""
    if (folder / CONFIG).exists():
        _check_same(folder, read_config(folder)["config"], json.loads(json.dumps(settings)))


def follow_run(folder: Path | str) -> Records:
    """The records of a run that another process writes: its rows so far, and from now on this process's own copy."""
    return Records(rows=read_run(folder).rows)


def read_run(folder: Path | str) -> RunRecords:
    """Reads a run's folder, finished or not. Raises RunError where it is none, or damaged."""
    folder = user_path(folder)
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run's folder: it has no {CONFIG}")
    rows = read_rows(folder / RECORDS) if (folder / RECORDS).exists() else []
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else None
    return RunRecords(read_config(folder), rows, summary, folder)


def setting(settings: Mapping[str, Any], name: str) -> Any:
    """A run's setting; one that it lacks is what `BEFORE` says."""
    return settings.get(name, BEFORE.get(name))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that two runs differ in: their values there, by name.

    The data of a run that does not tell them are taken to be the same.
    """
    names = [name for name in {**one, **other} if name != DATA or (name in one and name in other)]
    pairs = {name: (setting(one, name), setting(other, name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def read_rows(path: Path | str) -> list[Row]:
    """Reads a file of rows.

    A last line that was cut short is left out. Any other line that is no row, was changed, or repeats another's
    method, seed, round and epoch raises RunError, which names it; so does a file that does not begin as one of rows.
    """
    return _read_rows(user_path(path))[0]


def _read_rows(path: Path) -> tuple[list[Row], int, int]:
    """The rows of a file, where the last whole line ends, and how many bytes of one that was cut short follow."""
    rows: list[Row] = []
    lines: dict[Key, int] = {}
    whole = cut = 0
    try:
        with path.open("rb") as file:  # line by line: a million take 300 MB
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    cut = len(line)
                    if not rows and not _is_cut_row(line):
                        raise RunError(_foreign(path, "its only line is none that this program began"))
                    break
                try:
                    row = _read_row(line[:-1])
                    if (first := lines.setdefault(key_of(row), number)) != number:
                        raise ValueError(f"line {first} has {name_of(row)} already")
                except ValueError as error:
                    if not rows and not _begins_like_row(line):
                        raise RunError(_foreign(path, f"in line 1, {error}")) from error
                    raise RunError(f"{path}, line {number}, is damaged: {error}; {MEND}") from error
                rows.append(row)
                whole += len(line)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    return rows, whole, cut


def _begins_like_row(line: bytes) -> bool:
    """Whether a line, or as much as there is of it, begins as every row that was ever written does."""
    return line.startswith(_BEGIN) or _BEGIN.startswith(line)


def _is_cut_row(line: bytes) -> bool:
    """Whether a line without an end is what a crash left of a row: another program's JSON object is whole."""
    if not _begins_like_row(line):
        return False
    try:
        fields = parse(line.decode())
    except ValueError:
        return True
    return FIELDS.keys() <= fields.keys()


def _foreign(path: Path, reason: str) -> str:
    return f"{path} is no file of records ({reason}): give another name, or restore it from a copy where it was one"


def _read_row(line: bytes) -> Row:
    """Reads a row of a file, without its checksum, which rows of earlier versions lack. Raises ValueError."""
    row = parse(line.decode())
    if CRC in row:
        written = row.pop(CRC)
        # Most lines are as they were written, which is told without writing their values again; one that was only laid
        # out anew is as good.
        if line != _sealed(line[:-_SEAL]) and written != _crc(_body(row)):
            raise ValueError("it was changed after it was written")
    check_row(row)
    return row


def _lines(rows: Iterable[Row]) -> bytes:
    """Rows as their file has them."""
    return b"".join(_sealed(_body(row)) + b"\n" for row in rows)


_ENCODE = json.JSONEncoder(allow_nan=False).encode


def _body(row: Row) -> bytes:
    """A row's JSON up to its closing brace, where the checksum goes."""
    return _ENCODE(row)[:-1].encode()


def _crc(body: bytes) -> str:
    return f"{zlib.crc32(body):08x}"


def _sealed(body: bytes) -> bytes:
    return b'%s, "%s": "%s"}' % (body, CRC.encode(), _crc(body).encode())


_SEAL = len(_sealed(b""))
_BEGIN = _body({"method": ""})[:-1]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a run's folder, and checks what is read of it. Raises RunError where it is damaged."""
    path = folder / CONFIG
    config = read_json(path)
    for name, kind in {"config": dict, **_ABOUT}.items():
        if not isinstance(config.get(name), kind) and (name == "config" or config.get(name) is not None):
            raise RunError(f"{path} is damaged: {name} is {config.get(name)!r:.40}, not a {kind.__name__}")
    return config


def _check_same(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differ = differing(stored, given)
    if words := [
        f"{name} {_short(there)} there, {_short(here)} here" for name, (there, here) in differ.items() if name != DATA
    ]:
        raise RunError(f"{folder} holds a run of other settings ({'; '.join(words)}); name a new one with --run=NAME")
    if differ:
        raise RunError(
            f"{folder} holds a run on other data: they have changed under the same name since it began; "
            "bring the old ones back to continue it, or name a new run with --run=NAME"
        )


def _short(value: Any) -> str:
    """A setting's value, its middle left out where it is long."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:50]}...{text[-25:]}"
