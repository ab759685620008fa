"""Data sets through tensorflow-datasets: those that it has prepared on this machine, or downloads now."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import math
import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.data.image_files import IMAGE_SIZE, fitted_array
from wsjax.data.sources import WANTED, check_size, listed, reason
from wsjax.errors import DataError

PREFIX = "tfds:"
"""Of a set that is named as tensorflow-datasets names it: tfds:NAME, tfds:NAME/CONFIG, either with :VERSION."""
NETWORK_TIMEOUT = 5.0  # seconds
INSTALL_COMMAND = 'pip install "wsjax[data]"'

_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\w.]+)?")
_SPLITS = ("train", "test")


class Source(NamedTuple):
    """Where tensorflow-datasets finds a set; of one that is not among `SOURCES` only the name is known."""

    tfds_name: str
    num_classes: int = 0
    address: str | None = None
    archives: tuple[str, ...] = ()


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
SOURCES = {
    "cifar10": Source("cifar10", 10, _CIFAR, ("cifar-10-binary.tar.gz",)),
    "cifar100": Source("cifar100", 100, _CIFAR, ("cifar-100-binary.tar.gz",)),
    # tensorflow-datasets always fetches SVHN's "extra" images too (1.3 GB), which nothing here reads.
    "svhn": Source("svhn_cropped", 10, _SVHN, ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat")),
}


def source_of(name: str) -> Source:
    """The source of a set of `SOURCES`, or of a name with `PREFIX`. Raises DataError where it is not spelled so."""
    if name in SOURCES:
        return SOURCES[name]
    spelled = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(spelled):
        raise DataError(f"{name!r} names no set of tensorflow-datasets; write tfds:NAME or tfds:NAME/CONFIG")
    return Source(spelled)


def kept_as(name: str, image_size: int | None = None) -> str:
    """The name of the .npz file that a set is kept in once it was decoded."""
    size = "" if image_size is None else f"-{image_size}px"
    return re.sub("[:/]", "-", name) + f"{size}.npz"


def read_tfds(name: str, path: Path, image_size: int | None = None) -> dict[str, np.ndarray]:
    """A set through tensorflow-datasets: already prepared in `path`'s folder or in its own, or downloaded now.

    Args:
      name: of `SOURCES`, or with `PREFIX`.
      path: the .npz file that is not there; its folder takes a download.
      image_size: pixels of a side, to resize to as folders of images are. By default images stay as they are, and are
        resized to `IMAGE_SIZE` in a set that does not promise them to have one size.

    Returns:
      train_images and test_images (uint8 [N, height, width, channels]), train_labels, test_labels, class_names.

    Raises:
      DataError: there is no such set, it has no images with a class each, or not both splits, or it cannot be read.
    """
    source = source_of(name)
    tfds = _import_tfds(name, path)
    try:
        return _decode(tfds, name, _prepared(tfds, source, path) or _prepare(tfds, name, source, path), image_size)
    except DataError:
        raise
    except ImportError as error:  # Pillow, or for a set in the TFRecord format TensorFlow
        lacks = f"tensorflow-datasets lacks a package ({reason(error)})"
        raise DataError(f"{name}: {lacks}; {INSTALL_COMMAND}") from error
    except tfds.core.DatasetNotFoundError as error:
        close = difflib.get_close_matches(source.tfds_name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        raise DataError(f"{name}: tensorflow-datasets has no set of this name{hint}") from error
    except Exception as error:  # network, disk, checksum, a damaged file, TensorFlow: their errors share no class
        raise DataError(
            f"{name}: tensorflow-datasets failed with {type(error).__name__}: {reason(error)}; if its files in "
            f"{path.parent} are incomplete, remove them and try again, or write {path} yourself with {WANTED}"
        ) from error


def _import_tfds(name: str, path: Path) -> Any:
    """tensorflow-datasets, an optional package: sets that are already there as .npz need none."""
    try:
        importlib.import_module("importlib_resources")  # tensorflow-datasets needs it without saying so
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise _not_found(name, path, f"to look further a package is missing ({error})", INSTALL_COMMAND) from error


def _prepared(tfds: Any, source: Source, path: Path) -> Any | None:
    """The builder of a set on disk: in the file's folder, else where tensorflow-datasets keeps its sets."""
    for place in (path.parent, None):
        with contextlib.suppress(tfds.core.DatasetNotFoundError):  # of a set that is known by its files alone
            builder = tfds.builder(source.tfds_name, data_dir=place)
            if builder.data_path.exists():
                return builder
    return None


