"""Image data sets as uint8 arrays in memory, and pools that grow, as pure functions of a key.

`load` reads CIFAR-10, CIFAR-100 and SVHN (from a file NAME.npz, else through tensorflow-datasets), any other set of
tensorflow-datasets, the small digits that come with scikit-learn (no download), or a user's own .npz file or folder of
images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import math
import numbers
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.data import folders, prepared, sources
from wsjax.data.embedded import EMBEDDED
from wsjax.data.image_files import IMAGE_SIZE, LARGEST_SIZE
from wsjax.data.prepared import SOURCES, Source
from wsjax.data.sources import Images
from wsjax.errors import DataError

DATA_DIR_VARIABLE = "WSJAX_DATA_DIR"
DEFAULT_DATA_DIR = "~/.cache/wsjax/data"

# CIFAR-10's channel statistics as Kireev et al. (2021) used them on every set, so that their numbers can be compared.
REPORT_MEAN = (0.4914, 0.4822, 0.4465)
REPORT_STD = (0.2023, 0.1994, 0.2010)

MAX_CLASSES = 100_000  # more than any set has; a network's last layer must still fit a machine
_MAX_CHANNELS = 4_096  # more than any camera has
_MIN_IMAGES = 2  # BatchNorm has no variance over one image


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set with its train and test split, in host memory.

    Attributes:
        name: what it was loaded as.
        train_images: uint8 [N, height, width, channels], N at least 2.
        train_labels: int32 [N], in [0, num_classes); other integers are converted.
        test_images: uint8 [M, height, width, channels], M at least 2.
        test_labels: int32 [M], likewise.
        class_names: one name a class, at least 2.
        mean: a channel's mean in [0, 1] units (pixel / 255), to normalise images by.
        std: a channel's standard deviation in the same units, above 0.

    Raises:
        DataError: if the above does not hold.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        arrays = {name: np.asarray(getattr(self, name)) for name in sources.REQUIRED}
        shape = _check_splits(arrays)
        if self.num_classes < 2:
            raise DataError(f"the number of classes is {self.num_classes}; there must be 2 to tell apart")
        for split in ("train", "test"):
            labels = f"{split}_labels"
            highest = arrays[labels].max()
            if highest >= self.num_classes:
                raise DataError(
                    f"{labels} has the label {highest}, but {self.num_classes} classes allow only 0 to "
                    f"{self.num_classes - 1}; correct the labels or class_names"
                )
            arrays[labels] = arrays[labels].astype(np.int32, copy=False)
        for name, least in (("mean", -math.inf), ("std", 0)):
            values = getattr(self, name)
            if len(values) != shape[-1] or not all(math.isfinite(value) and value > least for value in values):
                above = ", above 0" if name == "std" else ""
                raise DataError(f"{name} is {values}; it must be a finite number a channel{above}: {shape[-1]}")
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each has images."""
        return len(self.class_names)


_NAMED_SHAPE = (32, 32, 3)
NAMES = (*SOURCES, *EMBEDDED)


