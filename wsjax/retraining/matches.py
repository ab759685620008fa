"""Which data files there are: those that patterns match, and those that are known, each once.

Only what is not there is gone. A file that cannot be looked at for the moment, for want of rights or on a disk that
does not answer, counts as there: reading it says what is amiss.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path

from wsjax.data.sources import expand_user, reason
from wsjax.errors import DataError
from wsjax.storage.rows import Row

TOLD = 20
"""Files of one kind that are told of, each in a line."""


def matched(
    patterns: Sequence[str], old: Mapping[Path, Row], tell: Callable[[str], None]
) -> tuple[set[Path], list[str]]:
    """The files that patterns match, and the patterns that match none: where all do, that is an error.

    Args:
      patterns: files, folders of images, or globs.
      old: what is known of the files of earlier calls, by their paths.
      tell: takes a line for each pattern that matches none.

    Raises:
      DataError: no pattern matches a file, one is empty, or one without a wildcard names what is not there.
    """
    found = {pattern: _expand(pattern, old) for pattern in patterns}
    empty = {pattern: f"{pattern}{_unlisted(pattern)}" for pattern, paths in found.items() if not paths}
    if empty and len(empty) == len(found):
        raise DataError(f"there is no image to train on: no file matches {', '.join(empty.values())}")
    for pattern in empty.values():
        tell(f"no file matches {pattern}")
    return {path for paths in found.values() for path in paths}, list(empty)


def in_order(
    present: Set[Path], old: Mapping[Path, Row], hashed: Callable[[Path], str], tell: Callable[[str], None]
) -> list[Path]:
    """The files there are: known ones at their old place, also where they have moved, then new ones by name.

    Args:
      present: files that patterns match.
      old: what is known of the files of earlier calls, by their paths.
      hashed: gives the hash that a file's row has, or raises DataError.
      tell: takes a line for each known file that is gone, or has moved.
    """
    paths = _each_once([*old, *sorted(present - set(old))], old)
    new = [path for path in paths if path not in old]
    gone = {path for path in old if is_gone(path)}
    moved: dict[str, Path] = {}
    if gone:
        for path in new:
            with contextlib.suppress(DataError):
                moved.setdefault(hashed(path), path)
    known: dict[Path, None] = {}
    missing: list[Path] = []
    for path in (path for path in paths if path in old):
        row = old[path]
        place = moved.get(row["sha256"]) if path in gone else path
        if place is None:
            missing.append(path)
            if len(missing) <= TOLD:
                tell(f"{path} is gone: its {row['images']} images are no longer trained on")
        elif place not in known:
            known[place] = None
            if place != path:
                tell(f"{path} is now {place}")
    if more := missing[TOLD:]:
        images = sum(old[path]["images"] for path in more)
        tell(f"{len(more):,} more files are gone: their {images} images are no longer trained on")
    return list(dict.fromkeys([*known, *new]))


def is_gone(path: Path) -> bool:
    """Whether there is nothing of this name, not even a link."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a folder above it is closed, or its disk does not answer
        return False
    return False


def one_spelling(path: str | Path) -> Path:
    """The path without "." and "..", so that a file is one however it is written.

    Behind a link ".." leads elsewhere than its letters say: there the path stays as it is.
    """
    plain = Path(os.path.abspath(path))
    same = os.path.lexists(plain) and os.path.realpath(plain) == os.path.realpath(path)
    return plain if same or not os.path.lexists(path) else Path(path).absolute()


def _expand(pattern: str, old: Mapping[Path, Row]) -> list[Path]:
    """The path itself where it exists or is known, whatever brackets it holds; else the files that a glob matches."""
    if not pattern.strip():  # an unset variable of a shell, which is not the present folder
        raise DataError("--data has an empty name; it takes files, folders and patterns such as 'incoming/*.npz'")
    path = expand_user(pattern).absolute()
    one = one_spelling(path)
    if one in old or os.path.lexists(path):
        return [one]
    if not glob.has_magic(pattern):
        if is_gone(path):
            raise DataError(f"no such data file: {pattern}")
        return [one]
    whole = _whole(pattern)
    found = [one_spelling(path) for path in glob.glob(whole, recursive=True)]
    plain = os.path.normpath(whole.replace("**/", "*"))
    # A folder that cannot be listed hides its files: those that are known to be there are matched all the same.
    return found or [path for path in old if fnmatch.fnmatchcase(str(path), plain) and not is_gone(path)]


def _whole(pattern: str) -> str:
    """The glob from the root on. The folders that the user did not write may hold brackets, which are no glob's."""
    path = expand_user(pattern).absolute()
    written = Path(pattern).parts[pattern.startswith("~") :]
    folders = path.parts[: len(path.parts) - len(written)]
    return os.path.join(glob.escape(os.path.join("", *folders)), *written)


def _unlisted(pattern: str) -> str:
    """Why the folder that a glob looks into cannot be listed, to be added to a message; "" where it can, or is gone."""
    path = expand_user(pattern).absolute()
    written = Path(pattern).parts
    first = next((number for number, part in enumerate(written) if glob.has_magic(part)), len(written))
    folder = Path(*path.parts[: len(path.parts) - len(written) + first])
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f" (cannot read {folder}: {reason(error)})"
    return ""


def _each_once(paths: Iterable[Path], old: Mapping[Path, Row]) -> list[Path]:
    """The paths, in their order, without those that lead by links to a file that another one has.

    Known ones are kept, else those that are no link, else the shortest: a link to a folder above itself gives a file
    any number of paths.
    """
    paths = list(paths)
    best = sorted(paths, key=lambda path: (path not in old, os.path.islink(path), len(path.parts), path))
    own: dict[str, Path] = {}
    for path in best:
        own.setdefault(os.path.realpath(path), path)
    kept = set(own.values())
    return [path for path in paths if path in kept]
