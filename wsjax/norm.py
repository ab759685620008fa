"""Batch normalisation as a pure function, with a gradient written out: autodiff's is several times slower on a CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from wsjax import kernels


def moments(x: Array, weights: Array, axis_name: str | None = None) -> tuple[Array, Array, Array]:
    """The mean [C] and biased variance [C] over the rows of weight 1, and how many values enter each of them [].

    Args:
        x: images [B, H, W, C].
        weights: [B], 1 for rows that count and 0 for others.
        axis_name: the mapped axis, if any, whose devices hold the other parts of the batch.
    """
    weights = weights.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = weights.sum() * (x.shape[1] * x.shape[2])
    if kernels.support(x, weights):
        channels = jax.ShapeDtypeStruct((x.shape[3],), x.dtype)
        own = partial(kernels.call, "moments", (channels, channels))
        mean, squares = lax.platform_dependent(x, weights, cpu=own, default=_moments)
    else:
        mean, squares = _moments(x, weights)
    if axis_name is None:
        return mean, squares / jnp.maximum(count, 1), count
    # The parts' moments merged (Chan, Golub and LeVeque 1979).
    total = lax.psum(count, axis_name)
    whole_mean = lax.psum(mean * count, axis_name) / jnp.maximum(total, 1)
    whole_squares = lax.psum(squares + count * jnp.square(mean - whole_mean), axis_name)
    return whole_mean, whole_squares / jnp.maximum(total, 1), total


def normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in x's dtype."""
    return ((x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def batch_norm(
    x: Array, weights: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None = None
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Normalises images by their own moments (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

    Differentiable in reverse mode, in x, scale and bias. The moments that are returned carry no gradient.

    Args:
        x: images [B, H, W, C].
        weights: [B], 1 or 0. Rows of weight 0 are normalised like the others but do not enter the moments.
        scale: [C].
        bias: [C].
        epsilon: added to the variance.
        axis_name: see `moments`.

    Returns:
        The normalised images, and (mean [C], biased variance [C], count []).
    """
    mean, var, count = moments(x, weights, axis_name)
    return normalise(x, mean, var, scale, bias, epsilon), (mean, var, count)


def _forward(
    x: Array, weights: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Any, tuple[Array, ...]]:
    y, (mean, var, count) = batch_norm(x, weights, scale, bias, epsilon, axis_name)
    return (y, (mean, var, count)), (x, weights, scale, mean, lax.rsqrt(var + epsilon), count)


def _backward(
    epsilon: float, axis_name: str | None, saved: tuple[Array, ...], cotangents: tuple[Array, Any]
) -> tuple[Array, ...]:
    x, weights, scale, mean, inverse, count = saved
    dy = cotangents[0]
    if kernels.support(dy, x, mean):
        own = partial(kernels.call, "moments_gradient", (mean, mean))
        sums, products = lax.platform_dependent(dy, x, mean, cpu=own, default=_moments_gradient)
    else:
        sums, products = _moments_gradient(dy, x, mean)
    dbias, dscale = sums, products * inverse
    if axis_name is not None:
        sums, products = lax.psum((sums, products), axis_name)
    # dL/dx through the values and, for rows that count, through the mean and the variance.
    share = (weights / jnp.maximum(count, 1))[:, None, None, None]
    through_moments = sums + (x - mean) * (products * jnp.square(inverse))
    dx = (dy - share * through_moments) * (scale * inverse)
    return dx.astype(x.dtype), jnp.zeros_like(weights), dscale, dbias


batch_norm.defvjp(_forward, _backward)


def _moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """The mean [C] and the sum of squared deviations [C] over the rows of weight 1."""
    weights = weights[:, None, None, None]
    count = weights.sum() * (x.shape[1] * x.shape[2])
    mean = (x * weights).sum((0, 1, 2)) / jnp.maximum(count, 1)
    # From the deviations, not E[x^2] - E[x]^2, which cancels where the mean is large.
    return mean, (jnp.square(x - mean) * weights).sum((0, 1, 2))


def _moments_gradient(dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """The sums [C] of dy and of dy * (x - mean), in mean's dtype."""
    dy = dy.astype(mean.dtype)
    return dy.sum((0, 1, 2)), (dy * (x - mean)).sum((0, 1, 2))
