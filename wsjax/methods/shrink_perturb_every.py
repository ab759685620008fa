"""Shrink-perturb in the midst of training, as a transformation of optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_count
from wsjax.methods.leaves import is_left_out, need_params, towards
from wsjax.methods.reinit import Where, shrink_perturb
from wsjax.trees import wide


class CountState(NamedTuple):
    """`steps` []: those so far."""

    steps: jax.Array


def shrink_perturb_every(
    every: int, shrink: Any, perturb: Any, draw: Callable[[jax.Array], Any], key: jax.Array, where: Where | None = None
) -> optax.GradientTransformation:
    """Makes `shrink * params + perturb * draw(key)` of the params after every so many steps; put it last in the chain.

    `wsjax.shrink_perturb` in the midst of training, in anybody's loop of optax: with shrink 1 and perturb 0 no bit
    changes. Under vmap, as of stacked seeds, something is drawn at every step, and all get the same draws unless the
    key is mapped too.

    Args:
      every: steps between two times.
      shrink: factor of the params.
      perturb: factor of the newly drawn ones.
      draw: `key -> params`, the network's own initialiser.
      key: a random key; the n-th time draws from it folded with n, from 1, since the state was built. Where each round
        builds the optimiser's state anew, the draws of the round before come again: keep the state, or give each round
        a key of its own.
      where: chooses leaves by their path; None all.

    Returns:
      A transformation whose state is the number of steps so far, and whose update needs the params. Updates of 16-bit
      leaves leave it in 32 bits; `optax.apply_updates` rounds their sum once. (`optax.apply_if_finite` and other
      branches of optax want them as they came: put those around what stands before this one.)

    Raises:
      TaskError: `every` is no whole number above 0; in `update`, the params are missing.
      ValueError: in `update`, a factor is no number, or what is drawn is not like the params; it names the leaf.
    """
    check_count("shrink_perturb_every: every", every)

    def init(params: Any) -> CountState:
        del params
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, CountState]:
        need_params("shrink_perturb_every", params)
        count = jnp.asarray(state.steps) + 1
        updates = jax.tree.map(_wide, updates, params)

        def mixed() -> Any:
            moved = optax.apply_updates(params, updates)
            drawn = _as_kept(moved, draw(jax.random.fold_in(key, count // every)))
            return jax.tree.map(
                _towards, updates, params, moved, shrink_perturb(moved, drawn, shrink, perturb, where=where)
            )

        return jax.lax.cond(count % every == 0, mixed, lambda: updates), CountState(count)

    return optax.GradientTransformation(init, update)


def _wide(update: Any, param: Any) -> Any:
    """In 32 bits, or the param's: the sum of a leaf and an update, both of 16, would not be what the leaf is to become,
    nor would one of 64 and one of 32."""
    dtype = jnp.result_type(update)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return update
    return jnp.asarray(update, jnp.promote_types(wide(dtype), jnp.result_type(param)))


def _as_kept(moved: Any, drawn: Any) -> Any:
    """What is drawn, but for leaves that another part of the optimiser has."""
    if not any(map(is_left_out, jax.tree.leaves(moved, is_leaf=is_left_out))):
        return drawn
    return jax.tree.map(lambda own, new: own if is_left_out(own) else new, moved, drawn, is_leaf=is_left_out)


def _towards(update: Any, param: Any, moved: Any, target: Any) -> Any:
    """The update after which a leaf is the target; in 16 bits from the leaf itself, for `moved` is rounded."""
    if jnp.result_type(param) == jnp.result_type(update):
        return towards(True, update, moved, target)
    return jnp.where(moved != target, target.astype(update.dtype) - param.astype(update.dtype), update)
