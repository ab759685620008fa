"""Folders of image files with a sub-folder a class, perhaps below train/ and test/.

What is amiss in a folder goes to a function `refuse`: one that raises it ends the reading, any other has that part of
the folder left out. Hidden files, and what other systems leave (`JUNK`), are passed over.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from wsjax.data.image_files import IMAGE_SIZE, decoded, read_content
from wsjax.data.sources import Images, check_size, is_text, reason
from wsjax.errors import DataError

HOLDOUT = 0.1
"""The share of a folder's images that is held out to test where there is no test/."""
JUNK = ("Thumbs.db", "desktop.ini", "__MACOSX")

_TRAIN, _TEST = "train", "test"
_LEAST = 2  # images in a split: BatchNorm has no variance over one
_SUFFIXES = (".png", ".jpg", ".jpeg")
_MAX_THREADS = 8  # each holds an image in its own size

Refuse = Callable[[DataError], None]
Classes = Mapping[str, Sequence[Path]]
"""Image files by the name of their class."""


class _Read(NamedTuple):
    """What image files hold; those that were refused are left out. `hashes` has all whose bytes could be read."""

    images: np.ndarray
    labels: np.ndarray
    hashes: list[tuple[Path, str]]


def stop(error: DataError) -> NoReturn:
    """Raises what is amiss, so that nothing is left out."""
    raise error


def read_split(folder: Path, size: int = IMAGE_SIZE) -> dict[str, np.ndarray]:
    """Reads a data set from a folder: CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png; JPEG likewise.

    Classes are numbered in the order of their names, or of their values where all names are numbers. Without test/ a
    share of the images, `HOLDOUT`, is held out to test by a hash of their pixels.

    Args:
      folder: the folder.
      size: pixels of a side; see `image_files.read_image`.

    Returns:
      train_images and test_images (uint8 [N, size, size, 3]), train_labels, test_labels, class_names.

    Raises:
      DataError: whatever is amiss in the folder; it names the file.
    """
    splits = {split: _classes(path, folder, (), stop) for split, path in _splits(folder, stop).items()}
    names = _in_order(splits[_TRAIN])
    for name in splits.get(_TEST, ()):
        if name not in names:
            raise DataError(f"{folder / _TEST / name}: {folder / _TRAIN} has no class of this name; make them one")
    check_size(sum(len(files) for own in splits.values() for files in own.values()) * size * size * 3, folder)
    read = {split: _read(own, names, size, stop) for split, own in splits.items()}
    if _TEST not in read:
        read = _held_out(folder, read[_TRAIN])
    arrays = {f"{split}_images": own.images for split, own in read.items()}
    arrays |= {f"{split}_labels": own.labels for split, own in read.items()}
    return arrays | {"class_names": np.array(names)}


def read_labelled(folder: Path, size: int, max_gigabytes: float, known: Sequence[str], refuse: Refuse) -> Images:
    """Reads a folder's images without a split: CLASS/*.png, or train/CLASS/*.png, where test/ is left alone.

    Args:
      folder: the folder.
      size: pixels of a side.
      max_gigabytes: the most that all its images may take in memory, in 10^9 bytes.
      known: names of classes, which keep their numbers; new ones follow, if they have an image.
      refuse: takes what is amiss.

    Returns:
      The images; their hash is one of the files, by name.

    Raises:
      DataError: the folder cannot be read, or not an image in it.
    """
    splits = _splits(folder, refuse)
    if _TEST in splits:
        refuse(DataError(f"{folder / _TEST} is not read: images are held out by a hash of their pixels"))
    classes = _classes(splits[_TRAIN], folder, known, refuse)
    check_size(sum(map(len, classes.values())) * size * size * 3, folder, max_gigabytes)
    names = _in_order(classes)
    read = _read(classes, names, size, refuse)
    if not len(read.labels):
        raise DataError(f"{folder}: not one image could be read")
    numbers = {name: number for number, name in enumerate(known)}
    for label in np.unique(read.labels):
        numbers.setdefault(names[label], len(numbers))
    labels = np.array([numbers.get(name, 0) for name in names], np.int32)[read.labels]
    return Images(read.images, labels, tuple(numbers), _joint_hash(folder, read.hashes))


def folder_hash(folder: Path, known: Sequence[str]) -> str:
    """The hash that `read_labelled` gives of a folder, beside known classes. Raises DataError where it has no class."""
    hashes = []
    for files in _classes(_splits(folder, _ignore)[_TRAIN], folder, known, _ignore).values():
        for path in files:
            try:
                hashes.append((path, hashlib.sha256(read_content(path)).hexdigest()))
            except DataError:
                continue
    return _joint_hash(folder, hashes)


def is_held_out(digest: bytes, holdout: float) -> bool:
    """Whether an image is held out, by the SHA-256 of its pixels: a fraction `holdout` of all images is."""
    return int.from_bytes(digest[:8], "big") < holdout * 2**64


def has_image_name(path: Path) -> bool:
    """Whether a file is called as an image file is."""
    return path.suffix.lower() in _SUFFIXES


def above(path: Path) -> Path:
    """The folder that a path lies in, as a user may write it."""
    return path.parent if path.name and path.parent.name else path.absolute().parent


def _ignore(error: DataError) -> None:
    pass


