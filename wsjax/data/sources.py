"""Files that data come from: .npz archives, of which nothing is believed before it is checked.

Nothing here ever unpickles a file, or allocates what a file merely claims to hold.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from wsjax.errors import DataError, UsageError
from wsjax.storage.files import replacing, user_path

MAX_GIGABYTES = 8.0
"""What data files that come in by themselves may unpack to where nothing else is said, in 10^9 bytes."""

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
WANTED = (
    "train_images and test_images (uint8 [N, height, width, channels]), train_labels and test_labels (integers [N]) "
    "and, if you like, class_names (strings [num_classes])"
)

_PLAIN = "biufcSU"  # kinds of dtype that are read: numbers and text; neither objects, nor records, nor times
# How NumPy packs arrays, and the most that a byte can unpack to. Other ways may take gigabytes for a byte.
_PACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_HEADER_BYTES = 2**14  # more than NumPy reads of a header
_CHUNK_BYTES = 2**20
_LISTED, _LISTED_LENGTH = 20, 60  # names in a message, characters of each
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, halves of characters, and ends of lines


class Images(NamedTuple):
    """Labelled images without a split.

    Attributes:
        images: uint8 [N, height, width, channels].
        labels: int32 [N], from 0.
        class_names: one name a class, or None where only numbers are known.
        sha256: hash of the file, of those very bytes that the arrays come from; of a folder's files likewise.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    sha256: str


class _Member(NamedTuple):
    """An array of an archive, as its header has it; `start` is where its data begin."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int


def expand_user(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user replaced. Raises DataError where there is no such home, or it can be no path at all."""
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL character")
        return user_path(path)
    except UsageError as error:
        raise DataError(str(error)) from error
    except TypeError as error:
        raise DataError(
            f"a path is a text or a pathlib.Path, not {path!r:.40}; give that of a file or folder"
        ) from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)!r} cannot be a path: {reason(error)}") from error


def open_file(path: Path, wanted: str = "a .npz file") -> BinaryIO:
    """Opens a regular file. Raises DataError for all else: a pipe would wait for its writer, a device may never end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "directory" if stat.S_ISDIR(mode) else "pipe, socket or device"
            raise DataError(f"cannot read {path}: Is a {what}; give the path of {wanted}")
        # O_NONBLOCK: should it have become a pipe since, that's an empty file.
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}; give the path of {wanted}") from error


def read_bytes(path: Path, max_gigabytes: float) -> bytes:
    """All of a regular file. Raises DataError where it cannot be read, or has more than `max_gigabytes` 10^9 bytes."""
    with open_file(path) as file, _faults(path, "its bytes"):
        size = os.fstat(file.fileno()).st_size
        if size > max_gigabytes * 1e9:
            raise DataError(f"{path} has {size / 1e9:,.3g} GB, more than --max_gigabytes={max_gigabytes:g}")
        return file.read(size)


def read_npz(
    file: BinaryIO, origin: object, required: Sequence[str], wanted: str, max_gigabytes: float | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a .npz archive that are `required`, and class_names where it has them.

    All headers are read and checked before an array is allocated, and each array is read into its place.

    Args:
      file: the archive.
      origin: what messages name it.
      required: names of arrays.
      wanted: the same for a reader.
      max_gigabytes: the most that these arrays may take together, unpacked, in 10^9 bytes; by default this machine's
        memory.

    Raises:
      DataError: whatever is wrong with the file.
    """
    with _faults(origin, "the archive"):
        if not zipfile.is_zipfile(file):
            raise DataError(f"{origin} is not a .npz archive, or only a part of one; write it anew with np.savez")
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            infos: dict[str, list[zipfile.ZipInfo]] = {}
            for info in archive.infolist():
                infos.setdefault(info.filename, []).append(info)
            missing = [name for name in required if f"{name}.npy" not in infos]
            if missing:
                found = listed(name.removesuffix(".npy") for name in infos) or "nothing"
                raise DataError(f"{origin} lacks {', '.join(missing)}; found: {found}; wanted: {wanted}")
            members: dict[str, _Member] = {}
            for name in (*required, "class_names"):
                if f"{name}.npy" in infos:
                    with _faults(origin, f"the array {name!r}"):
                        members[name] = _read_header(archive, infos[f"{name}.npy"], size)
            check_size(sum(member.info.file_size for member in members.values()), origin, max_gigabytes)
            arrays = {}
            for name, member in members.items():
                with _faults(origin, f"the array {name!r}"):
                    arrays[name] = _read_array(archive, member)
            return arrays


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Keeps arrays for the next time: whole or not at all, and no reason to stop where that's not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as (part,), part.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(f"cannot keep {path} ({reason(error)}); the next run will decode again", stacklevel=4)


