"""Random augmentation of train images: pad and crop, flip, colour jitter, rotation.

What is drawn (`draw`) and what is done with it (`crop`, `flip`, `jitter`, `rotate`) are pure functions of one image,
mapped over a batch by `augmented`. They work on uint8 images with PIL's integer arithmetic, so that the same draws give
the pixels of the report's torchvision transforms: a jittered value is cut to a whole number after each of the three
adjustments, a gray value and the mean of an image's are rounded. What can differ is a value that falls on a whole
number within float32's rounding, by one level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wsjax.errors import TaskError
from wsjax.kept import kept
from wsjax.training.task import BatchStats, Params, Task

PAD = 4  # pixels on every side
JITTER = 0.25
DEGREES = 2.0


class Draws(NamedTuple):
    """What is random in one image's augmentation.

    Attributes:
      offset: [2], row and column of the padded image where the crop begins, each in 0 to 2 PAD.
      flipped: [], whether left and right change places.
      factors: [3], of brightness, contrast and saturation, each in 1 - JITTER to 1 + JITTER.
      order: [3], a permutation: which of these three comes first, second and last.
      degrees: [], the angle, in -DEGREES to DEGREES.
    """

    offset: jax.Array
    flipped: jax.Array
    factors: jax.Array
    order: jax.Array
    degrees: jax.Array


@kept
def augmented(task: Task, augment: Callable[[jax.Array, Any], Any]) -> Task:
    """The task with inputs augmented in training; in evaluation, and wherever else there are no keys, it is the same.

    Args:
      task: what is trained.
      augment: `(key, input) -> input`, of one sample; for images `standard_augmentation`.
    """

    def apply(params: Params, batch_stats: BatchStats, inputs: Any, weights: Any, train: bool, keys: Any) -> Any:
        if train and keys is not None:
            own, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            inputs = jax.vmap(augment)(own, inputs)
        return task.apply(params, batch_stats, inputs, weights, train, keys)

    return task._replace(apply=apply)


def standard_augmentation(key: jax.Array, image: jax.Array) -> jax.Array:
    """The report's augmentation of an image: pad and crop, flip, colour jitter, rotation, in this order.

    Args:
      key: a random key.
      image: uint8 [H, W, C], of one channel or three.

    Raises:
      TaskError: it is another array.
    """
    if image.dtype != jnp.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise TaskError(
            f"images are augmented as uint8 [H, W, C] with 1 or 3 channels, not {image.dtype} {list(image.shape)}; "
            "give `augmented` a function of your own for others"
        )
    drawn = draw(key)
    image = flip(crop(image, drawn.offset), drawn.flipped)
    return rotate(jitter(image, drawn.factors, drawn.order), drawn.degrees)


def draw(key: jax.Array) -> Draws:
    """Draws an augmentation: every value uniform, all independent."""
    offset, flipped, factors, order, degrees = jax.random.split(key, 5)
    return Draws(
        offset=jax.random.randint(offset, (2,), 0, 2 * PAD + 1),
        flipped=jax.random.bernoulli(flipped),
        factors=jax.random.uniform(factors, (3,), minval=1 - JITTER, maxval=1 + JITTER),
        order=jax.random.permutation(order, 3),
        degrees=jax.random.uniform(degrees, minval=-DEGREES, maxval=DEGREES),
    )


def crop(image: jax.Array, offset: jax.Array, pad: int = PAD) -> jax.Array:
    """Cuts [H, W, C] out of the image with `pad` zeros on every side, from that row and column [2] on."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return jax.lax.dynamic_slice(padded, (*offset, 0), image.shape)


def flip(image: jax.Array, flipped: jax.Array) -> jax.Array:
    """The image [H, W, C], or its mirror image."""
    return jnp.where(flipped, image[:, ::-1], image)


def jitter(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Changes brightness (0), contrast (1) and saturation (2) of a uint8 image [H, W, C] by factors [3], in an order.

    Each is a step away from black, from the mean of the image's grays, and from each pixel's gray:
    `base + factor * (image - base)`, clipped to 0 to 255 and cut to a whole number.
    """

    def adjust(image: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
        grays = _grays(image)
        base = jnp.where(which == 0, 0, jnp.where(which == 1, _rounded_mean(grays), grays))
        values = base + factors[which] * (image.astype(jnp.int32) - base)
        return jnp.clip(values, 0, 255).astype(jnp.uint8), None

    # A loop, for where XLA sees all at once it computes the first adjustments anew for every use: 4 times slower.
    return jax.lax.scan(adjust, image, order)[0]


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns an image [H, W, C] about its centre, counterclockwise: the nearest pixel, or zero from outside.

    Coordinates are integers, in units of 2^-16 pixels, as PIL has them.
    """
    height, width, _ = image.shape
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    row, column = jnp.arange(height)[:, None], jnp.arange(width)

    def source(per_row: jax.Array, per_column: jax.Array, size: int) -> jax.Array:
        first = (size - (height - 1) * per_row - (width - 1) * per_column) / 2  # the middle of the first pixel
        return (_fixed(first) + _fixed(per_row) * row + _fixed(per_column) * column) >> 16

    i, j = source(cos, sin, height), source(-sin, cos, width)
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    pixels = image[jnp.clip(i, 0, height - 1), jnp.clip(j, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0)


def _fixed(value: jax.Array) -> jax.Array:
    return jnp.floor(value * 2**16 + 0.5).astype(jnp.int32)


def _grays(image: jax.Array) -> jax.Array:
    """Each pixel's gray [H, W, 1] by the weights of ITU-R 601-2, in units of 2^-16."""
    values = image.astype(jnp.int32)
    if image.shape[2] == 1:
        return values
    red, green, blue = jnp.split(values, 3, axis=2)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def _rounded_mean(values: jax.Array) -> jax.Array:
    return (2 * jnp.sum(values) + values.size) // (2 * values.size)
