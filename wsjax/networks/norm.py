"""Normalisation by a batch's moments, with the shortcut and the ReLU that follow it, as pure functions.

On a CPU the compiled kernels of `wsjax.networks.kernels` do it, where they can be had. XLA's CPU code takes several
times as long for a product that is summed over pixels, and computes a ReLU's input anew, through all blocks before it,
for the gradient's mask.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from wsjax.networks.kernels import on_cpu
from wsjax.trees import wide

Moments = tuple[Array, Array, Array]
"""The mean [C] and biased variance [C] over the rows that count, and how many values enter each of them []."""


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def batch_norm(
    x: Array,
    weights: Array,
    scale: Array,
    bias: Array,
    shortcut: Array | None,
    epsilon: float,
    relu: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, Moments]:
    """Normalises images by their own moments (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

    Differentiable in reverse mode, in x, scale, bias and shortcut. The moments that are returned carry no gradient.

    Args:
        x: images [B, H, W, C].
        weights: [B], 1 or 0. Rows of weight 0 are normalised like the others but do not enter the moments.
        scale: [C].
        bias: [C].
        shortcut: images [B, H, W, C] that are added, or None.
        epsilon: added to the variance.
        relu: whether a ReLU comes last.
        axis_name: the mapped axis, if any, whose devices hold the other parts of the batch.

    Returns:
        Images of x's dtype, and the moments.
    """
    mean, var, count = moments(x, weights, axis_name)
    return _normalise(x, mean, var, scale, bias, shortcut, epsilon, relu), (mean, var, count)


def moments(x: Array, weights: Array, axis_name: str | None = None) -> Moments:
    """The moments of images [B, H, W, C] over rows of weight 1, and over a mapped axis, if any."""
    weights = weights.astype(wide(x.dtype))
    count = weights.sum() * (x.shape[1] * x.shape[2])
    channels = jax.ShapeDtypeStruct(x.shape[3:], weights.dtype)
    mean, squares = on_cpu("moments", (channels, channels), (x, weights), _moments)
    if axis_name is None:
        return mean, squares / jnp.maximum(count, 1), count
    # The parts' moments merged (Chan, Golub and LeVeque 1979).
    total = lax.psum(count, axis_name)
    whole_mean = lax.psum(mean * count, axis_name) / jnp.maximum(total, 1)
    whole_squares = lax.psum(squares + count * jnp.square(mean - whole_mean), axis_name)
    return whole_mean, whole_squares / jnp.maximum(total, 1), total


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def normalise(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    shortcut: Array | None,
    epsilon: float,
    relu: bool = False,
) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in x's dtype; see `batch_norm` for what follows."""
    return _normalise(x, mean, var, scale, bias, shortcut, epsilon, relu)


def _batch_norm_forward(
    x: Array, weights: Array, scale: Array, bias: Array, shortcut: Array | None, *static: Any
) -> Any:
    epsilon, relu, _ = static
    result: Any = batch_norm(x, weights, scale, bias, shortcut, *static)
    z, (mean, var, count) = result
    saved = x, weights, scale, shortcut is not None, z if relu else None, mean, lax.rsqrt(var + epsilon), count
    return result, saved


def _batch_norm_backward(_: float, relu: bool, axis_name: str | None, saved: Any, cotangents: Any) -> Any:
    x, weights, scale, has_shortcut, z, mean, inverse, count = saved
    dz = cotangents[0]
    empty = jnp.zeros(0, x.dtype)
    channels = jax.ShapeDtypeStruct(mean.shape, mean.dtype)
    results = jax.ShapeDtypeStruct(x.shape if relu else (0,), x.dtype), channels, channels
    plain = partial(_normalise_gradient, relu)
    arrays = dz, z if relu else empty, x, mean
    masked, sums, products = on_cpu("normalise_gradient", results, arrays, plain)
    dy = masked if relu else dz
    dbias, dscale = sums, products * inverse
    if axis_name is not None:
        sums, products = lax.psum((sums, products), axis_name)
    # dL/dx through the values and, for rows that count, through the mean and the variance.
    share = (weights / jnp.maximum(count, 1))[:, None, None, None]
    through_moments = sums + (x - mean) * (products * jnp.square(inverse))
    dx = (dy - share * through_moments) * (scale * inverse)
    return dx.astype(x.dtype), jnp.zeros_like(weights), dscale, dbias, dy if has_shortcut else None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _normalise_forward(*arguments: Any) -> tuple[Array, Any]:
    return normalise(*arguments), arguments[:6]


def _normalise_backward(epsilon: float, relu: bool, saved: Any, dz: Array) -> Any:
    return jax.vjp(partial(_normalise_plain, epsilon=epsilon, relu=relu), *saved)[1](dz)


normalise.defvjp(_normalise_forward, _normalise_backward)


def _normalise(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, shortcut: Array | None, epsilon: float, relu: bool
) -> Array:
    arrays = x, mean, scale * lax.rsqrt(var + epsilon), bias, jnp.zeros(0, x.dtype) if shortcut is None else shortcut

    def plain(*_: Array) -> Array:
        return _normalise_plain(x, mean, var, scale, bias, shortcut, epsilon, relu)

    return on_cpu("normalise", jax.ShapeDtypeStruct(x.shape, x.dtype), arrays, plain, relu=int(relu))


def _normalise_plain(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, shortcut: Array | None, epsilon: float, relu: bool
) -> Array:
    y = ((x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(x.dtype)
    y = y if shortcut is None else y + shortcut
    return jnp.maximum(y, 0) if relu else y


def _moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """The mean [C] and the sum of squared deviations [C] over the rows of weight 1."""
    weights = weights[:, None, None, None]
    count = weights.sum() * (x.shape[1] * x.shape[2])
    mean = (x * weights).sum((0, 1, 2)) / jnp.maximum(count, 1)
    # From the deviations, not E[x^2] - E[x]^2, which cancels where the mean is large.
    return mean, (jnp.square(x - mean) * weights).sum((0, 1, 2))


def _normalise_gradient(relu: bool, dz: Array, z: Array, x: Array, mean: Array) -> tuple[Array, Array, Array]:
    """dz where the ReLU let it through, and the sums [C] of that and of its product with x - mean."""
    dy = jnp.where(z > 0, dz, 0) if relu else dz
    wide = dy.astype(mean.dtype)
    return dy if relu else z, wide.sum((0, 1, 2)), (wide * (x - mean)).sum((0, 1, 2))
