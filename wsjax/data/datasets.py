"""Image data sets as uint8 arrays in memory, and pools that grow, as pure functions of a key.

`load` reads CIFAR-10, CIFAR-100 and SVHN (from a file NAME.npz, else through tensorflow-datasets), the small digits
that come with scikit-learn (no download), or a user's own .npz file. Nothing here ever unpickles a file.
"""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import lzma
import math
import os
import threading
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.errors import DataError

DATA_DIR_VARIABLE = "WSJAX_DATA_DIR"
DEFAULT_DATA_DIR = "~/.cache/wsjax/data"

# CIFAR-10's channel statistics as Kireev et al. (2021) used them on every set, so that their numbers can be compared.
REPORT_MEAN = (0.4914, 0.4822, 0.4465)
REPORT_STD = (0.2023, 0.1994, 0.2010)

DIGITS_NOISE = 0.5  # standard deviation of the added noise; ink is 1, paper 0
DIGITS_SEED = 0
DIGITS_NUM_TRAIN = 600  # of 1,797: few to train on is hard enough, many to test on tell small differences
DIGITS_MARGIN = 1.5  # room below paper and above ink, so that noise is not clipped away

NETWORK_TIMEOUT = 5.0  # seconds
INSTALL_COMMAND = 'pip install "wsjax[data]"'

_REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
_WANTED = (
    "train_images and test_images (uint8 [N, height, width, channels]), train_labels and test_labels (integers [N]) "
    "and, if you like, class_names (strings [num_classes])"
)
_MIN_IMAGES = 2  # BatchNorm has no variance over one image


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set with its train and test split, in host memory.

    Attributes:
        name: what it was loaded as.
        train_images: uint8 [N, height, width, channels].
        train_labels: int32 [N], in [0, num_classes).
        test_images: uint8 [M, height, width, channels].
        test_labels: int32 [M].
        class_names: one name a class.
        mean: a channel's mean in [0, 1] units (pixel / 255), to normalise images by.
        std: a channel's standard deviation in the same units, above 0.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each has images."""
        return len(self.class_names)


class Images(NamedTuple):
    """Labelled images without a split.

    Attributes:
        images: uint8 [N, height, width, channels].
        labels: int32 [N], from 0.
        class_names: one name a class, or None where only numbers are known.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None


class _Source(NamedTuple):
    """Where tensorflow-datasets finds a named set."""

    tfds_name: str
    num_classes: int
    address: str
    archives: tuple[str, ...]


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_SOURCES = {
    "cifar10": _Source("cifar10", 10, _CIFAR, ("cifar-10-binary.tar.gz",)),
    "cifar100": _Source("cifar100", 100, _CIFAR, ("cifar-100-binary.tar.gz",)),
    # tensorflow-datasets always fetches SVHN's "extra" images too (1.3 GB), which nothing here reads.
    "svhn": _Source("svhn_cropped", 10, _SVHN, ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat")),
}
_NAMED_SHAPE = (32, 32, 3)
NAMES = (*_SOURCES, "digits")


def load(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set by its name, or a user's own from a .npz file.

    CIFAR-10, CIFAR-100 and SVHN come from the first of these that exists: the file DATA_DIR/NAME.npz; a set that
    tensorflow-datasets has prepared in DATA_DIR or in its own folder; a download by tensorflow-datasets into DATA_DIR.
    The last two are decoded once and kept as DATA_DIR/NAME.npz. They are normalised with the report's CIFAR-10
    statistics, every other set with those of its train images.

    Args:
        name: "cifar10", "cifar100", "svhn", "digits", or the path of a .npz file with the arrays train_images and
            test_images (uint8 [N, height, width, channels]), train_labels and test_labels (integers [N], from 0) and,
            if you like, class_names (strings).
        data_dir: the folder DATA_DIR for named sets; by default $WSJAX_DATA_DIR, else ~/.cache/wsjax/data.

    Raises:
        DataError: if the set is unknown, not found, damaged or malformed.
    """
    path = Path(name).expanduser()
    if str(name) == "digits":
        return digits()
    if str(name) in _SOURCES:
        return _load_named(str(name), _data_dir(data_dir))
    if path.suffix == ".npz" or len(path.parts) > 1:
        return _dataset(path.stem, _read_npz(path), path)
    close = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise DataError(f"unknown data set {str(name)!r}; possible: {', '.join(NAMES)}, or the path of a .npz file{hint}")


