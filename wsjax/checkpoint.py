"""Checkpoints: a thin layer over Orbax that passes over a damaged one.

A folder keeps its newest checkpoints, numbered by step. Each carries a digest of its arrays, so that a file that was
damaged in any way is found when it is read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

KEPT = 2
"""How many checkpoints a folder keeps: the newest, and one to fall back to."""


def open_folder(folder: Path) -> ocp.training.Checkpointer:
    """Opens a folder of checkpoints; what a killed process left half-written in it is removed."""
    latest = ocp.training.preservation_policies.LatestN(KEPT)
    return ocp.training.Checkpointer(folder.absolute(), preservation_policy=latest, cleanup_tmp_directories=True)


def save(folder: ocp.training.Checkpointer, step: int, state: Any) -> None:
    """Saves a pytree of arrays; it is on the disk when this returns. Raises OSError where it cannot be written."""
    try:
        folder.save(step, state, overwrite=True, force=True, custom_metadata={"digest": digest(state)})
    except Exception as error:  # Orbax and TensorStore report a full disk in several types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"cannot write checkpoint {step} in {folder.directory}: {reason}") from error


def restore(
    folder: ocp.training.Checkpointer, template: Any, wanted: Callable[[int], bool] = lambda step: True
) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that is whole, with a warning for each damaged one that is passed over.

    Args:
      folder: from `open_folder`.
      template: pytree with the checkpoint's structure, shapes, dtypes and shardings.
      wanted: says of a step whether it may be restored.

    Returns:
      (step, state), or None where there is none.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    for step in sorted(_steps(Path(folder.directory)), reverse=True):
        if not wanted(step):
            continue
        try:
            state = folder.load(step, abstract)
            written = (folder.metadata(step).custom_metadata or {}).get("digest")
        except Exception as error:  # whatever is wrong with the files, the one before may be whole
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if written == digest(state):
                return step, state
            reason = "its arrays are not those that were saved"
        warnings.warn(
            f"checkpoint {Path(folder.directory) / str(step)} is damaged, passed over: {reason:.200}", stacklevel=2
        )
    return None


def _steps(folder: Path) -> list[int]:
    """The steps on the disk, whatever state they are in: Orbax does not list those that miss its own files."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def digest(state: Any) -> str:
    """A hash of a pytree's paths, shapes, dtypes and bits."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        total.update(array.view(np.uint8) if array.ndim else array.tobytes())
    return total.hexdigest()
