"""What is trained, as pure functions: a task of one's own, or the study's classification of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from wsjax.checks import called, takes
from wsjax.errors import TaskError
from wsjax.kept import kept
from wsjax.networks.models import BN_MOMENTUM, FEATURES, RELU
from wsjax.trees import difference, named_leaves

Params = Any
BatchStats = Any


class Activations(NamedTuple):
    """What a network computes on its way, in evaluation.

    Attributes:
      features: [B, D], the last hidden layer's outputs; None where there is no hidden layer.
      relus: the outputs of each ReLU [B, ..., units], by name.
    """

    features: Any
    relus: dict[str, Any]


class Task(NamedTuple):
    """What is trained, as pure functions.

    Attributes:
      init: `key -> (params, batch_stats)`; batch_stats is {} where the model has no state.
      apply: `(params, batch_stats, inputs, weights, train, keys) -> (outputs, batch_stats)`; `weights` [B] marks
        padding by 0, which a model that mixes samples, as BatchNorm does, must leave out. `keys` [B] is a random key a
        sample, so that what is drawn does not depend on how a batch is split over devices; where it is None nothing is
        random, as in evaluation.
      loss: `(outputs, targets) -> [B]`, a loss for each sample.
      score: `(outputs, targets) -> [B]`, what "accuracy" averages.
      stats_momentum: the share that one batch has in every floating-point leaf of batch_stats when `apply` updates
        them; None measures it leaf by leaf, by one more batch, where it is asked for. A leaf that is then found to be
        no moving average of its own, as one that is corrected for its bias by a count of batches, is not re-estimated.
      activations: `(params, batch_stats, inputs) -> Activations`, for probes that look into the network; None where
        there are none.
    """

    init: Callable[[jax.Array], tuple[Params, BatchStats]]
    apply: Callable[..., tuple[Any, BatchStats]]
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[Any, Any], jax.Array]
    stats_momentum: float | None = None
    activations: Callable[[Params, BatchStats, Any], Activations] | None = None


def applied(
    task: Task, params: Params, batch_stats: BatchStats, inputs: Any, weights: Any, train: bool, keys: Any
) -> tuple[Any, BatchStats]:
    """What a task's `apply` gives.

    Raises:
      TaskError: when traced, where it is no pair, or gives batch statistics of another structure, shape or dtype.
    """
    given = task.apply(params, batch_stats, inputs, weights, train, keys)
    if not isinstance(given, tuple | list) or len(given) != 2:
        kind = "an array" if hasattr(given, "dtype") else f"a {type(given).__name__}"
        hint = "wsjax.stateless_task makes a task of a model without batch_stats"
        raise TaskError(f"the task's apply must give a pair (outputs, batch_stats), not {kind}; {hint}")
    outputs, new = given
    if train:
        _check_kept(batch_stats, new)
    return outputs, new


def _check_kept(batch_stats: BatchStats, new: BatchStats) -> None:
    """Raises a TaskError where batch statistics are not like those that they were made of."""
    given, made = (
        {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in named_leaves(jax.tree.map(jnp.asarray, tree))}
        for tree in (batch_stats, new)
    )
    for name in given | made:
        was, now = (leaves.get(name, "no leaf") for leaves in (given, made))
        if was != now:
            raise TaskError(f"the task's apply gives {now} at '{name}' of batch_stats, where it was given {was}")
    if unlike := difference(new, batch_stats):
        raise TaskError(f"the task's apply gives batch_stats of another structure than it was given: {unlike}")


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest of logits [B, K] is at the label [B], else 0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def stateless_task(
    init: Callable[[jax.Array], Params],
    apply: Callable[[Params, Any], Any],
    loss: Callable[[Any, Any], jax.Array] = cross_entropy,
    score: Callable[[Any, Any], jax.Array] = correct,
) -> Task:
    """Makes a Task of a model without batch statistics: `init(key) -> params`, `apply(params, inputs) -> outputs`.

    Raises:
      TaskError: init or apply cannot be called so.
    """
    for name, function, count, form in (("init", init, 1, "(key)"), ("apply", apply, 2, "(params, inputs)")):
        if not takes(function, count):
            raise TaskError(f"stateless_task calls {name}{form}, which {called(function)} does not take")
    return Task(
        init=lambda key: (init(key), {}),
        apply=lambda params, batch_stats, inputs, weights, train, keys: (apply(params, inputs), batch_stats),
        loss=loss,
        score=score,
    )


def image_task(model: Any, image_shape: tuple[int, ...], mean: Any, std: Any, dtype: Any = jnp.float32) -> Task:
    """Makes the Task of classifying uint8 images with one of `wsjax.networks.models`.

    Args:
      model: linen module, called with images [B, H, W, C], `train` and `weights`.
      image_shape: (H, W, C).
      mean: C channel means of the images scaled to [0, 1].
      std: C standard deviations, likewise.
      dtype: what layers compute in: that of the images they get. Parameters, their gradients, BatchNorm's moments and
        the loss are float32.

    Raises:
      TaskError: mean or std are not C numbers, or a deviation is not above 0; when it is traced, for other images.
    """
    moments = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
    for name, values in moments.items():
        if values.shape != (image_shape[-1],) or (name == "std" and not (values > 0).all()):
            wanted = f"{image_shape[-1]} numbers{' above 0' * (name == 'std')} for images of {image_shape}"
            raise TaskError(f"image_task: {name} must be {wanted}, not {values}")
    mean, std = (tuple(map(float, values)) for values in (mean, std))
    return _image_task(model, tuple(image_shape), mean, std, jnp.dtype(dtype))


@kept
def _image_task(
    model: Any, image_shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Task:
    # (x / 255 - mean) / std, as one multiply-add; a factor a pixel, for a loop over three channels is slow on a CPU.
    pixels = math.prod(image_shape[:-1])
    scale = np.tile(1.0 / (255.0 * np.asarray(std, np.float32)), pixels)
    shift = np.tile(-np.asarray(mean, np.float32) / np.asarray(std, np.float32), pixels)

    def init(key: jax.Array) -> tuple[Params, BatchStats]:
        variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
        return variables["params"], variables.get("batch_stats", {})

    def normalised(inputs: jax.Array) -> jax.Array:
        if inputs.dtype != jnp.uint8:  # of floats in [0, 1] a network would see next to nothing
            raise TaskError(f"image_task takes uint8 images, whose pixels are from 0 to 255, not {inputs.dtype}")
        if inputs.shape[1:] != image_shape:
            raise TaskError(f"image_task was made for images of {image_shape}, not of {inputs.shape[1:]}")
        values = inputs.reshape(inputs.shape[0], -1).astype(jnp.float32) * scale + shift
        return values.reshape(inputs.shape).astype(dtype)

    def apply(
        params: Params, batch_stats: BatchStats, inputs: jax.Array, weights: jax.Array, train: bool, keys: Any = None
    ) -> Any:
        del keys  # these networks draw nothing
        images = normalised(inputs)
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            return model.apply(variables, images, train=False), batch_stats
        logits, new = model.apply(variables, images, train=True, weights=weights, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    def activations(params: Params, batch_stats: BatchStats, inputs: jax.Array) -> Activations:
        variables = {"params": params, "batch_stats": batch_stats}
        _, noted = model.apply(variables, normalised(inputs), train=False, mutable=["intermediates"])
        flat: dict[Any, Any] = flatten_dict(noted.get("intermediates", {}))
        found = {"/".join(path): values[0] for path, values in flat.items()}
        relus = {name: values for name, values in found.items() if name.split("/")[-1].startswith(RELU)}
        return Activations(found.get(FEATURES), relus)

    return Task(init, apply, cross_entropy, correct, BN_MOMENTUM, activations)


@kept
def with_batch_statistics(task: Task) -> Task:
    """The task evaluated with each batch's own statistics, not the running ones, as the report's code did."""

    def apply(params: Params, batch_stats: BatchStats, inputs: Any, weights: Any, train: bool, keys: Any) -> Any:
        outputs, new = task.apply(params, batch_stats, inputs, weights, True, keys)
        return outputs, new if train else batch_stats

    return task._replace(apply=apply)
