"""Checks of what methods are given, where it comes in."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from wsjax.errors import TaskError


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises a TaskError unless a setting is a finite real number from `least` to `most`; a traced one may be any.

    A number is Python's own, or an array of shape [] of JAX or NumPy.
    """
    if np.shape(value) != ():
        raise TaskError(f"{name} must be a scalar, not an array of shape {np.shape(value)}; use jax.vmap for a grid")
    if not _is_real(value):
        raise TaskError(f"{name} must be a real number, not {value!r:.80}")
    if isinstance(value, jax.core.Tracer):
        return
    if not math.isfinite(value):
        raise TaskError(f"{name} must be finite, not {value}")
    if not least <= value <= most:
        limits = f"lie in [{least:g}, {most:g}]" if math.isfinite(most) else f"be {least:g} or more"
        raise TaskError(f"{name} must {limits}, not {value}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises a TaskError unless a setting is a whole number from `least` on."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise TaskError(f"{name} must be a whole number, {least} or more, not {value!r:.80}")


def _is_real(value: Any) -> bool:
    if not isinstance(value, numbers.Real | np.generic | np.ndarray | jax.Array):
        return False
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    dtype = value.dtype if is_array else np.asarray(value).dtype  # of an integer of 65 bits, no number's
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
