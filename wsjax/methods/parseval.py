"""Parseval regularisation: the outputs of every layer are held near orthogonal to each other.

Chung, Cherif, Meger and Precup, "Parseval Regularization for Continual Reinforcement Learning" (NeurIPS 2024,
https://arxiv.org/abs/2412.07224).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_number
from wsjax.methods.layouts import EXACT, Axes, Layout, flax_layout, kernels_of, map_layers
from wsjax.methods.leaves import need_params


def parseval(params: Any, strength: Any = 1e-3, scale: Any = 1.0, *, layout: Layout = flax_layout) -> jax.Array:
    """The penalty `strength * sum over kernels of ||W Wᵀ - scale * I||²`, a term of a loss.

    W is [out, in], with all of space among the inputs. A kernel of more outputs than inputs cannot reach 0.

    Args:
      params: pytree of parameters; only kernels count.
      strength: scalar, a number or a (traced) array of shape []; the authors' is 1e-3 or 1e-4 for layers of width 64.
      scale: scalar likewise, the squared length of W's rows; the authors' is 2, FIRE's comparison has 1.
      layout: tells kernels and their axes; the authors leave out the last layer, by a layout of their own.

    Returns:
      A scalar, in float32 at least. Works under jit, vmap and grad.

    Raises:
      ValueError: no leaf is a kernel, or one is of numbers that cannot be worked with (it is named), or strength or
        scale is none.
    """
    for name, factor in (("strength", strength), ("scale", scale)):
        check_number(name, factor)

    def squared(kernel: jax.Array) -> jax.Array:
        return jnp.sum(_off(kernel, scale) ** 2)

    return strength * sum(map(squared, kernels_of(layout, params).values()), jnp.zeros(()))


def add_parseval(
    strength: float = 1e-3, scale: float = 1.0, *, layout: Layout | None = None
) -> optax.GradientTransformation:
    """Adds the gradient of `parseval` to that of the loss: `optax.chain(add_parseval(), optax.adam(0.001))`.

    Behind an optimiser's scaling it would be decoupled, as AdamW's weight decay is. Without a layout kernels are found
    as Flax stores them (`flax_layout`).
    """
    layout = layout or flax_layout  # no default, for optax.inject_hyperparams takes a function for a schedule

    for name, factor in (("strength", strength), ("scale", scale)):
        check_number(name, factor)

    def added(_: Axes, update: jax.Array, kernel: jax.Array) -> jax.Array:
        return update + 4 * strength * jnp.einsum("nop,nspi->nsoi", _off(kernel, scale), kernel, precision=EXACT)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        need_params("add_parseval", params)
        return map_layers(added, layout, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _off(kernel: jax.Array, scale: Any) -> jax.Array:
    """`W Wᵀ - scale * I`, [stack, out, out], of a kernel [stack, space, out, in]."""
    gram = jnp.einsum("nsoi,nspi->nop", kernel, kernel, precision=EXACT)
    return gram - scale * jnp.eye(gram.shape[-1], dtype=gram.dtype)
