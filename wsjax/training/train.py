"""Training as pure functions: a step, an epoch and an evaluation, each one compiled program.

The data set stays on the device; an epoch gathers its batches from there. Shapes are fixed: an epoch runs over the
first `num_samples` (traced) entries of an index array, so that growing data never compiles again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any
BatchStats = Any
Metrics = dict[str, jax.Array]
Data = tuple[Any, Any]
"""(inputs, targets): two pytrees of arrays with one leading axis of samples."""

Evaluation = Literal["running", "reestimated", "batch"]


class TrainState(NamedTuple):
    """All of training's state, one pytree."""

    params: Params
    batch_stats: BatchStats
    opt_state: Any
    step: jax.Array


class Batch(NamedTuple):
    """B samples; those of weight 0 are padding, and count nowhere."""

    inputs: Any
    targets: Any
    weights: jax.Array


class Task(NamedTuple):
    """What is trained, as pure functions.

    Attributes:
      init: `key -> (params, batch_stats)`; batch_stats is {} where the model has no state.
      apply: `(params, batch_stats, inputs, weights, train) -> (outputs, batch_stats)`; `weights` [B] marks padding.
      loss: `(outputs, targets) -> [B]`, a loss for each sample.
      score: `(outputs, targets) -> [B]`, what "accuracy" averages.
      stats_momentum: the share that one batch has in batch_stats when `apply` updates them.
    """

    init: Callable[[jax.Array], tuple[Params, BatchStats]]
    apply: Callable[..., tuple[Any, BatchStats]]
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[Any, Any], jax.Array]
    stats_momentum: float = 0.1


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
    """Makes a Task of a model without batch statistics: `init(key) -> params`, `apply(params, inputs) -> outputs`."""
    return Task(
        init=lambda key: (init(key), {}),
        apply=lambda params, batch_stats, inputs, weights, train: (apply(params, inputs), batch_stats),
        loss=loss,
        score=score,
    )


