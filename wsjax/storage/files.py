"""Files that are whole or not there, and that tell whether they were changed. Standard library only.

JSON files are replaced, lines are appended with one write. A JSON file carries a digest of its values, so that one
that was changed is not taken for what was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wsjax.errors import RunError, UsageError

DIGEST = "digest"
"""The field that a JSON file has on the disk only: a hash of its others."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it: a leading ~ or ~NAME is a home. Raises UsageError where there is no such home."""
    if not os.fspath(path).startswith("~"):  # Path drops the ./ of "./~name", which means a folder of that name
        return Path(path)
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no home folder for {path.parts[0]}; write the folder in full") from error


def check_writable(path: Path) -> None:
    """Raises RunError where a file or folder, there or not, cannot be written."""
    there = next(place for place in (path, *path.parents) if os.path.exists(place) or place == place.parent)
    reason = None
    if there != path and not there.is_dir():
        reason = f"{there} is a file, not a folder"
    elif not os.access(there, os.W_OK):
        reason = f"{there} is read-only for this user"
    if reason is not None:
        raise RunError(f"cannot write {path}: {reason}; choose another place")


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON object, without its digest, which files of earlier versions lack.

    Raises RunError where it cannot be read, or is not what was written; where there is none, `missing` is what it
    gives, if that is given.
    """
    path = user_path(path)
    if missing is not None and not path.exists():
        return missing
    try:
        value = parse(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{path} cannot be read: {reason}; restore it from a copy") from error
    written = value.pop(DIGEST, None)
    if written is not None and written != _digest(value):
        raise RunError(f"{path} was changed after it was written; undo that, or restore it from a copy")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object and its digest, whole or not at all.

    Raises:
      RunError: a number is not finite: no reader would take it.
      OSError: it cannot be written; the message names the file.
    """
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except ValueError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    if DIGEST in plain:
        raise ValueError(f"a field cannot be named '{DIGEST}': {path}")
    write_whole(path, json.dumps({**plain, DIGEST: _digest(plain)}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replaces a file's text, whole or not at all. Raises OSError, which names the file."""
    path = user_path(path)
    with _named(path), replacing(path) as (part,):
        part.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Gives a path beside each to write to; what lies there takes their places, but where the block fails.

    It is on the disk before, so that no crash leaves a part of it in their places.
    """
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        yield parts
        for part in parts:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def append_whole(path: Path, data: bytes, size: int | None) -> int:
    """Appends bytes to a file, all or none, and returns its new size; they are on the disk then.

    Args:
      path: the file.
      data: what to append.
      size: the file's size as this process knows it; None where there is no file yet.

    Raises:
      RunError: the file is gone, or of another size: another process had its hand in it.
      OSError: the bytes cannot be written; the message names the file.
    """
    try:
        with _named(path), path.open("xb" if size is None else "r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != (size or 0):
                raise FileExistsError
            try:
                _write_all(file, data)
            except OSError:
                if size is None:
                    path.unlink(missing_ok=True)
                raise
            return (size or 0) + len(data)
    except FileNotFoundError as error:
        raise RunError(f"{path} or its folder was removed while this process was writing there") from error
    except FileExistsError as error:
        raise RunError(f"{path} was changed by another process while this one was writing there") from error


def parse(text: str) -> dict[str, Any]:
    """Reads a JSON object more strictly than `json`. Raises ValueError for all that no one here writes.

    That is NaN and the infinities, a name given twice, anything but an object, and what Python cannot hold.
    """
    try:
        value = _DECODE(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"no JSON object but {value!r:.40}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = {sys.intern(name): own for name, own in pairs}  # else a million rows would have their names a million times
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it gives {next(name for name in names if names.count(name) > 1)!r:.40} twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


_DECODE: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse).decode


def _digest(value: Mapping[str, Any]) -> str:
    """A hash of a JSON object's values: it stays when the file is only laid out anew."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _named(path: Path) -> Any:
    """Has an OSError name the file: one of a write does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


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