def load(
    name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None, image_size: int | None = None
) -> Dataset:
    """Loads a data set by its name, or a user's own from a .npz file or a folder of images.

    CIFAR-10, CIFAR-100 and SVHN come from the first of these that exists: the file DATA_DIR/NAME.npz; a set that
    tensorflow-datasets has prepared in DATA_DIR or in its own folder; a download by tensorflow-datasets into DATA_DIR.
    The last two are decoded once and kept as DATA_DIR/NAME.npz; so are other sets of tensorflow-datasets, as
    DATA_DIR/tfds-NAME.npz. The three are normalised with the report's CIFAR-10 statistics, every other set with those
    of its train images.

    Args:
        name: "cifar10", "cifar100", "svhn", "digits", a half of these ("digits_low", 0 to 4, or "digits_high", 5 to
            9), or fewer at nine places each ("digits_shifted"); "tfds:NAME" or "tfds:NAME/CONFIG" for any image
            classification set of tensorflow-datasets; the path of a .npz file with the arrays train_images and
            test_images (uint8 [N, height, width, channels]), train_labels and test_labels (integers [N], from 0) and,
            if you like, class_names (strings); or the path of a folder with a sub-folder of PNG or JPEG files a class
            (`folders.read_split`).
        data_dir: the folder DATA_DIR for named sets; by default $WSJAX_DATA_DIR, else ~/.cache/wsjax/data.
        image_size: pixels of a side, for a folder or a set of tensorflow-datasets: the largest square at an image's
            middle is resized (`image_files.read_image`). By default 32, but a set of tensorflow-datasets whose images
            have one size keeps it.

    Raises:
        DataError: if the set is unknown, not found, damaged or malformed, or does not fit this machine's memory.
    """
    path, text = sources.expand_user(name), str(name)
    own = text not in NAMES and not text.startswith(prepared.PREFIX)
    is_folder = own and text != "" and os.path.isdir(path)
    if image_size is not None:
        _check_image_size(image_size)
        if not is_folder and not text.startswith(prepared.PREFIX):
            raise DataError(
                f"--image_size={image_size} is for folders of images and sets of tensorflow-datasets (tfds:NAME); "
                f"{text} has a size of its own: leave it out"
            )
    if text in EMBEDDED:
        return _dataset(text, EMBEDDED[text](), "scikit-learn's digits")
    if not own:
        return _load_named(text, _data_dir(data_dir), image_size)
    if is_folder:
        return _dataset(path.name, folders.read_split(path, image_size or IMAGE_SIZE), path)
    if path.suffix == ".npz" or len(path.parts) > 1:
        return _dataset(path.stem, _read_own(path, "a .npz file, or of a folder of images"), path)
    close = difflib.get_close_matches(text.lower(), NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    ways = "tfds:NAME, or the path of a .npz file or a folder of images"
    raise DataError(f"unknown data set {text!r}; possible: {', '.join(NAMES)}, {ways}{hint}")


def read_images(path: str | os.PathLike[str], max_gigabytes: float = sources.MAX_GIGABYTES) -> Images:
    """Reads a .npz file of labelled images: images (uint8 [N, height, width, channels]), labels, perhaps class_names.

    Args:
        path: the file.
        max_gigabytes: the most that the file may take, packed or unpacked, in 10^9 bytes.

    Raises:
        DataError: if the file cannot be read, is malformed or too large.
    """
    path = sources.expand_user(path)
    content = sources.read_bytes(path, max_gigabytes)
    wanted = "images (uint8 [N, height, width, channels]) and labels"
    arrays = sources.read_npz(io.BytesIO(content), path, ("images", "labels"), wanted, max_gigabytes)
    with _blamed_on(path):
        images, labels = arrays["images"], arrays["labels"]
        _check_images("images", "labels", images, labels, at_least=1)
        if labels.max() >= MAX_CLASSES:
            most = f"from 0 on, {MAX_CLASSES:,} at most"
            raise DataError(f"labels has the label {labels.max()}; number the classes {most}")
        names = _strings(arrays["class_names"]) if "class_names" in arrays else None
        if names is not None and labels.max() >= len(names):
            raise DataError(f"labels has {labels.max()}, but class_names allow only 0 to {len(names) - 1}")
    return Images(images, labels.astype(np.int32), names, hashlib.sha256(content).hexdigest())


def take(key: jax.Array, dataset: Dataset, num_train: int | None = None, num_test: int | None = None) -> Dataset:
    """A smaller data set for quick runs: random images of each split, all of a split where no number is given.

    With one key a smaller subset lies within a larger one. The statistics stay those of the whole set.

    Args:
        key: a jax.random key.
        dataset: the set to take from.
        num_train: how many train images to keep, at least 2.
        num_test: how many test images to keep, at least 2.
    """
    if num_train is None and num_test is None:
        return dataset
    train_key, test_key = jax.random.split(key)
    train = _some(train_key, "train", len(dataset.train_labels), num_train)
    test = _some(test_key, "test", len(dataset.test_labels), num_test)
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[train],
        train_labels=dataset.train_labels[train],
        test_images=dataset.test_images[test],
        test_labels=dataset.test_labels[test],
    )