def _splits(folder: Path, refuse: Refuse) -> dict[str, Path]:
    """Where the classes are: in train/ and test/ where train/ has folders, else in the folder itself, all to train."""
    train = folder / _TRAIN
    if not os.path.isdir(train) or not any(map(os.path.isdir, _visible(train))):
        return {_TRAIN: folder}
    splits = {}
    for path in _visible(folder):
        if path.name not in (_TRAIN, _TEST):
            refuse(DataError(f"{path} lies beside {_TRAIN}/ and {_TEST}/, which are all that is read; move it away"))
        elif _leads_out(path, folder):
            raise _link(path, folder)
        else:
            splits[path.name] = path
    return splits


def _classes(place: Path, folder: Path, known: Iterable[str], refuse: Refuse) -> dict[str, list[Path]]:
    """The image files of each class: of every sub-folder of `place`, which lies in the user's `folder`."""
    entries = _visible(place)
    if not any(map(os.path.isdir, entries)):
        wanted = "a sub-folder a class with PNG or JPEG files, perhaps below train/ and test/"
        hint = f"; is {place} a class? Then give {above(place)}" if any(map(has_image_name, entries)) else ""
        raise DataError(f"{place} has no sub-folder; a folder of images has {wanted}{hint}")
    classes: dict[str, list[Path]] = {}
    alike = {_folded(name): name for name in known}
    for path in entries:
        if _leads_out(path, folder):
            refuse(_link(path, folder))
        elif not os.path.isdir(path):
            refuse(DataError(f"{path} lies beside the classes; move it into the sub-folder of its class, or away"))
        elif not is_text(path.name):
            refuse(DataError(f"{path}: a control character, or what is no UTF-8, in a class's name; rename the folder"))
        elif (twin := alike.setdefault(_folded(path.name), path.name)) != path.name:
            refuse(DataError(f"{path} differs from the class {twin} {_how(path.name, twin)} alone; rename one of them"))
        elif files := _files(path, folder, refuse):
            classes[path.name] = files
    return classes


def _files(place: Path, folder: Path, refuse: Refuse) -> list[Path]:
    """The files of a class."""
    files = []
    try:
        entries = _visible(place)
        if not entries:
            raise DataError(f"{place} holds no image; put some in, or remove the folder")
    except DataError as error:
        refuse(error)
        return []
    for path in entries:
        if _leads_out(path, folder):
            refuse(_link(path, folder))
        elif os.path.isdir(path):
            refuse(DataError(f"{path} is a folder within a class; put images right into the sub-folder of their class"))
        else:
            files.append(path)
    return files


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, but for hidden files and junk."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {reason(error)}; give a folder that can be read") from error
    return [folder / name for name in names if not name.startswith(".") and name not in JUNK]


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is a link that leads out of the folder."""
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _link(path: Path, folder: Path) -> DataError:
    return DataError(f"{path} is a link that leads out of {folder}; put a copy in its place, or remove it")


def _folded(name: str) -> str:
    """A name without what file systems may not tell apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _how(name: str, twin: str) -> str:
    """In what two names differ that are one when `_folded`."""
    case, accents = "in upper and lower case", "in how accents are encoded"
    plain, other = unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", twin)
    if plain == other:
        return accents
    return case if {name, twin} == {plain, other} else f"{case} and {accents}"


def _in_order(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names


def _read(classes: Classes, names: Sequence[str], size: int, refuse: Refuse) -> _Read:
    """Reads image files, labelled by their class's place in `names`, side by side: decoding takes all the time."""
    files = [(path, label) for label, name in enumerate(names) for path in classes.get(name, ())]
    images = np.empty((len(files), size, size, 3), np.uint8)
    good, hashes = [], []
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `read_image`
        try:
            for number, (sha256, error) in enumerate(pool.map(partial(_read_into, images, files), range(len(files)))):
                if sha256:
                    hashes.append((files[number][0], sha256))
                if error:
                    refuse(error)
                else:
                    good.append(number)
        finally:
            pool.shutdown(cancel_futures=True)
    labels = np.array([label for _, label in files], np.int32)
    whole = len(good) == len(files)
    return _Read(images if whole else images[good], labels[good], hashes)


def _read_into(images: np.ndarray, files: Sequence[tuple[Path, int]], number: int) -> tuple[str, DataError | None]:
    """Reads an image into its place: the hash of its file, "" where that cannot be read, and what is amiss."""
    path, sha256 = files[number][0], ""
    try:
        content = read_content(path)
        sha256 = hashlib.sha256(content).hexdigest()
        images[number] = decoded(content, path, images.shape[1])
    except DataError as error:
        return sha256, error
    return sha256, None


def _held_out(folder: Path, read: _Read) -> dict[str, _Read]:
    """Parts images into those to train on and those to test on."""
    held = np.array([is_held_out(hashlib.sha256(image.tobytes()).digest(), HOLDOUT) for image in read.images], bool)
    if not _LEAST <= held.sum() <= len(held) - _LEAST:
        raise DataError(
            f"{folder}: of {len(held)} images {held.sum()} are held out to test, by a hash of their pixels; {_LEAST} "
            "must be, and as many left; give more images, or train/ and test/ above the classes"
        )
    return {split: _Read(read.images[own], read.labels[own], []) for split, own in ((_TRAIN, ~held), (_TEST, held))}


def _joint_hash(folder: Path, hashes: Iterable[tuple[Path, str]]) -> str:
    """One hash of a folder's files, by their names in it."""
    total = hashlib.sha256()
    for path, sha256 in sorted(hashes):
        total.update(os.fsencode(path.relative_to(folder)) + b"\0" + sha256.encode())
    return total.hexdigest()
