"""Data files and folders that keep coming: all of them as one pool, each image once, some held out for good.

Whether an image is held out is decided by a hash of its content, so that it stays so as data grow, in whatever file it
comes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.data.datasets import read_images
from wsjax.data.folders import Refuse, folder_hash, has_image_name, is_held_out, read_labelled, stop
from wsjax.data.image_files import IMAGE_SIZE
from wsjax.data.sources import MAX_GIGABYTES, Images, listed, read_bytes
from wsjax.errors import DataError, LeftOut, printable
from wsjax.retraining.matches import TOLD, in_order, matched, one_spelling
from wsjax.storage.rows import Row

Data = tuple[np.ndarray, np.ndarray]
"""(images, labels)."""

_LEAST = {False: 2, True: 1}  # images to train on (BatchNorm has no variance over one), and held out
_NAMED = 3  # of all that was left out, in the last line


class _OtherSize(DataError):
    """A file's images are not of the size of the others."""


class Pool(NamedTuple):
    """All images there are, each once.

    Attributes:
      train: (images, labels) to train on.
      held_out: (images, labels) to evaluate on.
      class_names: one name a class.
      files: a row a data file or folder: path, sha256, images.
      samples: uint64 [N], sorted: a hash of each image with its label, the number of its class.
      unused: what was given and is in none of the above: files and folders that were left out as a whole, patterns that
        match no file.
    """

    train: Data
    held_out: Data
    class_names: tuple[str, ...]
    files: list[Row]
    samples: np.ndarray
    unused: tuple[str, ...] = ()


@dataclasses.dataclass
class _Found:
    """What the files read so far hold, each image once, by the SHA-256 of its pixels.

    `shape` is that of an image, and `whose` says who has it. `trained_on` are the hashes of files that earlier
    models were trained on.
    """

    class_names: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    whose: str = ""
    images: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: dict[bytes, int] = dataclasses.field(default_factory=dict)
    duplicates: int = 0
    corrected: int = 0
    trained_on: frozenset[str] = frozenset()

    def add(self, path: Path, max_gigabytes: float, image_size: int | None = None, refuse: Refuse = stop) -> Row:
        """Adds a file or a folder of images, and returns its row; where it raises DataError, nothing has changed.

        What is amiss within a folder goes to `refuse`.
        """
        read = self._read(path, max_gigabytes, image_size, refuse)
        shape = read.images.shape[1:]
        if self.shape is not None and shape != self.shape:
            raise _OtherSize(f"{path}: images of {shape} where {self.whose} {self.shape}")
        labels, trained_on = set(read.labels.tolist()), read.sha256 in self.trained_on
        class_names = _merge_classes(self.class_names, read.class_names, labels, path, trained_on)
        digests = [hashlib.sha256(image.tobytes()).digest() for image in read.images]
        fresh = {digest: i for i, digest in enumerate(digests) if digest not in self.images}
        size = (len(self.images) + len(fresh)) * read.images[0].nbytes
        if size > max_gigabytes * 1e9:
            limit = f"--max_gigabytes={max_gigabytes:g}"
            raise DataError(f"{path}: with it all images come to {size / 1e9:,.3g} GB, more than {limit}")

        self.class_names = class_names
        if self.shape is None:
            self.shape, self.whose = shape, f"{path} has"
        # Copies, so that a file whose images are known leaves nothing in memory.
        self.images.update(zip(fresh, read.images[list(fresh.values())], strict=True))
        self.duplicates += len(digests) - len(fresh)
        for digest, label in zip(digests, read.labels.tolist(), strict=True):
            self.corrected += self.labels.get(digest, label) != label
            self.labels[digest] = label
        return {"path": str(path), "sha256": read.sha256, "images": len(digests)}

    def _read(self, path: Path, max_gigabytes: float, image_size: int | None, refuse: Refuse) -> Images:
        if not os.path.isdir(path):
            return read_images(path, max_gigabytes)
        size = image_size or (self.shape[0] if self.shape else IMAGE_SIZE)
        return read_labelled(path, size, max_gigabytes, self.class_names, refuse)


