"""Checks of what a library user gives, where it comes in: numbers, and functions to be called."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
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
    if _is_tree(value):
        kind = type(value).__name__
        raise TaskError(f"{name} must be a real number, not a tree of type {kind}: give factors by name, {name}=...")
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
    if isinstance(value, jax.core.Tracer):
        raise TaskError(
            f"{name} must be known before a program is traced, not be one of its arguments: give it to jax.jit as one "
            "of static_argnames, or by functools.partial"
        )
    if not is_whole(value) or value < least:
        raise TaskError(f"{name} must be a whole number, {least} or more, not {value!r:.80}")


def check_choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Raises a TaskError unless a setting is one of its options."""
    if value not in (known := tuple(options)):
        raise TaskError(f"unknown {name} '{value}'; available: {', '.join(known)}")


def check_epoch_steps(who: str, epoch_steps: Any) -> None:
    """Raises a TaskError where an update was not given the number of steps of an epoch."""
    if epoch_steps is None:
        raise TaskError(
            f"{who} needs the steps of an epoch: make_train_step(..., epoch_steps=n) and run_rounds give them, and "
            "what wraps the optimiser must hand them on, which optax.MultiSteps does not"
        )


def is_whole(value: Any) -> bool:
    """Whether it is one whole number: Python's own, no bool, or one of an array of shape []."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool) and np.shape(value) == ()


def takes(function: Any, count: int) -> bool:
    """Whether something can be called with so many arguments, as far as that can be known."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it does not tell
        pass
    return True


def taken(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some named arguments that a function takes: all where it takes any, or does not tell."""
    try:
        own = inspect.signature(function).parameters.values()
    except ValueError:
        return dict(arguments)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
        return dict(arguments)
    names = {parameter.name for parameter in own}
    return {name: value for name, value in arguments.items() if name in names}


def parameters(function: Any) -> list[str]:
    """The names of a function's parameters; none where it does not tell."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        return []


def check_can_start(name: str, start: Any) -> None:
    """Raises a TaskError unless what `name` is to be made of can be a start."""
    if not takes(start, 1):
        hint = f"; of a re-initialiser (params, fresh) -> params make {name}(mixed(...))" * takes(start, 2)
        raise TaskError(f"{name} takes a start (boundary) -> state, not {called(start)}{hint}")


def called(value: Any) -> str:
    """What a function, or something that should be one, is called in a message."""
    return getattr(value, "__name__", None) or f"a {type(value).__name__}"


def _is_tree(value: Any) -> bool:
    """Whether it is a tree of more than a leaf; a list is taken for an array."""
    return value is not None and not isinstance(value, list) and not jax.tree_util.all_leaves([value])


def _is_real(value: Any) -> bool:
    if not isinstance(value, numbers.Real | np.generic | np.ndarray | jax.Array):
        return False
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    dtype = value.dtype if is_array else np.asarray(value).dtype  # of an integer of 65 bits, no number's
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