def read_images(path: str | os.PathLike[str]) -> Images:
    """Reads a .npz file of labelled images: images (uint8 [N, height, width, channels]), labels, perhaps class_names.

    Raises:
        DataError: if the file cannot be read or is malformed.
    """
    arrays = _read_npz(Path(path), ("images", "labels"), "images (uint8 [N, height, width, channels]) and labels")
    images, labels = arrays["images"], arrays["labels"]
    _check_images("images", "labels", images, labels, path, at_least=1)
    if labels.max() > np.iinfo(np.int32).max:
        raise DataError(f"{path}: labels has the label {labels.max()}; number the classes from 0 on")
    names = _strings(arrays["class_names"], path) if "class_names" in arrays else None
    if names is not None and labels.max() >= len(names):
        raise DataError(f"{path}: labels has {labels.max()}, but class_names allow only 0 to {len(names) - 1}")
    return Images(images, labels.astype(np.int32), names)


def digits(noise: float = DIGITS_NOISE) -> Dataset:
    """The 1,797 handwritten 8x8 digits that come with scikit-learn, made harder by fixed Gaussian pixel noise.

    Without noise every method reaches about 98 % and nothing can be told apart. A pixel x in [0, 16] is kept as
    `clip(round((x / 16 + noise * eps + 1.5) / 4 * 255), 0, 255)`: the range [-1.5, 2.5] fills the 256 values, so at
    noise 0.5 three standard deviations fit on either side of [0, 1] and the noise stays Gaussian instead of being
    clipped. Noise and split are the same at every call.

    Args:
        noise: standard deviation of the noise, where paper is 0 and ink 1.

    Returns:
        Images [600, 8, 8, 1] to train and [1197, 8, 8, 1] to test.
    """
    if not (math.isfinite(noise) and noise >= 0):
        raise DataError(f"noise must be a finite number, 0 or more, got {noise}")
    from sklearn.datasets import load_digits  # takes a second to import

    clean, labels = load_digits(return_X_y=True)
    random = np.random.RandomState(DIGITS_SEED)  # NumPy froze its streams, which it doesn't promise of default_rng
    order = random.permutation(len(labels))
    noisy = clean / 16 + noise * random.standard_normal(clean.shape)
    scaled = (noisy + DIGITS_MARGIN) / (1 + 2 * DIGITS_MARGIN) * 255
    images = np.clip(np.rint(scaled), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = np.split(order, [DIGITS_NUM_TRAIN])
    arrays = {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
    return _dataset("digits", arrays, "scikit-learn's digits")


def take(key: jax.Array, dataset: Dataset, num_train: int | None = None, num_test: int | None = None) -> Dataset:
    """A smaller data set for quick runs: random images of each split, all of a split where no number is given.

    With one key a smaller subset lies within a larger one. The statistics stay those of the whole set.

    Args:
        key: a jax.random key.
        dataset: the set to take from.
        num_train: how many train images to keep, at least 2.
        num_test: how many test images to keep, at least 2.
    """
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


def fraction_size(num_samples: int, fraction: float) -> int:
    """How many of `num_samples` images a fraction in (0, 1] is, rounded to the nearest number above 0."""
    if not 0 < fraction <= 1:
        raise DataError(f"the fraction of the data must lie in (0, 1], got {fraction}")
    size = round(num_samples * fraction)
    if size < 1:
        raise DataError(f"a fraction of {fraction} leaves none of {num_samples} images; take at least 1/{num_samples}")
    return size


def increment_sizes(total: int, increment: int) -> tuple[int, ...]:
    """Pool sizes when `increment` samples arrive at a time: (n, 2n, ..., total); the last increment may be smaller."""
    if total < 1 or increment < 1:
        raise DataError(f"total and increment must be 1 or more, got total {total} and increment {increment}")
    return (*range(increment, total, increment), total)


def _some(key: jax.Array, split: str, available: int, wanted: int | None) -> np.ndarray | slice:
    if wanted is None:
        return slice(None)
    if not _MIN_IMAGES <= wanted <= available:
        raise DataError(f"cannot take {wanted} {split} images; possible: {_MIN_IMAGES} to {available}")
    return np.asarray(pool_order(key, available)[:wanted])


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    folder = Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"the data folder {folder} is a file; give the folder that holds, or shall hold, NAME.npz")
    return folder


def _load_named(name: str, folder: Path) -> Dataset:
    """A set of `_SOURCES`, from its .npz file or else through tensorflow-datasets, which then leaves that file."""
    path = folder / f"{name}.npz"
    cached = path.exists()
    arrays = _read_npz(path) if cached else _read_tfds(name, folder)
    dataset = _dataset(name, arrays, path, _SOURCES[name])
    if not cached:
        _write_npz(path, arrays)
    return dataset


def _dataset(name: str, arrays: Mapping[str, np.ndarray], origin: str | Path, source: _Source | None = None) -> Dataset:
    """Checks arrays that came from outside; every way in ends here."""
    for split in ("train", "test"):
        images, labels = f"{split}_images", f"{split}_labels"
        _check_images(images, labels, arrays[images], arrays[labels], origin, at_least=_MIN_IMAGES)
    shapes = [arrays[f"{split}_images"].shape[1:] for split in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise DataError(f"{origin}: train images are {shapes[0]} and test images {shapes[1]}; make them one size")
    if source and shapes[0] != _NAMED_SHAPE:
        raise DataError(f"{origin}: {name} has images {_NAMED_SHAPE}, found {shapes[0]}; name another set otherwise")
    class_names = _class_names(arrays, origin, source)
    for split in ("train", "test"):
        highest = arrays[f"{split}_labels"].max()
        if highest >= len(class_names):
            raise DataError(
                f"{origin}: {split}_labels has the label {highest}, but {len(class_names)} classes allow only "
                f"0 to {len(class_names) - 1}; correct the labels or class_names"
            )
    mean, std = (REPORT_MEAN, REPORT_STD) if source else channel_statistics(arrays["train_images"])
    return Dataset(
        name=name,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"].astype(np.int32),
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"].astype(np.int32),
        class_names=class_names,
        mean=mean,
        std=std,
    )


def _check_images(
    name: str, labels_name: str, images: np.ndarray, labels: np.ndarray, origin: Any, at_least: int
) -> None:
    if images.dtype != np.uint8:
        raise DataError(f"{origin}: {name} is {images.dtype}; it must be uint8, with pixels from 0 to 255")
    if images.ndim != 4 or 0 in images.shape[1:]:
        axis = "; give grey images a channel axis: images[..., None]" if images.ndim == 3 else ""
        raise DataError(f"{origin}: {name} has the shape {images.shape}; it must be [N, height, width, channels]{axis}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{origin}: {labels_name} is {labels.dtype}; it must be integers, the class from 0 on")
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{origin}: {labels_name} has the shape {labels.shape}; the {len(images)} {name} need [{len(images)}]"
        )
    if len(images) < at_least:
        raise DataError(f"{origin}: {name} has {len(images)}; it must have at least {at_least}")
    if labels.min() < 0:
        raise DataError(f"{origin}: {labels_name} has the label {labels.min()}; number the classes from 0 on")


def _class_names(arrays: Mapping[str, np.ndarray], origin: str | Path, source: _Source | None) -> tuple[str, ...]:
    """The names given, else the numbers. Without names a gap in the labels is an error: it's most likely a mistake."""
    if "class_names" in arrays:
        names = _strings(arrays["class_names"], origin)
        if source and len(names) != source.num_classes:
            raise DataError(f"{origin}: {len(names)} class_names, but this set has {source.num_classes} classes")
        return names
    if source:
        return tuple(str(label) for label in range(source.num_classes))
    labels = np.union1d(arrays["train_labels"], arrays["test_labels"])
    if labels[-1] != len(labels) - 1:
        raise DataError(
            f"{origin}: the labels are {len(labels)} different numbers from {labels[0]} to {labels[-1]}; number the "
            "classes from 0 on without a gap, or add class_names with one name a class"
        )
    return tuple(str(label) for label in labels)


def _strings(names: np.ndarray, origin: Any) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{origin}: class_names is {names.dtype} {names.shape}; it must be a list of strings")
    return tuple(names.astype(str).tolist())


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


def _read_npz(path: Path, required: Sequence[str] = _REQUIRED, wanted: str = _WANTED) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, never unpickled."""
    member = ""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is not a .npz archive, or only a part of one; write it anew with np.savez")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                missing = [name for name in required if name not in archive.files]
                if missing:
                    found = ", ".join(archive.files) or "nothing"
                    raise DataError(f"{path} lacks {', '.join(missing)}; found: {found}; wanted: {wanted}")
                arrays = {}
                for member in (name for name in (*required, "class_names") if name in archive.files):
                    arrays[member] = archive[member]
                return arrays
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give the path of a .npz file") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot read the array {member!r} ({_first_line(error)}); write the file anew with np.savez, as "
            "plain arrays: uint8 images, integer labels, class_names as strings, no objects"
        ) from error


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Keeps arrays for the next time: whole or not at all, and no reason to stop where that's not possible."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"cannot keep {path} ({error.strerror or error}); the next run will decode again", stacklevel=4)


def _read_tfds(name: str, folder: Path) -> dict[str, np.ndarray]:
    """A set through tensorflow-datasets: already prepared in `folder` or in its own folder, or downloaded now."""
    tfds = _import_tfds(name, folder)
    try:
        return _decode(tfds, _prepared(tfds, name, folder) or _prepare(tfds, name, folder))
    except DataError:
        raise
    except ImportError as error:  # Pillow, or for a set in the TFRecord format TensorFlow
        lacks = f"tensorflow-datasets lacks a package ({_first_line(error)})"
        raise DataError(f"{name}: {lacks}; {INSTALL_COMMAND}") from error
    except Exception as error:  # network, disk, checksum, a damaged file, TensorFlow: their errors share no class
        raise DataError(
            f"{name}: tensorflow-datasets failed with {type(error).__name__}: {_first_line(error)}; if its files in "
            f"{folder} are incomplete, remove them and try again, or write {folder / name}.npz yourself with {_WANTED}"
        ) from error


def _import_tfds(name: str, folder: Path) -> Any:
    """tensorflow-datasets, an optional package: named sets that are already there as .npz need none."""
    try:
        importlib.import_module("importlib_resources")  # tensorflow-datasets needs it without saying so
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise _not_found(name, folder, f"to look further a package is missing ({error})", INSTALL_COMMAND) from error


def _prepared(tfds: Any, name: str, folder: Path) -> Any | None:
    """The builder of a set on disk: in `folder`, else where tensorflow-datasets keeps its sets."""
    for place in (folder, None):
        builder = tfds.builder(_SOURCES[name].tfds_name, data_dir=place)
        if builder.data_path.exists():
            return builder
    return None


def _prepare(tfds: Any, name: str, folder: Path) -> Any:
    """Downloads a set. Looks for what it needs first, as tensorflow-datasets takes minutes to notice a dead network."""
    source = _SOURCES[name]
    if importlib.util.find_spec("tensorflow") is None:
        raise _not_found(name, folder, "to prepare a download TensorFlow is missing", INSTALL_COMMAND)
    by_hand = folder / "downloads" / "manual"  # where tensorflow-datasets looks for archives before it downloads them
    if not all((by_hand / archive).exists() for archive in source.archives) and not _reachable(source.address):
        why = f"{source.address} did not answer within {NETWORK_TIMEOUT:.0f} s"
        raise _not_found(name, folder, why, f"connect to the network, or put {', '.join(source.archives)} in {by_hand}")
    builder = tfds.builder(source.tfds_name, data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
    return builder


def _reachable(url: str) -> bool:
    """Whether a server answers at all, asked just as tensorflow-datasets will ask: same proxies, same certificates."""
    requests = importlib.import_module("requests")
    answers = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            answers.append(requests.head(url, timeout=NETWORK_TIMEOUT))

    thread = threading.Thread(target=ask, daemon=True)  # since no timeout holds for the look-up of a host's name
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return bool(answers)


def _decode(tfds: Any, builder: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for split in ("train", "test"):
        try:
            examples = builder.as_data_source(split)
        except NotImplementedError:  # a set in tensorflow-datasets' older default format: only TensorFlow reads it
            examples = tfds.as_numpy(builder.as_dataset(split))
        pairs = [(example["image"], example["label"]) for example in examples]
        images, labels = zip(*pairs, strict=True)
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array(labels, np.int32)
    return arrays | {"class_names": np.array(builder.info.features["label"].names)}


def _not_found(name: str, folder: Path, why: str, cure: str) -> DataError:
    path = folder / f"{name}.npz"
    return DataError(
        f"{name}: found neither the file {path} nor a set that tensorflow-datasets prepared, and {why}; {cure}; or "
        f"write that file yourself with {_WANTED}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
