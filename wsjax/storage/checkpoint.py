"""Checkpoints: a thin layer over Orbax that passes over a damaged one.

A folder keeps its newest checkpoints, numbered by step. Each carries a digest of its arrays, so that a file that was
damaged in any way is found when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

KEPT = 2
"""How many checkpoints a folder keeps: the newest, and one to fall back to."""


def open_folder(folder: Path) -> ocp.training.Checkpointer:
    """Opens a folder of checkpoints; what a killed process left half-written in it is removed."""
    latest: Any = ocp.training.preservation_policies.LatestN(KEPT)
    return ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=latest, cleanup_tmp_directories=True)


def save(folder: ocp.training.Checkpointer, step: int, state: Any) -> None:
    """Saves a pytree of arrays; it is on the disk when this returns. Raises OSError where it cannot be written."""
    try:
        folder.save(step, state, overwrite=True, force=True, custom_metadata={"digest": digest(state)})
    except Exception as error:  # Orbax and TensorStore report a full disk in several types
        raise OSError(f"cannot write checkpoint {step} in {folder.directory}: {_first_line(error)}") from error


def restore(
    folder: ocp.training.Checkpointer,
    template: Callable[[int], Any],
    wanted: Callable[[int], bool] = lambda step: True,
) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that is whole, with a warning for each damaged one that is passed over.

    Args:
      folder: from `open_folder`.
      template: gives a pytree of arrays with the structure, shapes, dtypes and shardings of a step's checkpoint.
      wanted: says of a step whether it may be restored.

    Returns:
      (step, state), or None where there is none.
    """
    # The folder's own names, for Orbax does not list a checkpoint that misses some of its files.
    steps = [int(path.name) for path in Path(folder.directory).iterdir() if path.name.isdecimal()]
    for step in sorted(filter(wanted, steps), reverse=True):
        try:
            with _quiet():
                state = folder.load(step, jax.tree.map(_abstract, template(step)))
            written: Any = folder.metadata(step).custom_metadata
            if (written or {}).get("digest") == digest(state):
                return step, state
            reason = "its arrays are not those that were saved"
        except Exception as error:  # whatever is wrong with the files, the one before may be whole
            reason = _first_line(error)
        place = Path(folder.directory) / str(step)
        warnings.warn(f"checkpoint {place} is damaged, passed over: {reason:.200}", stacklevel=2)
    return None


def digest(state: Any) -> str:
    """A hash of a pytree's paths, shapes, dtypes and bits."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's log of a damaged checkpoint back: the warning says it in one line."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
