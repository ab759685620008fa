"""FIRE: kernels are moved towards the nearest isometries, which keeps what was learned and restores plasticity.

Han et al., "FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity Tradeoff" (ICLR 2026).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from wsjax.checks import check_choice, check_count
from wsjax.methods.layouts import EXACT, Axes, Layout, flax_layout, kernels_of, map_layers
from wsjax.methods.reinit import check_match
from wsjax.training.singular import svd


def fire(params: Any, fresh: Any = None, *, steps: int | None = 10, layout: Layout = flax_layout) -> Any:
    """Replaces each matrix W of each kernel by `sqrt(out / in) / size * U`, where U is near W's polar factor.

    A dense kernel is one matrix, that of a convolution one for each position in space; `size` is the number of those.
    `U` is the orthogonal matrix nearest to W, what is left of W when all its singular values are set to 1. The authors
    go towards it by steps of Newton and Schulz, `X <- 1.5 X - 0.5 X XᵀX`, from W at Frobenius norm 1. A step lifts
    a small singular value by 1.5 at most, so that ten leave wide matrices visibly short of it (`isometry_error` tells
    how far), and five are little more than a rescale (`with_norms_of`).

    Args:
      params: pytree of the trained parameters. Biases, normalisation and other leaves stay as they are.
      fresh: a pytree like `params`, whose numbers are not looked at; it makes this a re-initialiser.
      steps: how many, 0 or more; None goes all the way, by a singular value decomposition. The authors take 10 for
        networks of images and 5 for language models.
      layout: tells kernels and their axes.

    Returns:
      A pytree like `params`, with its dtypes; computed in float32 at least. Kernels of zeros stay so. Works under jit
      and vmap.

    Raises:
      ValueError: steps is no such number; fresh is no such tree; no leaf is a kernel, or one is of numbers that cannot
        be worked with (it is named).
    """
    if fresh is not None:
        check_match(params, fresh)
    if steps is not None:
        check_count("steps", steps, least=0)

    def isometry(_: Axes, kernel: jax.Array) -> jax.Array:
        unit = _unit(kernel, (-2, -1))
        return _gain(kernel) * (_polar(unit) if steps is None else _newton_schulz(unit, steps))

    return map_layers(isometry, layout, params)


def with_norms_of(
    params: Any, like: Any, *, each: Literal["kernel", "matrix"] = "kernel", layout: Layout = flax_layout
) -> Any:
    """The parameters with each kernel at the Frobenius norm that it has in another tree.

    What FIRE and its kin must be told from, for under BatchNorm a kernel's norm sets its effective learning rate:
    `with_norms_of(params, fire(params), each="matrix")` rescales only, as FIRE does; `with_norms_of(fire(params),
    fresh)` is FIRE at the norm of a new network; `with_norms_of(params, fresh)` a warm start at that norm.

    Args:
      params: pytree; a re-initialiser's `(params, fresh)`, so that this is one itself.
      like: pytree like it.
      each: whether a convolution's kernel is rescaled as a whole or each of its positions in space by itself.
      layout: tells kernels and their axes.

    Raises:
      ValueError: the trees differ, or what `fire` raises it for.
    """
    check_choice("each", each, ("kernel", "matrix"))
    check_match(params, like, "like")
    over = (-3, -2, -1) if each == "kernel" else (-2, -1)

    def rescaled(_: Axes, kernel: jax.Array, like: jax.Array) -> jax.Array:
        return _unit(kernel, over) * _norm(like, over)

    return map_layers(rescaled, layout, params, like)


def isometry_error(params: Any, *, layout: Layout = flax_layout) -> dict[str, jax.Array]:
    """How far each kernel is from what FIRE goes towards: `||XᵀX - I||² / rank`, 0 for an isometry.

    By the leaf's path; a mean over a convolution's positions in space. X is W over `sqrt(out / in) / size`, on its tall
    side, and the rank is the smaller of its two; kernels of zeros have 1.
    """

    def error(kernel: jax.Array) -> jax.Array:
        gram = _gram(_tall(kernel / _gain(kernel)))
        size = gram.shape[-1]
        return jnp.mean(jnp.sum((gram - jnp.eye(size, dtype=gram.dtype)) ** 2, (-2, -1))) / size

    return {path: error(kernel) for path, kernel in kernels_of(layout, params).items()}


def _gain(kernel: jax.Array) -> float:
    """The singular value of FIRE's matrices, for a kernel [stack, space, out, in]."""
    _, space, outputs, inputs = kernel.shape
    return math.sqrt(outputs / inputs) / space


def _newton_schulz(matrix: jax.Array, steps: int) -> jax.Array:
    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        return 1.5 * x - 0.5 * jnp.matmul(x, _gram(x), precision=EXACT)

    x = jax.lax.fori_loop(0, steps, step, _tall(matrix))  # unrolled, a ResNet's kernels compile for half a minute
    return x if x.shape == matrix.shape else jnp.swapaxes(x, -1, -2)


def _polar(matrix: jax.Array) -> jax.Array:
    left, values, right = svd(matrix)
    # A singular value of 0 has no direction of its own: it stays 0, and so does a matrix of zeros.
    least = max(matrix.shape[-2:]) * jnp.finfo(matrix.dtype).eps * values[..., :1]
    return jnp.matmul(left * (values > least)[..., None, :], right, precision=EXACT)


def _tall(matrix: jax.Array) -> jax.Array:
    """The matrix, or its transpose where it is wide."""
    return matrix if matrix.shape[-2] >= matrix.shape[-1] else jnp.swapaxes(matrix, -1, -2)


def _gram(tall: jax.Array) -> jax.Array:
    return jnp.matmul(jnp.swapaxes(tall, -1, -2), tall, precision=EXACT)


def _unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Scaled to norm 1 over those axes; what is zero stays so."""
    norm = _norm(x, axes)
    return x / jnp.where(norm == 0, 1, norm)


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # Over the largest entry, lest its square be too large or too small for a number.
    largest = jnp.max(jnp.abs(x), axes, keepdims=True)
    scaled = x / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(scaled * scaled, axes, keepdims=True))