def read_pool(
    patterns: Sequence[str],
    known: Sequence[Row],
    base: Mapping[str, Any] | None,
    holdout: float,
    say: Callable[[str], None],
    max_gigabytes: float = MAX_GIGABYTES,
    image_size: int | None = None,
) -> Pool | None:
    """Reads all data files there are: known ones in their order, then new ones, by name.

    A path may be a folder of images (`folders.read_labelled`), whose classes are known by their names. A file that
    cannot be used, or one of such a folder, is left out and told. An image that comes twice counts once; where its
    labels differ, the last one holds, so that a later file can correct an earlier one.

    Args:
      patterns: files, folders of images, or globs.
      known: a row a file that earlier models were trained on: path, sha256, images.
      base: what must be kept, the lineage of the model to go on from: class_names, image_shape; None for the first.
      holdout: fraction of the images to hold out.
      say: takes a line for every decision that the user should know of, without control characters.
      max_gigabytes: the most that one file may take, packed or unpacked, and all images together, in 10^9 bytes.
        The pool is sorted into a copy, so that twice as much is needed for a while.
      image_size: pixels of a side, which images of folders are resized to; by default as high as those that are known,
        or else 32.

    Returns:
      The pool; None where known files are all that was asked for, and they are gone.

    Raises:
      LeftOut: known files are gone, and what else was asked for could not be used.
      DataError: a file that is named does not exist and is not known, no pattern matches a file, there is no image, or
        there are too few.
    """

    def tell(line: str) -> None:  # what files are called, and classes in them, must not forge a line
        say(printable(line))

    old = {one_spelling(row["path"]): row for row in known}
    present, unused = matched(patterns, old, tell)
    hashed = partial(_hash, max_gigabytes=max_gigabytes, class_names=tuple(base["class_names"]) if base else ())
    files = in_order(present, old, hashed, tell)
    found = _Found(tuple(base["class_names"]), tuple(base["image_shape"]), "the model's are") if base else _Found()
    found.trained_on = frozenset(row["sha256"] for row in known)
    add = partial(found.add, max_gigabytes=max_gigabytes, image_size=image_size)
    # Which of two sizes a first call means is the user's to say.
    rows, lost = _add_all(files, old, add, _OtherSize if base is None else (), tell)
    unused += lost
    if not found.images:
        if known and unused:
            raise left_out(unused)
        if known:
            return None
        raise DataError(f"there is no image to train on: {len(files)} files for {', '.join(patterns) or 'no pattern'}")
    if found.duplicates:
        mended = f"; {found.corrected} with another label, of which the last holds" if found.corrected else ""
        tell(f"{found.duplicates} images came more than once and count once{mended}")
    return _split(found.images, found.labels, found.class_names, rows, holdout)._replace(unused=tuple(unused))


def samples_as(pool: Pool, class_names: Sequence[str]) -> np.ndarray:
    """The hashes that a pool's images have where classes are numbered as in `class_names`: uint64 [N], sorted.

    Two models may number the same classes in two ways, if one does not come from the other.
    """
    numbers = [_number_among(class_names, number, name) for number, name in enumerate(pool.class_names)]
    if numbers == list(range(len(numbers))):
        return pool.samples
    pairs = (pair for part in (pool.train, pool.held_out) for pair in zip(*part, strict=True))
    return _samples((hashlib.sha256(image.tobytes()).digest(), numbers[label]) for image, label in pairs)


def left_out(unused: Sequence[str]) -> LeftOut:
    """Says that nothing is new but perhaps what could not be used."""
    more = [f"{len(unused) - _NAMED:,} more"] if len(unused) > _NAMED else []
    names = ", ".join([*unused[:_NAMED], *more])
    return LeftOut(f"no new data, unless in what could not be used ({names}): nothing changed")


def _add_all(
    files: Sequence[Path],
    old: Mapping[Path, Row],
    add: Callable[..., Row],
    fatal: type[DataError] | tuple[()],
    tell: Callable[[str], None],
) -> tuple[list[Row], list[str]]:
    """Adds all files that can be used and tells what is amiss; returns the rows, and what was left out as a whole.

    A known file that is left out keeps its row. Raises errors that are `fatal`.
    """
    loose = {path: None for path in files if path not in old and has_image_name(path) and not os.path.isdir(path)}
    rows, lost = [], _tell_loose(list(loose), tell)
    for path in [path for path in files if path not in loose]:  # of which there may be a hundred thousand
        refused: list[DataError] = []
        try:
            row = add(path, refuse=refused.append)
        except fatal:
            raise
        except DataError as error:
            row = None
            lost.append(str(path))
            refused = [error, *refused] if len(lost) <= TOLD else []
        _tell_refused(refused, f"files of {path}", tell)
        if row is not None and path in old and old[path]["sha256"] != row["sha256"]:
            tell(f"{path} changed since it was trained on: its present images count")
        rows += [row or old[path]] if row or path in old else []
    if len(lost) > TOLD:
        tell(f"left out: {len(lost) - TOLD:,} more files and folders")
    return rows, lost