def pool_order(key: jax.Array, num_samples: int) -> jax.Array:
    """The order in which samples arrive: a permutation, int32 [num_samples].

    The pool of size n is its first n entries. So a larger pool contains each smaller one, and increments are disjoint.
    """
    return jax.random.permutation(key, jnp.arange(num_samples, dtype=jnp.int32))


def increment_sizes(total: int, increment: int) -> tuple[int, ...]:
    """Pool sizes when `increment` samples arrive at a time: (n, 2n, ..., total); the last increment may be smaller."""
    if total < 1 or increment < 1:
        raise DataError(f"total and increment must be 1 or more, got total {total} and increment {increment}")
    return (*range(increment, total, increment), total)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in [0, 1] units, exact: from each channel's histogram of 256 values."""
    values = np.arange(256) / 255
    counts = np.zeros((images.shape[-1], 256))
    for chunk in np.array_split(images, math.ceil(len(images) / 4096)):  # bincount makes an int64 copy
        counts += [np.bincount(chunk[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    mean = frequencies @ values
    variance = (frequencies * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1 / 255)  # a constant channel must not divide by 0
    return tuple(mean.tolist()), tuple(std.tolist())


def _some(key: jax.Array, split: str, available: int, wanted: int | None) -> np.ndarray | slice:
    if wanted is None:
        return slice(None)
    if not _MIN_IMAGES <= wanted <= available:
        raise DataError(f"cannot take {wanted} {split} images; possible: {_MIN_IMAGES} to {available}")
    return np.asarray(pool_order(key, available)[:wanted])


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    folder = sources.expand_user(data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"the data folder {folder} is a file; give the folder that holds, or shall hold, NAME.npz")
    return folder


def _check_image_size(size: int) -> None:
    if not isinstance(size, numbers.Integral) or not 1 <= size <= LARGEST_SIZE:
        raise DataError(f"--image_size must lie between 1 and {LARGEST_SIZE:,}, not {size!r:.40}")


def _load_named(name: str, folder: Path, image_size: int | None) -> Dataset:
    """A set from its .npz file or else through tensorflow-datasets, which then leaves that file."""
    path = folder / prepared.kept_as(name, image_size)
    cached = os.path.lexists(path)
    arrays = _read_own(path) if cached else prepared.read_tfds(name, path, image_size)
    dataset = _dataset(name, arrays, path if cached else name, SOURCES.get(name))
    if not cached:
        sources.write_npz(path, arrays)
    return dataset


def _read_own(path: Path, wanted: str = "a .npz file") -> dict[str, np.ndarray]:
    with sources.open_file(path, wanted) as file:
        return sources.read_npz(file, path, sources.REQUIRED, sources.WANTED)


def _dataset(name: str, arrays: Mapping[str, np.ndarray], origin: str | Path, source: Source | None = None) -> Dataset:
    """Makes a set of arrays that came from outside; every way in ends here."""
    with _blamed_on(origin):
        shape = _check_splits(arrays)
        if source and shape != _NAMED_SHAPE:
            raise DataError(f"{name} has images {_NAMED_SHAPE}, found {shape}; name another set otherwise")
        class_names = _class_names(arrays, source)
        mean, std = (REPORT_MEAN, REPORT_STD) if source else channel_statistics(arrays["train_images"])
        return Dataset(
            name=name, **{key: arrays[key] for key in sources.REQUIRED}, class_names=class_names, mean=mean, std=std
        )


@contextlib.contextmanager
def _blamed_on(origin: object) -> Iterator[None]:
    """Has errors about arrays name where these come from."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error


def _check_splits(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Checks all that can be checked without knowing the classes; returns an image's shape."""
    for split in ("train", "test"):
        images, labels = f"{split}_images", f"{split}_labels"
        _check_images(images, labels, arrays[images], arrays[labels], at_least=_MIN_IMAGES)
    train, test = (arrays[f"{split}_images"].shape[1:] for split in ("train", "test"))
    if train != test:
        raise DataError(f"train images are {train} and test images {test}; make them one size")
    return train


def _check_images(name: str, labels_name: str, images: np.ndarray, labels: np.ndarray, at_least: int) -> None:
    if images.dtype != np.uint8:
        raise DataError(f"{name} is {images.dtype}; it must be uint8, with pixels from 0 to 255")
    if images.ndim != 4 or 0 in images.shape[1:]:
        axis = "; give grey images a channel axis: images[..., None]" if images.ndim == 3 else ""
        raise DataError(f"{name} has the shape {images.shape}; it must be [N, height, width, channels]{axis}")
    if images.shape[1] in (1, 3) and images.shape[2] > 4 and images.shape[3] > 4:  # as PyTorch has them
        raise DataError(f"{name} has the shape {images.shape}; put channels last: images.transpose(0, 2, 3, 1)")
    if images.shape[-1] > _MAX_CHANNELS:
        most = f"{_MAX_CHANNELS:,} channels at most"
        raise DataError(f"{name} has the shape {images.shape}; it must be [N, height, width, channels], {most}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{labels_name} is {labels.dtype}; it must be integers, the class from 0 on")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{labels_name} has the shape {labels.shape}; the {len(images)} {name} need [{len(images)}]")
    if len(images) < at_least:
        raise DataError(f"{name} has {len(images)}; it must have at least {at_least}")
    if labels.min() < 0:
        raise DataError(f"{labels_name} has the label {labels.min()}; number the classes from 0 on")


def _class_names(arrays: Mapping[str, np.ndarray], source: Source | None) -> tuple[str, ...]:
    """The names given, else the numbers. Without names a gap in the labels is an error: it's most likely a mistake."""
    if "class_names" in arrays:
        names = _strings(arrays["class_names"])
        if source and len(names) != source.num_classes:
            raise DataError(f"{len(names)} class_names, but this set has {source.num_classes} classes")
        return names
    if source:
        return tuple(str(label) for label in range(source.num_classes))
    # As Python's numbers: NumPy's union of int64 and uint64 is float64.
    labels = sorted({label for split in ("train", "test") for label in np.unique(arrays[f"{split}_labels"]).tolist()})
    if labels[-1] != len(labels) - 1:
        raise DataError(
            f"the labels are {len(labels)} different numbers from {labels[0]} to {labels[-1]}; number the classes "
            "from 0 on without a gap, or add class_names with one name a class"
        )
    _check_number(len(labels))
    return tuple(str(label) for label in labels)


def _strings(names: np.ndarray) -> tuple[str, ...]:
    """Checks class names, which go into records, tables and messages; bytes are UTF-8."""
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise DataError(f"class_names is {names.dtype} {names.shape}; it must be a list of strings")
    _check_number(len(names))
    try:
        texts = tuple(name.decode() if isinstance(name, bytes) else name for name in names.tolist())
    except (ValueError, SystemError) as error:  # bytes, or code points, that are no text
        raise DataError("class_names holds what is no text; write strings, or bytes in UTF-8") from error
    for text in texts:
        if not sources.is_text(text):
            raise DataError(f"class_names has {text[:60]!a}, with a control character; write plain text")
    if not all(text.strip() for text in texts):
        raise DataError("class_names has an empty name; give every class one")
    if len(set(texts)) < len(texts):
        raise DataError(f"class_names has a name twice: {sources.listed(texts)}; give every class its own")
    return texts


def _check_number(num_classes: int) -> None:
    if num_classes > MAX_CLASSES:
        raise DataError(f"there are {num_classes:,} classes; {MAX_CLASSES:,} at most are possible")
