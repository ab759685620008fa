"""Data files that keep coming: all of them as one pool, each image once, some held out for good.

Whether an image is held out is decided by a hash of its content, so that it stays so as data grow, in whatever file it
comes.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.data.datasets import read_images
from wsjax.errors import DataError
from wsjax.storage.rows import Row

Data = tuple[np.ndarray, np.ndarray]
"""(images, labels)."""

_LEAST = {False: 2, True: 1}  # images to train on (BatchNorm has no variance over one), and held out


class _OtherSize(DataError):
    """A file's images are not of the size of the others."""


class Pool(NamedTuple):
    """All images there are, each once.

    Attributes:
      train: (images, labels) to train on.
      held_out: (images, labels) to evaluate on.
      class_names: one name a class.
      files: a row a data file: path, sha256, images.
      samples: uint64 [N], sorted: a hash of each image with its label.
    """

    train: Data
    held_out: Data
    class_names: tuple[str, ...]
    files: list[Row]
    samples: np.ndarray


def read_pool(
    patterns: Sequence[str],
    known: Sequence[Row],
    base: Mapping[str, Any] | None,
    holdout: float,
    say: Callable[[str], None],
) -> Pool | None:
    """Reads all data files there are: known ones in their order, then new ones, by name.

    A file that cannot be used is left out and told. An image that comes twice counts once; where its labels differ, the
    last one holds, so that a later file can correct an earlier one.

    Args:
      patterns: files or globs.
      known: a row a file that earlier models were trained on: path, sha256, images.
      base: what must be kept, the lineage of the model to go on from: class_names, image_shape; None for the first.
      holdout: fraction of the images to hold out.
      say: takes a line for every decision that the user should know of.

    Returns:
      The pool; None where known files are all that was asked for, and they are gone.

    Raises:
      DataError: a file that is named does not exist and is not known, there is no image, or there are too few.
    """
    old = {Path(row["path"]): row for row in known}
    files = _in_order(patterns, old, say)
    images: dict[bytes, np.ndarray] = {}
    labels: dict[bytes, int] = {}
    class_names = tuple(base["class_names"]) if base else ()
    shape = tuple(base["image_shape"]) if base else None
    rows, duplicates, corrected = [], 0, 0
    for path in files:
        try:
            sha256 = _sha256(path)
            if path in old and old[path]["sha256"] != sha256:
                say(f"{path} changed since it was trained on: its present images count")
            read = read_images(path)
            if shape is not None and read.images.shape[1:] != shape:
                where = "the model's are" if base else f"{files[0]} has"
                raise _OtherSize(f"{path}: images of {read.images.shape[1:]} where {where} {shape}")
            class_names = _merge_classes(class_names, read.class_names, set(read.labels.tolist()), path)
        except DataError as error:
            if base is None and isinstance(error, _OtherSize):
                raise  # which of two sizes is meant is the user's to say
            say(f"left out: {error}")
            rows += [old[path]] if path in old else []
            continue
        shape = read.images.shape[1:]
        rows.append({"path": str(path), "sha256": sha256, "images": len(read.labels)})
        for image, label in zip(read.images, read.labels.tolist(), strict=True):
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in images:
                duplicates += 1
                corrected += labels[digest] != label
            images[digest], labels[digest] = image, label
    if not images:
        if known:
            return None
        raise DataError(f"there is no image to train on: {len(files)} files for {', '.join(patterns) or 'no pattern'}")
    if duplicates:
        mended = f"; {corrected} with another label, of which the last holds" if corrected else ""
        say(f"{duplicates} images came more than once and count once{mended}")
    if base and len(class_names) > len(base["class_names"]):
        say(f"new classes: {', '.join(class_names[len(base['class_names']) :])}")
    return _split(images, labels, class_names, rows, holdout)


def is_held_out(digest: bytes, holdout: float) -> bool:
    """Whether an image is held out, by the SHA-256 of its pixels: a fraction `holdout` of all images is."""
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def _in_order(patterns: Sequence[str], old: Mapping[Path, Row], say: Callable[[str], None]) -> list[Path]:
    """The files there are: known ones at their old place, also where they have moved, then new ones by name."""
    matched = sorted({Path(path).absolute() for pattern in patterns for path in _expand(pattern, old)} - set(old))
    new = []
    for path in matched:
        if path.is_file():
            new.append(path)
        else:
            say(f"left out: {path} is no file")
    gone = {path for path in old if not path.is_file()}
    moved: dict[str, Path] = {}
    if gone:
        for path in new:
            with contextlib.suppress(DataError):
                moved.setdefault(_sha256(path), path)
    known = []
    for path, row in old.items():
        place = moved.get(row["sha256"]) if path in gone else path
        if place is None:
            say(f"{path} is gone: its {row['images']} images are no longer trained on")
        elif place not in known:
            known.append(place)
            if place != path:
                say(f"{path} is now {place}")
    return [*known, *(path for path in new if path not in known)]


def _expand(pattern: str, old: Mapping[Path, Row]) -> Iterable[str]:
    """The files that a glob matches; a plain path must exist, now or earlier."""
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    if not found and not glob.has_magic(pattern) and Path(pattern).expanduser().absolute() not in old:
        raise DataError(f"no such data file: {pattern}")
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _merge_classes(
    known: tuple[str, ...], names: tuple[str, ...] | None, labels: set[int], path: Path
) -> tuple[str, ...]:
    """The classes known after a file. Its names must go on where the known ones end; a number stands for no name yet.

    Labels of a file without names must go on without a gap: a gap is most likely a mistake.
    """
    if names is None:
        new = sorted(label for label in labels if label >= len(known))
        if new != list(range(len(known), len(known) + len(new))):
            raise DataError(
                f"{path}: the label {new[-1]} where {len(known)} classes are known leaves a gap; number the classes "
                "from 0 on without one, or add class_names"
            )
        return known + tuple(map(str, new))
    if len(set(names)) < len(names):
        raise DataError(f"{path}: class_names has a name twice: {', '.join(names)}")
    merged = [*known, *names[len(known) :]]
    for number, name in enumerate(names):
        if merged[number] not in (name, str(number)):
            raise DataError(f"{path}: class_names {', '.join(names)} are not those of the model, {', '.join(known)}")
        merged[number] = name
    return tuple(merged)


def _split(
    images: Mapping[bytes, np.ndarray],
    labels: Mapping[bytes, int],
    class_names: tuple[str, ...],
    files: list[Row],
    holdout: float,
) -> Pool:
    """Parts the images into those to train on and those held out, in the order of their hashes."""
    parts: list[Data] = []
    for held_out in (False, True):
        own = sorted(digest for digest in images if is_held_out(digest, holdout) == held_out)
        if len(own) < _LEAST[held_out]:
            what = "held out" if held_out else "to train on"
            raise DataError(
                f"of {len(images)} images {len(own)} are {what}, {_LEAST[held_out]} must be; "
                f"give more images, or another --holdout than {holdout:g}"
            )
        parts.append((np.stack([images[digest] for digest in own]), np.array([labels[digest] for digest in own])))
    marks = [hashlib.sha256(digest + str(label).encode()).digest()[:8] for digest, label in labels.items()]
    samples = np.sort(np.frombuffer(b"".join(marks), np.uint64))
    return Pool(parts[0], parts[1], class_names, files, samples)
