"""Convolution and max pooling that are fast on a CPU too, and inside compiled loops.

XLA's own convolution is what a GPU wants, and gets here. On a CPU the compiled kernels of `wsjax.networks.kernels`
take its place. Where these can't be had, XLA's convolution is kept from two traps:

- Autodiff writes a convolution's gradients with permuted axes. A CPU has no fast kernel for these, and inside
  `lax.scan` and its kin XLA doesn't put them right (https://github.com/jax-ml/jax/issues/12868). So both gradients are
  written out as convolutions of NHWC images with HWIO kernels.
- An image smaller than the kernel falls to a naive loop, up to 100 times slower than a matrix product for each tap.

The ways are chosen when a function is traced, and all of them give the same values up to rounding.
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from wsjax.networks.kernels import on_cpu


def conv(x: Array, kernel: Array, stride: int = 1, padding: int = 0) -> Array:
    """Convolves images with a kernel (a cross-correlation, as is usual).

    Differentiable in reverse mode only.

    Args:
        x: images [B, H, W, C].
        kernel: [K, K, C, D], of the images' dtype.
        stride: step of the window along both sides.
        padding: number of zeros added on each side of the images.

    Returns:
        [B, (H + 2 * padding - K) // stride + 1, (W + 2 * padding - K) // stride + 1, D].

    Raises:
        ValueError: if the kernel is not square.
    """
    if kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"the kernel is {kernel.shape[0]} x {kernel.shape[1]}; it must be square.")
    if kernel.shape[0] == 1 and padding == 0 and stride > 1:  # most pixels are not looked at
        x, stride = x[:, ::stride, ::stride], 1
    return _conv(x, kernel, stride, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    window = dict(stride=stride, padding=padding)
    plain = _conv_taps if _is_smaller(x, kernel) else _conv_native
    size = [max((length + 2 * padding - kernel.shape[0]) // stride + 1, 0) for length in x.shape[1:3]]
    result = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    arrays = x, kernel
    return on_cpu("convolve", result, arrays, partial(plain, **window), partial(_conv_native, **window), **window)


def _conv_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride: int, padding: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    (x, kernel), window = saved, dict(stride=stride, padding=padding)
    plain_x = _images_gradient_taps if _is_smaller(dy, kernel) else _images_gradient

    def gradient(name: str, argument: int, plain: Callable[..., Array], arrays: tuple[Array, Array]) -> Array:
        native = partial(_gradient_native, argument)
        ways = [lambda *_, f=f: f(x, kernel, dy, **window) for f in (plain, native)]
        return on_cpu(name, jax.ShapeDtypeStruct(saved[argument].shape, x.dtype), arrays, *ways, **window)

    dx = gradient("images_gradient", 0, plain_x, (dy, kernel))
    return dx, gradient("kernel_gradient", 1, _kernel_gradient, (x, dy))


_conv.defvjp(_conv_forward, _conv_backward)


def _is_smaller(x: Array, kernel: Array) -> bool:
    """Whether the images [B, H, W, _] are smaller than the kernel [KH, KW, _, _]."""
    return x.shape[1] < kernel.shape[0] or x.shape[2] < kernel.shape[1]


def _conv_native(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _gradient_native(argument: int, x: Array, kernel: Array, dy: Array, stride: int, padding: int) -> Array:
    """The gradient for `x` (argument 0) or `kernel` (1) as autodiff writes it, which is the form that GPUs know."""

    def linear(one: Array) -> Array:
        images, taps = (one, kernel) if argument == 0 else (x, one)
        return _conv_native(images, taps, stride, padding)

    return jax.linear_transpose(linear, (x, kernel)[argument])(dy)[0]


def _conv_taps(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The convolution as a sum of matrix products, one for each tap of the kernel."""
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    products = [
        x[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j]
        for i in range(height)
        for j in range(width)
    ]
    return reduce(jnp.add, products)


def _images_gradient_taps(x: Array, kernel: Array, dy: Array, stride: int, padding: int) -> Array:
    return jax.vjp(lambda x: _conv_taps(x, kernel, stride, padding), x)[1](dy)[0]


def _images_gradient(x: Array, kernel: Array, dy: Array, stride: int, padding: int) -> Array:
    """dL/dx [B, H, W, C]: the convolution of dy [B, P, Q, D] with the flipped kernel, dy spread out by the stride."""
    pads = []
    for size, taps, outputs in zip(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strict=True):
        low = taps - 1 - padding
        pads.append((low, size + taps - 2 - low - (outputs - 1) * stride))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        dy, flipped, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _kernel_gradient(x: Array, kernel: Array, dy: Array, stride: int, padding: int) -> Array:
    """dL/dkernel [KH, KW, C, D]: the convolution of x, channels as its batch, with dy as a kernel of P x Q taps."""
    pads = []
    for size, taps, outputs in zip(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strict=True):
        pads.append((padding, taps + (outputs - 1) * stride - size - padding))
    images, taps = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    gradient = lax.conv_general_dilated(
        images, taps, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return gradient.transpose(1, 2, 0, 3)


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Takes the maximum of every 3x3 window at stride 2, padded by one.

    Where a window holds its maximum more than once, the first in row-major order gets the gradient, as in PyTorch. The
    gradient gathers at every pixel from the windows around it; XLA's scatter is several times slower on a CPU.
    Differentiable in reverse mode only.

    Args:
        x: images [B, H, W, C].

    Returns:
        [B, ceil(H / 2), ceil(W / 2), C].
    """
    batch, height, width, channels = x.shape
    result = jax.ShapeDtypeStruct((batch, (height + 1) // 2, (width + 1) // 2, channels), x.dtype)
    return on_cpu("max_pool", result, (x,), _max_pool_taps)


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
    return max_pool(x), x


def _max_pool_backward(x: Array, dy: Array) -> tuple[Array]:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (on_cpu("max_pool_gradient", result, (x, dy), _max_pool_gradient),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_pool_taps(x: Array) -> Array:
    return reduce(jnp.maximum, _pool_taps(x))


def _max_pool_gradient(x: Array, dy: Array) -> Array:
    winner = lax.optimization_barrier(_pool_winner(x))  # else XLA computes it anew for every use

    def sent(tap: int) -> Array:
        return jnp.where(winner == tap, dy, 0)

    def below(values: Array) -> Array:
        return _next(values, axis=1)

    def right(values: Array) -> Array:
        return _next(values, axis=2)

    # Window (a, b) has pixel (2a, 2b) in its middle, at tap 4 of 3x3. A pixel of odd row or column lies in several.
    even_rows = jnp.stack([sent(4), sent(5) + right(sent(3))], 3)
    odd_rows = jnp.stack([sent(7) + below(sent(1)), sent(8) + right(sent(6)) + below(sent(2) + right(sent(0)))], 3)
    batch, rows, columns, channels = dy.shape
    dx = jnp.stack([even_rows, odd_rows], 2).reshape(batch, 2 * rows, 2 * columns, channels)
    return dx[:, : x.shape[1], : x.shape[2]]


def _pool_taps(x: Array) -> list[Array]:
    """The nine pixels of every window, each [B, ceil(H / 2), ceil(W / 2), C], in row-major order."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    return [x[:, i : i + rows : 2, j : j + columns : 2] for i in range(3) for j in range(3)]


def _pool_winner(x: Array) -> Array:
    """The tap, 0 to 8, that first holds each window's maximum: int8 [B, ceil(H / 2), ceil(W / 2), C]."""
    best, *others = _pool_taps(x)
    winner = jnp.zeros(best.shape, jnp.int8)
    for tap, pixel in enumerate(others, start=1):
        winner = jnp.where(pixel > best, jnp.int8(tap), winner)
        best = jnp.maximum(best, pixel)
    return winner


def _next(x: Array, axis: int) -> Array:
    """x[n + 1] at every n along the axis, and zero beyond the edge."""
    # A concatenation: XLA's CPU code for it is faster than for a pad.
    zeros = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([lax.slice_in_dim(x, 1, None, axis=axis), zeros], axis)