def _prepare(tfds: Any, name: str, source: Source, path: Path) -> Any:
    """Downloads a set. Looks for what it needs first, as tensorflow-datasets takes minutes to notice a dead network."""
    builder = tfds.builder(source.tfds_name, data_dir=path.parent, file_format="array_record")
    if importlib.util.find_spec("tensorflow") is None:
        raise _not_found(name, path, "to prepare a download TensorFlow is missing", INSTALL_COMMAND)
    downloads = path.parent / "downloads"
    by_hand = downloads / "manual"  # where tensorflow-datasets looks for archives before it downloads them
    there = source.archives and all((by_hand / archive).exists() for archive in source.archives)
    address = source.address or _address(builder)
    if address and not there and not _reachable(address):
        why = f"{address} did not answer within {NETWORK_TIMEOUT:.0f} s"
        put = f", or put {', '.join(source.archives)} in {by_hand}" if source.archives else ""
        raise _not_found(name, path, why, f"connect to the network{put}")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_dir=downloads, download_config=config)
    return builder


def _address(builder: Any) -> str | None:
    """The server that a set's files come from, where tensorflow-datasets has written it down."""
    for url in builder.url_infos or ():
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https"):
            return f"{parts.scheme}://{parts.netloc}"
    return None


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


def _decode(tfds: Any, name: str, builder: Any, image_size: int | None) -> dict[str, np.ndarray]:
    features, splits = builder.info.features, builder.info.splits
    if missing := [split for split in _SPLITS if split not in splits]:
        lacks = f"{name} has no {' and no '.join(missing)} split"
        raise DataError(f"{lacks}, only {listed(splits) or 'none'}; take a set with both, or your own folder of images")
    image = _feature(features, tfds.features.Image, "image")
    label = _feature(features, tfds.features.ClassLabel, "label")
    if image is None or label is None or features[image].np_dtype != np.uint8 or not features[label].names:
        raise DataError(f"{name} is no set of 8-bit images with a class each; its features: {listed(sorted(features))}")
    shape = features[image].shape
    size = image_size or (None if all(shape) else IMAGE_SIZE)
    one_size = math.prod(shape) if size is None else size * size * (shape[-1] or 3)
    check_size(one_size * sum(splits[split].num_examples or 0 for split in _SPLITS), name)
    arrays = {}
    for split in _SPLITS:
        try:
            examples = builder.as_data_source(split)
        except NotImplementedError:  # a set in tensorflow-datasets' older default format: only TensorFlow reads it
            examples = tfds.as_numpy(builder.as_dataset(split))
        pairs = [(_sized(example[image], size, shape[-1] == 1), example[label]) for example in examples]
        images, labels = zip(*pairs, strict=True)
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array(labels, np.int32)
    return arrays | {"class_names": np.array(features[label].names)}


def _feature(features: Any, kind: type, usual: str) -> str | None:
    """The name of a set's feature of a kind: the usual one, else the only one."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return usual if usual in names else names[0] if len(names) == 1 else None


def _sized(pixels: np.ndarray, size: int | None, grey: bool) -> np.ndarray:
    return pixels if size is None else fitted_array(pixels, size, grey)


def _not_found(name: str, path: Path, why: str, cure: str) -> DataError:
    return DataError(
        f"{name}: found neither the file {path} nor a set that tensorflow-datasets prepared, and {why}; {cure}; or "
        f"write that file yourself with {WANTED}"
    )