def image_task(model: Any, image_shape: tuple[int, ...], mean: Any, std: Any, dtype: Any = jnp.float32) -> Task:
    """Makes the Task of classifying uint8 images with one of `wsjax.models`.

    Args:
      model: linen module, called with images [B, H, W, C], `train` and `weights`.
      image_shape: (H, W, C).
      mean: C channel means of the images scaled to [0, 1].
      std: C standard deviations, likewise.
      dtype: what layers compute in: that of the images they get. Parameters, their gradients, BatchNorm's moments and
        the loss are float32.
    """
    # (x / 255 - mean) / std, as one multiply-add; a factor a pixel, for a loop over three channels is slow on a CPU.
    pixels = math.prod(image_shape[:-1])
    scale = np.tile(1.0 / (255.0 * np.asarray(std, np.float32)), pixels)
    shift = np.tile(-np.asarray(mean, np.float32) / np.asarray(std, np.float32), pixels)

    def init(key: jax.Array) -> tuple[Params, BatchStats]:
        variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(params: Params, batch_stats: BatchStats, inputs: jax.Array, weights: jax.Array, train: bool) -> Any:
        values = inputs.reshape(inputs.shape[0], -1).astype(jnp.float32) * scale + shift
        images = values.reshape(inputs.shape).astype(dtype)
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            return model.apply(variables, images, train=False), batch_stats
        logits, new = model.apply(variables, images, train=True, weights=weights, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    return Task(init, apply, cross_entropy, correct)


def make_optimizer(name: str, learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The study's optimisers, with PyTorch's coupled L2 weight decay on every parameter.

    Args:
      name: "sgd", "msgd" (momentum 0.9) or "adam" (0.9, 0.999).
      learning_rate: a positive number.
      weight_decay: added to the gradient as `weight_decay * params`.
    """
    optimizers = {
        "sgd": lambda: optax.sgd(learning_rate),
        "msgd": lambda: optax.sgd(learning_rate, momentum=0.9),
        "adam": lambda: optax.adam(learning_rate),
    }
    if name not in optimizers:
        raise ValueError(f"unknown optimizer '{name}'; available: {', '.join(optimizers)}")
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optimizers[name]())


def init_state(task: Task, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state of a newly drawn network."""
    params, batch_stats = task.init(key)
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the pure function `train_step(state, batch) -> (state, metrics)`.

    The loss is the mean over the batch's samples of weight 1. Metrics are sums over those samples ("loss",
    "correct", "samples"), in train mode, before the update. Compile it with `jax.jit(step, donate_argnums=0)`, or,
    where `axis_name` is given, with `jax.pmap(step, axis_name)` over equal parts of a batch: sums and gradients are
    then those of the whole batch.
    """

    total = partial(_total, axis_name=axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        samples = total(jnp.sum(batch.weights))

        def mean_loss(params: Params) -> tuple[jax.Array, Any]:
            outputs, batch_stats = task.apply(params, state.batch_stats, batch.inputs, batch.weights, True)
            loss = jnp.sum(task.loss(outputs, batch.targets) * batch.weights)
            scores = jnp.sum(task.score(outputs, batch.targets) * batch.weights)
            return loss / samples, (batch_stats, loss, scores)

        grads, (batch_stats, loss, scores) = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(total(grads), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": total(loss), "correct": total(scores), "samples": samples}
        return TrainState(params, batch_stats, opt_state, state.step + 1), metrics

    return train_step


def epoch_order(key: jax.Array, pool: jax.Array, num_samples: jax.Array) -> jax.Array:
    """Shuffles the first `num_samples` entries of `pool` [P] to the front; what follows them is padding.

    The order depends on the key and on those entries, not on the length of the pool: a sample's sort key is a random
    word that belongs to its position.
    """
    position = jnp.arange(pool.shape[0])
    words = jax.random.bits(key, pool.shape)
    words = jnp.where(position < num_samples, words, jnp.full_like(words, jnp.iinfo(words.dtype).max))
    return pool[jnp.argsort(words, stable=True)]


def make_epoch(
    task: Task, optimizer: optax.GradientTransformation, batch_size: int, axis_name: str | None = None
) -> Callable[..., Any]:
    """Makes `epoch(state, data, pool, num_samples, key) -> (state, metrics)`: a pass over the pool in a new order.

    Every one of the first `num_samples` entries of `pool` [P] is visited once; the last batch may be smaller. The
    number of batches is traced, so that a pass costs what its samples cost. Metrics are the mean "loss" and "accuracy"
    over the pass, each batch measured before its update, "steps", and "bad_step": the first step (from 1) whose loss
    was not finite, or 0. Mapped over `axis_name`, every device takes its part of each batch; all get the same result.
    """
    train_step = make_train_step(task, optimizer, axis_name)

    def epoch(state: TrainState, data: Data, pool: jax.Array, num_samples: jax.Array, key: jax.Array) -> Any:
        order = epoch_order(key, pool, num_samples)
        steps = _ceil_div(num_samples, batch_size)

        def body(i: jax.Array, carry: Any) -> Any:
            state, loss, scores, bad = carry
            state, metrics = train_step(state, _batch(data, order, num_samples, i, batch_size, axis_name))
            bad = jnp.where((bad == 0) & ~jnp.isfinite(metrics["loss"]), i + 1, bad)
            return state, loss + metrics["loss"], scores + metrics["correct"], bad

        zero = jnp.zeros((), jnp.float32)
        state, loss, scores, bad = jax.lax.fori_loop(0, steps, body, (state, zero, zero, jnp.zeros((), jnp.int32)))
        return state, {"loss": loss / num_samples, "accuracy": scores / num_samples, "steps": steps, "bad_step": bad}

    return epoch


def make_evaluate(
    task: Task, batch_size: int, evaluation: Evaluation = "running", axis_name: str | None = None
) -> Callable[..., Metrics]:
    """Makes `evaluate(state, test, train, pool, num_samples) -> metrics`: mean "loss" and "accuracy" over all of test.

    Args:
      task: what is trained.
      batch_size: samples at a time; it matters to the result for "batch" and "reestimated" only.
      evaluation: which statistics BatchNorm uses. "running" those gathered in training; "reestimated" the mean of
        those of the pool's batches under the present parameters, one pass in the pool's order; "batch" each test
        batch's own, as the report's code did.
    """

    def evaluate(state: TrainState, test: Data, train: Data, pool: jax.Array, num_samples: jax.Array) -> Metrics:
        batch_stats = state.batch_stats
        if evaluation == "reestimated" and jax.tree.leaves(batch_stats):
            batch_stats = reestimate(task, state, train, pool, num_samples, batch_size, axis_name)
        count = jax.tree.leaves(test)[0].shape[0]

        def body(i: jax.Array, sums: Any) -> Any:
            batch = _batch(test, jnp.arange(count), jnp.asarray(count), i, batch_size, axis_name)
            use_batch = evaluation == "batch"
            outputs, _ = task.apply(state.params, batch_stats, batch.inputs, batch.weights, use_batch)
            loss = jnp.sum(task.loss(outputs, batch.targets) * batch.weights)
            return sums[0] + loss, sums[1] + jnp.sum(task.score(outputs, batch.targets) * batch.weights)

        loss, scores = jax.lax.fori_loop(0, _ceil_div(count, batch_size), body, (jnp.zeros(()), jnp.zeros(())))
        return {"loss": _total(loss, axis_name) / count, "accuracy": _total(scores, axis_name) / count}

    return evaluate


def reestimate(
    task: Task,
    state: TrainState,
    data: Data,
    pool: jax.Array,
    num_samples: jax.Array,
    batch_size: int,
    axis_name: str | None = None,
) -> BatchStats:
    """BatchNorm statistics under the present parameters: the mean over the pool's batches, by their samples."""
    nothing = jax.tree.map(jnp.zeros_like, state.batch_stats)

    def body(i: jax.Array, sums: BatchStats) -> BatchStats:
        batch = _batch(data, pool, num_samples, i, batch_size, axis_name)
        samples = _total(jnp.sum(batch.weights), axis_name)
        # From statistics of zero, one update leaves momentum times the batch's own.
        _, stats = task.apply(state.params, nothing, batch.inputs, batch.weights, True)
        return jax.tree.map(lambda total, new: total + new * samples, sums, stats)

    sums = jax.lax.fori_loop(0, _ceil_div(num_samples, batch_size), body, nothing)
    return jax.tree.map(lambda total: total / (task.stats_momentum * num_samples), sums)


def _batch(
    data: Data, order: jax.Array, num_samples: jax.Array, i: jax.Array, batch_size: int, axis_name: str | None
) -> Batch:
    """The i-th batch of the first `num_samples` entries of `order`, filled up with samples of weight 0.

    Mapped over `axis_name`, the device's equal part of it, which is filled up too.
    """
    within = jnp.arange(batch_size)
    if axis_name is not None:
        part = _ceil_div(batch_size, jax.lax.axis_size(axis_name))
        within = jax.lax.axis_index(axis_name) * part + jnp.arange(part)
    position = jnp.where(within < batch_size, i * batch_size + within, num_samples)
    rows = order[jnp.minimum(position, order.shape[0] - 1)]
    inputs, targets = jax.tree.map(lambda x: x[rows], data)
    return Batch(inputs, targets, (position < num_samples).astype(jnp.float32))


def _total(x: Any, axis_name: str | None) -> Any:
    """The sum over the mapped axis, where there is one."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _ceil_div(a: Any, b: int) -> Any:
    return (a + b - 1) // b
