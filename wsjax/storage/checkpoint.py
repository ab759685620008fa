"""Checkpoints: a thin layer over Orbax that passes over a damaged one, and whose errors are one line.

A folder keeps its newest checkpoints, numbered by step. Orbax makes them whole or not at all, and removes old ones; the
arrays lie in one file each (`tensors`), with a checksum, so that one that was damaged in any way is found when it is
read. Orbax's own format takes four to ten times as long; checkpoints in it, of older versions, are read too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from wsjax.errors import RunError, is_out_of_memory
from wsjax.storage import tensors
from wsjax.storage.files import user_path

KEPT = 2
"""How many checkpoints a folder keeps: the newest, and one to fall back to."""

# Orbax and TensorStore take brackets for a pattern, a backslash for an escape, "gs:" for a service; what is no text
# they cannot take at all. These characters were tried; all others are kept from them.
_SAFE = re.compile(r"[\w .,=+@%~/-]*")
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_ONE_AT_A_TIME = threading.RLock()  # Orbax counts its saves by names of the whole process: two at once wait forever
STATE, FILE = "state", "state.safetensors"
"""A checkpoint's part, and the file in it."""


class _Stored:
    """A pytree as Orbax saves and loads it: one file."""

    def __init__(self, state: Any, step: int):
        self.state = state
        self._about = {"step": str(step)}  # a file of another step may be whole too

    async def save(self, directory: Any) -> Any:
        """Gives what writes the file, once there is a folder for it; the first of several processes does."""

        async def write() -> None:
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                tensors.write(folder / FILE, self.state, **self._about)

        return write()

    async def load(self, directory: Any) -> Any:
        """Gives what reads the file, in place of the template that is there."""

        async def read() -> None:
            self.state = tensors.read(directory / FILE, self.state, **self._about)

        return read()


class UnreadableError(RunError):
    """There are checkpoints, and none of them can be read."""


class Folder:
    """A folder of checkpoints, to be closed or used in a with statement. It is made with the first of them.

    Attributes:
      path: where it is.
      read_back: whether a checkpoint that this process saved here was read again.
    """

    def __init__(self, path: Path | str):
        self.path = user_path(path).absolute()
        self.read_back = False
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._made = False  # whether this process has found or made the folder
        self._links = contextlib.ExitStack()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The numbers of its checkpoints, whole or damaged, the newest first."""
        # The folder's own names, for Orbax does not list a checkpoint that misses some of its files.
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def close(self) -> None:
        """Ends Orbax's threads. Raises nothing: what was saved is on the disk, and why it was not has been said."""
        if self._checkpointer is not None:
            with _orbax(), contextlib.suppress(Exception):
                self._checkpointer.close()
            self._checkpointer = None
        self._links.close()

    def opened(self) -> ocp.training.Checkpointer:
        """Orbax's own of the folder, which is made where it is missing; what was left half-written is removed."""
        if self._made and not self.path.is_dir():
            raise RunError(f"{self.path} was removed while this process was working there; nothing more is saved")
        if self._checkpointer is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._made = True
            latest: Any = ocp.training.preservation_policies.LatestN(KEPT)
            self._checkpointer = ocp.training.Checkpointer(
                self._safe_path(), preservation_policy=latest, cleanup_tmp_directories=True
            )
        return self._checkpointer

    def _safe_path(self) -> str:
        """A path of the folder that Orbax takes as it stands: its own, or a link's."""
        if _SAFE.fullmatch(str(self.path)):
            return str(self.path)
        place = Path(self._links.enter_context(tempfile.TemporaryDirectory(prefix="wsjax-")))
        (place / "checkpoints").symlink_to(self.path, target_is_directory=True)
        return str(place / "checkpoints")


