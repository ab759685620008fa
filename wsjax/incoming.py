"""Data files that keep coming: all of them as one pool, each image once, some held out for good.

Whether an image is held out is decided by a hash of its content, so that it stays so as data grow, in whatever file it
comes.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.data import DataError, read_images
from wsjax.records import Row

Data = tuple[np.ndarray, np.ndarray]
"""(images, labels)."""

_LEAST = {False: 2, True: 1}  # images to train on (BatchNorm has no variance over one), and held out


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
    patterns: Sequence[str], known: Mapping[str, Any] | None, holdout: float, say: Callable[[str], None]
) -> Pool:
    """Reads all data files there are: those that a lineage knows, in its order, then new ones, by name.

    A file that cannot be read, or has images of another size, is left out and told. An image that comes twice counts
    once; where its labels differ, the last one holds, so that a later file can correct an earlier one.
    """
    old = {Path(row["path"]): row for row in known["files"]} if known else {}
    matched = sorted({Path(path).absolute() for pattern in patterns for path in _expand(pattern)} - set(old))
    present = {path: _sha256(path) for path in [*old, *matched] if path.is_file()}
    for path, row in old.items():
        if path not in present:
            moved = next((other for other, sha in present.items() if sha == row["sha256"] and other not in old), None)
            fate = f"now {moved}" if moved else f"gone: its {row['images']} images are no longer trained on"
            say(f"{path} is {fate}")
        elif present[path] != row["sha256"]:
            say(f"{path} changed since it was trained on: its present images count")

    images: dict[bytes, np.ndarray] = {}
    labels: dict[bytes, int] = {}
    class_names = tuple(known["class_names"]) if known else ()
    shape = tuple(known["image_shape"]) if known else None
    files, duplicates, corrected = [], 0, 0
    for path, sha256 in present.items():
        try:
            read = read_images(path)
            if shape is not None and read.images.shape[1:] != shape:
                raise DataError(f"{path}: images of {read.images.shape[1:]} where the model's are {shape}")
            class_names = _merge_classes(class_names, read.class_names, int(read.labels.max()), path)
        except DataError as error:
            say(f"left out: {error}")
            continue
        shape = read.images.shape[1:]
        files.append({"path": str(path), "sha256": sha256, "images": len(read.labels)})
        for image, label in zip(read.images, read.labels.tolist(), strict=True):
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in images:
                duplicates += 1
                corrected += labels[digest] != label
            images[digest], labels[digest] = image, label
    if duplicates:
        mended = f"; {corrected} with another label, of which the last holds" if corrected else ""
        say(f"{duplicates} images came more than once and count once{mended}")
    if known and len(class_names) > len(known["class_names"]):
        say(f"new classes: {', '.join(class_names[len(known['class_names']) :])}")
    if not images:
        raise DataError(
            f"there is no image to train on: {len(present)} files for {', '.join(patterns) or 'no pattern'}"
        )
    return _split(images, labels, class_names, files, holdout)


def is_held_out(digest: bytes, holdout: float) -> bool:
    """Whether an image is held out, by the SHA-256 of its pixels: a fraction `holdout` of all images is."""
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def _expand(pattern: str) -> Iterable[str]:
    """The files that a glob matches; a plain path must exist."""
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    if not found and not glob.has_magic(pattern):
        raise DataError(f"no such data file: {pattern}")
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _merge_classes(known: tuple[str, ...], names: tuple[str, ...] | None, highest: int, path: Path) -> tuple[str, ...]:
    """The classes known after a file: its names, if it has some, must go on where the known ones end."""
    if names is None:
        return known + tuple(map(str, range(len(known), highest + 1)))
    if all(name == str(number) for number, name in enumerate(known)):  # only numbers so far
        known = names[: len(known)] + known[len(names) :]
    if names[: len(known)] != known[: len(names)]:
        raise DataError(f"{path}: class_names {', '.join(names)} are not those of the model, {', '.join(known)}")
    return known + names[len(known) :]


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
