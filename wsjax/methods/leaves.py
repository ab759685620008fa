"""What the optimiser-side methods share: the leaves that a transformation is for, and a check that they are there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wsjax.errors import TaskError
from wsjax.methods.reinit import Where, chosen_by, function_fault
from wsjax.trees import named_leaves, wide


def chosen(params: Any, where: Where | None = None, widened: bool = False) -> Any:
    """A copy of the floating-point leaves that `where` chooses by their path, with None for every other one.

    It is a copy, for a training step that is given both may donate each; with `widened`, in 32 bits at least.

    Raises:
      TaskError: `where` chooses none of them, or a leaf is a function.
    """
    for name, leaf in _named(params):
        if fault := function_fault(name, leaf):
            raise TaskError(fault)

    def copy(is_chosen: bool, leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        return jnp.array(leaf, wide(dtype) if widened else dtype) if is_chosen else None

    return jax.tree.map(copy, chosen_by(where, params, _is_number), params)


def map_chosen(function: Any, state: Any, first: Any, *others: Any) -> Any:
    """Maps `function(state's leaf, leaf, ...)` over the leaves that were chosen; the others stay as in `first`."""

    def leaf(own: Any, *leaves: Any) -> Any:
        return leaves[0] if is_left_out(own) else function(own, *leaves)

    return jax.tree.map(leaf, state, first, *others, is_leaf=is_left_out)


def towards(when: Any, update: Any, moved: Any, target: Any) -> Any:
    """An update after which a leaf is the target, where it is time and the update alone would lead elsewhere.

    Written as a correction: where the target is what the leaf becomes anyway, not a bit changes.
    """
    return jnp.where(when & (moved != target), update + (target - moved).astype(update.dtype), update)


def _is_number(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def need_params(who: str, params: Any) -> None:
    """Raises a TaskError where an update was not given the params."""
    if params is None:
        raise TaskError(f"{who} needs the parameters: call update(updates, state, params)")


def check_params(who: str, params: Any, state: Any) -> None:
    """Raises a TaskError, which names the first such leaf, unless the params are those that a state was built for."""
    need_params(who, params)
    old, new = (dict(_named(tree)) for tree in (state, params))
    for name, leaf in old.items():
        if name not in new:
            raise TaskError(
                f"{who}: its state has a leaf '{name}', which the parameters lack; build it by init(params)"
            )
        if leaf is not None and jnp.shape(leaf) != jnp.shape(new[name]):
            shapes = f"{list(jnp.shape(new[name]))} in the parameters, {list(jnp.shape(leaf))} in its state"
            raise TaskError(f"{who}: leaf '{name}' is {shapes}; build it by init(params)")
    if extra := [name for name in new if name not in old]:
        raise TaskError(
            f"{who}: the parameters have a leaf '{extra[0]}', which its state lacks; build it by init(params)"
        )


def is_left_out(node: Any) -> bool:
    """Whether a leaf is not the transformation's: of another kind, or another part's by `optax.masked`."""
    return node is None or isinstance(node, optax.MaskedNode)


def _named(tree: Any) -> list[tuple[str, Any]]:
    return named_leaves(tree, lambda leaf: leaf is None)