def _tell_loose(images: Sequence[Path], tell: Callable[[str], None]) -> list[str]:
    """Tells of images that were given by themselves what to give instead; returns what they were given as."""
    parents: dict[Path, list[Path]] = {}
    for path in images:
        parents.setdefault(path.parent.parent, []).append(path)
    errors, given = [], []
    for parent, own in parents.items():
        what = f"{own[0]} is one image" if len(own) == 1 else f"{own[0]} and {len(own) - 1:,} more are images"
        way_out = f"give the folder above the class folders, such as --data {shlex.quote(str(parent))}"
        errors.append(DataError(f"{what}; {way_out}, where {own[0].parent.name} is a class"))
        given.append(str(own[0]) if len(own) == 1 else f"{own[0]} and {len(own) - 1:,} more")
    _tell_refused(errors, "folders of images", tell)
    return given


def _tell_refused(refused: Sequence[DataError], what: str, tell: Callable[[str], None]) -> None:
    for error in refused[:TOLD]:
        tell(f"left out: {error}")
    if len(refused) > TOLD:
        tell(f"left out: {len(refused) - TOLD:,} more {what}")


def _hash(path: Path, max_gigabytes: float, class_names: Sequence[str]) -> str:
    """The hash that a data file's row has, or a folder's."""
    return (
        folder_hash(path, class_names)
        if os.path.isdir(path)
        else hashlib.sha256(read_bytes(path, max_gigabytes)).hexdigest()
    )


def _merge_classes(
    known: tuple[str, ...], names: tuple[str, ...] | None, labels: set[int], path: Path, trained_on: bool = False
) -> tuple[str, ...]:
    """The classes known after a file. Its names must go on where the known ones end; a number stands for no name yet.

    Labels of a file without names must go on without a gap: a gap is most likely a mistake. They can only be told from
    names where the known classes are called by their own numbers; those of a file that models were trained on already,
    `trained_on`, mean what they meant then.
    """
    if names is None:
        if not trained_on:
            _check_numbers(known, labels, path)
        new = sorted(label for label in labels if label >= len(known))
        if new != list(range(len(known), len(known) + len(new))):
            raise DataError(
                f"{path}: the label {new[-1]} where {len(known)} classes are known leaves a gap; number the classes "
                "from 0 on without one, or add class_names"
            )
        return known + tuple(map(str, new))
    merged = [*known, *names[len(known) :]]
    for number, name in enumerate(names):
        if merged[number] not in (name, str(number)):
            raise DataError(f"{path}: class_names {listed(names)} are not those of the model, {listed(known)}")
        merged[number] = name
    if len(set(merged)) < len(merged):
        raise DataError(
            f"{path}: with its class_names, {listed(names)}, two classes would have one name; "
            f"known so far: {listed(known) or 'none'}"
        )
    return tuple(merged)


def _check_numbers(known: tuple[str, ...], labels: set[int], path: Path) -> None:
    """Raises DataError where it cannot be told which class a label without a name means."""
    numbers = [_number(name) for name in known]
    named = None in numbers
    for label in sorted(labels):
        # One of a class to come: where others have names, so will that.
        to_come = not named and str(label) not in numbers
        sure = numbers[label] == str(label) if label < len(known) else to_come
        if not sure:
            what = (
                "has no name where the known classes have"
                if named
                else "may be a place or a name among the known classes"
            )
            raise DataError(
                f"{path}: the label {label} {what}, {listed(known)}; add class_names, with the known ones first"
            )


def _number(name: str) -> str | None:
    """The number that a name is, without leading zeros; None where it is none."""
    return (name.lstrip("0") or "0") if name.isdecimal() else None


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
    return Pool(parts[0], parts[1], class_names, files, _samples(labels.items()))


def _samples(labels: Iterable[tuple[bytes, int]]) -> np.ndarray:
    """A hash of each image with its label, uint64 [N], sorted; `labels` has them by the SHA-256 of the pixels."""
    marks = [hashlib.sha256(digest + str(label).encode()).digest()[:8] for digest, label in labels]
    return np.sort(np.frombuffer(b"".join(marks), np.uint64))


def _number_among(theirs: Sequence[str], number: int, name: str) -> int:
    """The number that a class has among others; one that none of them has where it is not there."""
    if name in theirs:
        return theirs.index(name)
    unnamed = number < len(theirs) and str(number) in (name, theirs[number])
    return number if unnamed else max(number, len(theirs))