def listed(names: Iterable[object]) -> str:
    """Names in a message: the first ones where there are many, and no more of each than tells it."""
    names = list(names)
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(str(name)[:_LISTED_LENGTH] for name in names[:_LISTED]) + more


def is_text(name: str) -> bool:
    """Whether a name can be printed: it has neither control characters nor what is no Unicode."""
    return not any(unicodedata.category(character) in _NO_TEXT for character in name)


def check_size(size: int, origin: object, max_gigabytes: float | None = None) -> None:
    """Raises DataError where arrays of so many bytes are too large, by default for this machine's memory."""
    if max_gigabytes is None:
        most, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine's memory"
    else:
        most, limit = max_gigabytes * 1e9, f"--max_gigabytes={max_gigabytes:g}"
    if size > most:
        raise DataError(f"{origin}: its arrays unpack to {size / 1e9:,.3g} GB, more than {limit}")


def reason(error: BaseException) -> str:
    """An error in few words: the first line of what it says, or its kind where it says nothing."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().partition("\n")[0]
    return said or type(error).__name__


@contextlib.contextmanager
def _faults(origin: object, what: str) -> Iterator[None]:
    """Whatever a damaged file raises is that file's fault: NumPy's, zipfile's and zlib's errors share no class."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:  # no fault of the file's, and no reason to go on without it
        text, told = reason(error), f"{origin}: "
        raise MemoryError(text if text.startswith(told) else told + text) from error
    except OSError as error:
        raise DataError(f"cannot read {origin}: {reason(error)}; give the path of a .npz file") from error
    except Exception as error:
        raise DataError(
            f"{origin}: cannot read {what} ({reason(error)}); write the file anew with np.savez, as plain arrays: "
            "uint8 images, integer labels, class_names as strings, no objects"
        ) from error


def _read_header(archive: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo], archive_size: int) -> _Member:
    """An array's shape and type, where they agree with what the archive says of it. Raises ValueError and others."""
    if len(infos) > 1:
        raise ValueError("it is there twice")
    (info,) = infos
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    if info.compress_type not in _PACKED:
        raise ValueError("it is compressed in a way that is not NumPy's")
    if info.file_size > _PACKED[info.compress_type] * min(info.compress_size, archive_size):
        raise ValueError("the archive tells of more bytes than it has")
    with archive.open(info) as stream:
        head = io.BytesIO(stream.read(_HEADER_BYTES))
    try:
        shape, fortran_order, dtype = _parse_header(head)
    except Exception as error:  # tokenize's, Python's parser's, NumPy's
        raise ValueError("its header is damaged") from error
    if dtype.kind not in _PLAIN or dtype.itemsize == 0:
        raise ValueError(f"it is of the type {str(dtype)[:_LISTED_LENGTH]}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its sizes are not numbers from 0 on")
    if head.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError("its header tells of another size than it has")
    return _Member(info, shape, dtype, fortran_order, head.tell())


def _parse_header(head: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, fortran_order, dtype) of an array in NumPy's format."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    read = readers[np.lib.format.read_magic(head)]  # a later version is of records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote
        return read(head)


def _read_array(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    """An array without a second copy of it."""
    content = np.empty(member.info.file_size - member.start, np.uint8)
    done = 0
    with archive.open(member.info) as stream:
        stream.read(member.start)
        while chunk := stream.read(min(_CHUNK_BYTES, len(content) - done)):
            content[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
    if done < len(content):
        raise EOFError("it ends early")
    array = content.view(member.dtype)
    return array.reshape(member.shape[::-1]).T if member.fortran_order else array.reshape(member.shape)
