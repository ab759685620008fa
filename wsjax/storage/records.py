"""A run's folder: config.json, records.jsonl (a row an epoch), summary.json. Standard library only.

Every write is whole or not at all: JSON files are replaced, rows are appended as whole lines with one write, and a
last line that a crash cut short is no row.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.storage.rows import Row

CONFIG, RECORDS, SUMMARY, LOCK = "config.json", "records.jsonl", "summary.json", "lock"
BEFORE = {"precision": "float32"}
"""Settings that runs did not always have, with what they were before."""
PACKAGES = ("wsjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunRecords(NamedTuple):
    """What a run's folder holds; summary is None while the run is unfinished."""

    config: dict[str, Any]
    rows: list[Row]
    summary: dict[str, Any] | None


class Records:
    """The rows of a run, in memory and, where a path is given, in that file too."""

    def __init__(self, path: Path | str | None = None):
        path = None if path is None else Path(path)
        self.path = path
        self.rows: list[Row] = read_rows(path) if path is not None and path.exists() else []
        if path is not None and path.exists():
            self.keep(lambda row: True)  # mends a last line that was cut short

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows; they are on the disk when it returns."""
        if self.path is not None and rows:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                _write_all(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.rows.extend(rows)

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows that are not wanted."""
        self.rows = [row for row in self.rows if wanted(row)]
        if self.path is None:
            return
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text)


@contextlib.contextmanager
def open_run(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Records]:
    """Holds a run's folder, new or to be continued, and yields its records.

    Args:
      folder: the run's folder; made where it is missing.
      settings: all that decides the results, JSON values. A folder that holds a run of other settings is refused.
      about: what else config.json tells (versions, devices); kept as the run's first start had it.

    Raises:
      RunError: the folder holds another run, another process works in it, or it cannot be written.
    """
    with hold(folder):
        settings = json.loads(json.dumps(settings))
        path = folder / CONFIG
        if path.exists():
            _check_same(folder, read_json(path).get("config", {}), settings)
        elif (folder / RECORDS).exists():
            raise RunError(f"{folder} has {RECORDS} but no {CONFIG}: not a run of this program; choose another --run")
        else:
            write_json(path, {**about, "config": settings})
        yield Records(folder / RECORDS)


def follow_run(folder: Path) -> Records:
    """The records of a run that another process writes: its rows so far, and from now on this process's own copy."""
    records = Records()
    records.rows = read_run(folder).rows
    return records


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a folder, made where it is missing, against other processes.

    The system frees it when its holder ends, however it ends. Raises RunError where another process, which is named,
    holds it, or where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RunError(f"{folder} is in use by {holder}; wait for it, or choose another folder") from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        lock.flush()
        yield


def read_run(folder: Path | str) -> RunRecords:
    """Reads a run's folder, finished or not. Raises RunError where it is none."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run's folder: it has no {CONFIG}")
    rows = read_rows(folder / RECORDS) if (folder / RECORDS).exists() else []
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else None
    return RunRecords(read_json(folder / CONFIG), rows, summary)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that two runs differ in: their values there, by name."""
    pairs = {name: (one.get(name, BEFORE.get(name)), other.get(name, BEFORE.get(name))) for name in {**one, **other}}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def read_rows(path: Path) -> list[Row]:
    """Reads a file of rows. A last line that was cut short is left out; any other bad line raises RunError."""
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(_object(line))
        except ValueError as error:
            raise RunError(f"{path}, line {number}, is damaged: {error}; mend or remove the line") from error
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises RunError where the file is damaged."""
    try:
        return _object(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replaces a file's text, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb", buffering=0) as file:
            _write_all(file, text.encode())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def about_run(experiment: str, devices: Iterable[str]) -> dict[str, Any]:
    """Says what runs: the experiment, the versions of its packages, the devices, the host and the git commit."""
    return {
        "experiment": experiment,
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": list(devices),
        "host": socket.gethostname(),
        "git_commit": _git_commit(),
    }


def _object(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"no JSON object but {value!r:.40}")
    return value


def _write_all(file: Any, data: bytes) -> None:
    """Writes all bytes, or takes back what was written: a full disk leaves no half line behind."""
    start = file.tell()
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise


def _check_same(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if differ := [f"{name} {there} there, {here} here" for name, (there, here) in differing(stored, given).items()]:
        raise RunError(f"{folder} holds a run of other settings ({'; '.join(differ)}); name a new one with --run=NAME")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the code that runs, with "+" where the files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