def save(folder: Folder, step: int, state: Any) -> None:
    """Saves a pytree of arrays; it is on the disk when this returns.

    The first checkpoint that a process saves in a folder is read back, so that one that could never be read is known
    before hours of training rely on it.

    Raises:
      OSError: it cannot be written, or not be read back. What was half-written is removed.
      RunError: someone has removed the folder.
      TaskError: a leaf is no array.
    """
    stored = _Stored(tensors.on_host(state), step)
    try:
        with _orbax():
            folder.opened().save_checkpointables(step, {STATE: stored}, overwrite=True, force=True)
            if not folder.read_back:
                _check_written(folder, step, state)
                folder.read_back = True
    except RunError:
        raise
    except Exception as error:  # Orbax and TensorStore report a full disk in several types
        folder.close()
        for part in folder.path.glob(_UNFINISHED):
            shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"cannot write checkpoint {step} in {folder.path}: {_reason(error)}") from error


def restore(
    folder: Folder, template: Callable[[int], Any], wanted: Callable[[int], bool] = lambda step: True
) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that is whole, with a warning for each one that is passed over.

    Args:
      folder: where they are.
      template: gives a pytree of arrays with the structure, shapes, dtypes and shardings of a step's checkpoint.
      wanted: says of a step whether it may be restored.

    Returns:
      (step, state), or None where there is no such checkpoint.

    Raises:
      MemoryError, JaxRuntimeError: there is not enough memory.
      UnreadableError: there are such checkpoints, and none can be read.
      RunError: there are, and all of them are of other arrays than the template's.
    """
    steps, others = list(filter(wanted, folder.steps())), 0
    for step in steps:
        try:
            with _orbax():
                return step, _load(folder, step, template(step))
        except Exception as error:  # whatever is wrong with the files, the one before may be whole
            if is_out_of_memory(_cause(error)):
                raise _cause(error) from None
            strange = isinstance(_cause(error), tensors.OtherArraysError)
            what, others = "another network's or optimiser's" if strange else "damaged", others + strange
            place = folder.path / str(step)
            warnings.warn(f"checkpoint {place} is {what}, passed over: {_reason(error)}", stacklevel=2)
    if steps and len(steps) == others:
        raise RunError(
            f"the checkpoints in {folder.path} are of another network or optimiser; give those that they were saved "
            "with, or choose another folder"
        )
    if steps:
        raise UnreadableError(
            f"none of the checkpoints in {folder.path} can be read; restore them from a copy, or move that folder "
            "away: what they held is then trained again"
        )
    return None


def digest(state: Any) -> str:
    """A hash of a pytree's paths, shapes, dtypes and bits."""
    total = hashlib.sha256()
    for path, array in jax.tree_util.tree_flatten_with_path(tensors.on_host(state))[0]:
        total.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _load(folder: Folder, step: int, template: Any) -> Any:
    """Reads one checkpoint. Raises whatever is wrong with it."""
    if (folder.path / str(step) / STATE / "manifest.ocdbt").exists():
        return _load_pytree(folder, step, template)
    stored = _Stored(template, step)
    folder.opened().load_checkpointables(step, {STATE: stored})
    return stored.state


def _load_pytree(folder: Folder, step: int, template: Any) -> Any:
    """Reads one in Orbax's own format, as older versions wrote it."""
    here = jnp.zeros(()).sharding
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), template)
    checkpointer = folder.opened()
    state = checkpointer.load(step, abstract)
    written: Any = checkpointer.metadata(step).custom_metadata
    if (written or {}).get("digest") != digest(state):
        raise ValueError("its arrays are not those that were saved")
    return state


def _check_written(folder: Folder, step: int, state: Any) -> None:
    try:
        _load(folder, step, state)
    except Exception as error:
        raise OSError(f"read back, it is not what was written ({_reason(error)}); choose another folder") from None


@contextlib.contextmanager
def _orbax() -> Iterator[None]:
    """Gives Orbax to one thread, and keeps its log of a failure back: an error or a warning says it in one line."""
    logger = logging.getLogger("absl")
    with _ONE_AT_A_TIME:
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _cause(error: BaseException) -> BaseException:
    """What an error that was raised from others began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words: what the system said, where a long text tells of it; of several, the cause."""
    error = _cause(error)
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return f"{text.splitlines()[0] if text else type(error).__name__:.200}"
