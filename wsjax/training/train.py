"""Training as pure functions of a `Setup`: a step, an epoch and an evaluation.

The data set stays on the device; an epoch gathers its batches from there. Shapes are fixed: a round trains on the
first `size` (traced) entries of an index array, so that growing data never compiles again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_choice, check_count, check_number, taken
from wsjax.errors import TaskError
from wsjax.kept import kept
from wsjax.parallel import apart, total
from wsjax.training.schedules import Schedule, scale_by_schedule
from wsjax.training.task import BatchStats, Params, Task, applied
from wsjax.trees import wide

Metrics = dict[str, Any]
Data = tuple[Any, Any]
"""(inputs, targets): two pytrees of arrays with one leading axis of samples."""

# What the key of an epoch is folded with, for all that tasks and probes draw; unfolded it orders the samples.
_RANDOM, _PROBE = 2**31 - 1, 2**31 - 2


class TrainState(NamedTuple):
    """All of training's state, one pytree."""

    params: Params
    batch_stats: BatchStats
    opt_state: Any
    step: jax.Array


class Batch(NamedTuple):
    """B samples; those of weight 0 are padding, and count nowhere.

    Attributes:
      inputs: pytree of arrays [B, ...].
      targets: likewise.
      weights: [B], 1 or 0.
      keys: [B], a random key a sample, or None.
      position: [B], each sample's place in the order in which they are visited, or None.
    """

    inputs: Any
    targets: Any
    weights: jax.Array
    keys: Any = None
    position: Any = None


class Samples(NamedTuple):
    """Which samples a round trains on.

    Attributes:
      order: [P], indices into the data in the order in which they arrive.
      size: [], how many of them, from the first, this round has.
      before: [], how many of those the round before had too.
    """

    order: jax.Array
    size: jax.Array
    before: jax.Array


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Setup(NamedTuple):
    """What a round trains, how and on what; rounds of one setup share their compiled programs.

    Attributes:
      task: what is trained.
      optimizer: of optax.
      train: (inputs, targets), N samples.
      test: (inputs, targets).
      batch_size: samples a step.
      axis_name: the mapped axis over which batches are split, where there is one; `run_rounds` sets it, by its mesh.
      judged: `(setup, state, samples) -> state`, what is tested in place of the state itself; see `reestimated`.
      fit: `(setup, state, samples) -> metrics`, the loss and accuracy on the train samples after an epoch, which its
        row tells and its stop rule looks at; None takes their means over the epoch. See `fit_after`.
      probe: `(setup, state, samples, key) -> {name: scalar}`, measured at each epoch's start, fields of its row.
      anchors: whether the state keeps the parameters that distances are measured from; see `wsjax.training.anchors`.
      learning_rate: `(count, epoch_steps) -> []`, the optimiser's after so many steps, for probes; None where it is
        not told.
    """

    task: Task
    optimizer: optax.GradientTransformation
    train: Data
    test: Data
    batch_size: int = 128
    axis_name: str | None = None
    judged: Callable[[Setup, TrainState, Samples], TrainState] | None = None
    fit: Callable[[Setup, TrainState, Samples], Metrics] | None = None
    probe: Callable[[Setup, TrainState, Samples, jax.Array], Metrics] | None = None
    anchors: bool = False
    learning_rate: Callable[[Any, Any], Any] | None = None


@kept
def make_optimizer(
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup: int = 0,
    *,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    decoupled: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The study's optimisers, with PyTorch's coupled L2 weight decay on every parameter.

    Args:
      name: "sgd", "msgd" (momentum 0.9), "adam" (0.9, 0.999) or "adamw", whose weight decay is decoupled.
      learning_rate: 0 or more.
      weight_decay: added to the gradient as `weight_decay * params`.
      warmup: steps over which the rate rises to its full height, by equal amounts: once, where the state is new.
      schedule: what the rate is multiplied by in the course of a round; None for nothing. Where there is one, the
        warm-up is a part of it, and comes again in every round.
      clip_norm: the norm that the gradient of all parameters together is cut to; None for no limit.
      decoupled: stands between what scales the gradient and the learning rate.

    Raises:
      TaskError: there is no such optimiser, or a number is none that it can have.
    """
    rules = {"sgd": optax.identity, "msgd": lambda: optax.trace(0.9), "adam": optax.scale_by_adam}
    rules["adamw"] = optax.scale_by_adam
    check_choice("optimizer", name, rules)
    for what, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if value is not None:
            check_number(what, value, least=0)
    check_count("warmup", warmup, least=0)
    if schedule is not None:
        rate = scale_by_schedule(learning_rate, schedule, warmup)
    elif warmup:
        rate = optax.scale_by_learning_rate(optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup))
    else:
        rate = optax.scale_by_learning_rate(learning_rate)
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    before, after = ([], decay) if name == "adamw" else (decay, [])
    own = [] if decoupled is None else [decoupled]
    return optax.chain(*clip, *before, optax.chain(rules[name](), *after, *own, rate))


def init_state(task: Task, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state of a newly drawn network."""
    params, batch_stats = task.init(key)
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32))


def options_to_draw() -> dict[str, Any]:
    """What `jax.jit` takes as `compiler_options` for a program that draws networks.

    Random bits are long straight code, once for every array. On a CPU LLVM's first level makes the same bits of it as
    its third, for a third of the time: a ResNet-18's initialiser compiles in 3 s of a processor in place of 8.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, axis_name: str | None = None, epoch_steps: Any = None
) -> Step:
    """Makes the pure function `train_step(state, batch) -> (state, metrics)`.

    The loss is the mean over the batch's samples of weight 1. Metrics are sums over those samples ("loss",
    "correct", "samples"), in train mode, before the update. Compile it with `jax.jit(step, donate_argnums=0)`, or,
    where `axis_name` is given, with `jax.pmap(step, axis_name)` or `jax.shard_map` over equal parts of a batch (for
    the networks here with its `check_vma=False`): sums and gradients are then those of the whole batch. An optimiser
    that asks for it is given `epoch_steps`, the number of steps of an epoch, as schedules in epochs do, or `value`, the
    batch's mean loss, as `optax.contrib.reduce_on_plateau` does.

    Raises:
      TaskError: when traced, where the task's loss or score is not one value a sample.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, batch_stats, metrics = batch_gradient(task, state, batch, axis_name)
        value = metrics["loss"] / metrics["samples"]  # which some rules of the learning rate look at
        extra = taken(optimizer.update, {"epoch_steps": epoch_steps, "value": value})
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, opt_state, state.step + 1), metrics

    return train_step


def batch_gradient(
    task: Task, state: TrainState, batch: Batch, axis_name: str | None = None
) -> tuple[Params, BatchStats, Metrics]:
    """The gradient of a batch's mean loss in train mode, the batch statistics after it, and a step's metrics.

    Mapped over `axis_name`, each device has a part of the batch, and all get the whole batch's. Of complex leaves it is
    the conjugate of what JAX gives, which optimisers go down.
    """
    summed = partial(total, axis_name=axis_name)
    state = state._replace(params=apart(state.params, batch.weights, axis_name))
    samples = summed(jnp.sum(batch.weights))

    def mean_loss(params: Params) -> tuple[jax.Array, Any]:
        outputs, batch_stats = applied(task, params, state.batch_stats, batch.inputs, batch.weights, True, batch.keys)
        loss, scores = _sums(task, outputs, batch)
        return loss / samples, (batch_stats, loss, scores)

    grads, (batch_stats, loss, scores) = jax.grad(mean_loss, has_aux=True)(state.params)
    grads = jax.tree.map(jnp.conj, summed(grads))
    return grads, batch_stats, {"loss": summed(loss), "correct": summed(scores), "samples": samples}


def over_batches(
    body: Callable[[jax.Array, Any, Batch], Any],
    carry: Any,
    data: Data,
    samples: Samples,
    batch_size: int,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Runs `body(i, carry, batch) -> carry` over the batches of `samples`, in their order.

    The number of batches is traced, so that a pass costs what its samples cost. The last one is filled up with samples
    of weight 0. Mapped over `axis_name`, every device gets its equal part of each batch, which is filled up too.

    Args:
      body: called with the batch's number from 0, the carry and the batch.
      carry: pytree of arrays.
      data: what `samples.order` points into.
      samples: the first `size` are visited, once each.
      batch_size: samples at a time; never more than there are.
      axis_name: the mapped axis, if any.
      key: gives each sample a key of its own, by its place in the order; None gives none.
    """
    size = min(batch_size, samples.order.shape[0])
    within = jnp.arange(size)
    if axis_name is not None:
        part = _ceil_div(size, jax.lax.axis_size(axis_name))
        within = jax.lax.axis_index(axis_name) * part + jnp.arange(part)

    def step(i: jax.Array, carry: Any) -> Any:
        position = jnp.where(within < size, i * size + within, samples.size)
        # Padding is one of the round's own samples: others may be no numbers yet, or not be known to it.
        rows = samples.order[jnp.minimum(position, jnp.maximum(samples.size - 1, 0))]
        inputs, targets = jax.tree.map(lambda x: x[rows], data)
        weights = (position < samples.size).astype(jnp.float32)
        # The first of two keys, as in all runs so far: another one would draw otherwise.
        keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[0], position)
        return body(i, carry, Batch(inputs, targets, weights, keys, position))

    return jax.lax.fori_loop(0, _ceil_div(samples.size, size), step, carry)


def shuffled(key: jax.Array, samples: Samples) -> Samples:
    """Shuffles the first `size` entries of the order to the front; what follows them is padding.

    The new order depends on the key and on those entries, not on the length of the whole: a sample's sort key is a
    random word that belongs to its position.
    """
    position = jnp.arange(samples.order.shape[0])
    words = jax.random.bits(key, position.shape)
    words = jnp.where(position < samples.size, words, jnp.full_like(words, jnp.iinfo(words.dtype).max))
    return samples._replace(order=samples.order[jnp.argsort(words, stable=True)])


def train_epoch(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> tuple[TrainState, Metrics]:
    """A pass over a round's samples in a new order; each is visited once.

    Returns:
      The state, and the mean "loss" and "accuracy" over the pass, each batch measured before its update; "steps";
      "bad_step", the first step (from 1) whose loss was not finite, or 0; and "probes", what the setup's probe measured
      before the first step. Mapped over the setup's axis, every device takes its part of each batch; all get the same
      result.
    """
    steps = _ceil_div(samples.size, min(setup.batch_size, samples.order.shape[0]))
    step = make_train_step(setup.task, setup.optimizer, setup.axis_name, steps)
    probes = {} if setup.probe is None else setup.probe(setup, state, samples, jax.random.fold_in(key, _PROBE))

    def body(i: jax.Array, carry: Any, batch: Batch) -> Any:
        state, loss, scores, bad = carry
        state, metrics = step(state, batch)
        bad = jnp.where((bad == 0) & ~jnp.isfinite(metrics["loss"]), (i + 1).astype(jnp.int32), bad)
        return state, loss + metrics["loss"], scores + metrics["correct"], bad

    zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    carry = (state, zero, zero, jnp.zeros((), jnp.int32))
    state, loss, scores, bad = over_batches(
        body, carry, setup.train, shuffled(key, samples), setup.batch_size, setup.axis_name,
        jax.random.fold_in(key, _RANDOM),
    )  # fmt: skip
    means = {"loss": loss / samples.size, "accuracy": scores / samples.size}
    return state, {**means, "steps": steps, "bad_step": bad, "probes": probes}


def evaluate(setup: Setup, state: TrainState, samples: Samples) -> Metrics:
    """The mean "loss" and "accuracy" over all of the test data, of the state that the setup has judged.

    Args:
      setup: its batch size matters to the result only where a batch's own statistics are used.
      state: what is tested, or what the setup's `judged` makes it of.
      samples: those of the round, for `judged`.

    Raises:
      TaskError: when traced, where `judged` gives no state.
    """
    judged = state if setup.judged is None else setup.judged(setup, state, samples)
    if not isinstance(judged, TrainState):
        raise TaskError(f"the setup's judged must give a wsjax.TrainState, not a {type(judged).__name__}")
    return _means(setup, judged, setup.test, all_samples(setup.test), train=False)


def fit_after(setup: Setup, state: TrainState, samples: Samples) -> Metrics:
    """The mean "loss" and "accuracy" over a round's samples, in train mode, of a state that stays as it is.

    The report's code measured so, in a pass of its own after each epoch, what its stop rules look at: batch by batch
    with the batch's own statistics. Nothing random is drawn.
    """
    return _means(setup, state, setup.train, samples, train=True)


def _means(setup: Setup, state: TrainState, data: Data, samples: Samples, train: bool) -> Metrics:
    """The mean "loss" and "accuracy" over samples of the data."""

    def body(_: jax.Array, sums: Any, batch: Batch) -> Any:
        outputs, _ = applied(setup.task, state.params, state.batch_stats, batch.inputs, batch.weights, train, None)
        return jax.tree.map(jnp.add, sums, _sums(setup.task, outputs, batch))

    zeros = (jnp.zeros(()), jnp.zeros(()))
    loss, scores = over_batches(body, zeros, data, samples, setup.batch_size, setup.axis_name)
    return {name: total(x, setup.axis_name) / samples.size for name, x in (("loss", loss), ("accuracy", scores))}


def wide_zeros(tree: Any) -> Any:
    """Zeros like the leaves of a tree, in 32 bits at least: for sums of many small parts, which 16 do not take in."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), tree)


def score_each(setup: Setup, state: TrainState) -> jax.Array:
    """The score [M] of each test sample."""

    def score(batch: Batch) -> jax.Array:
        outputs, _ = setup.task.apply(state.params, state.batch_stats, batch.inputs, batch.weights, False, None)
        return setup.task.score(outputs, batch.targets).astype(jax.dtypes.canonicalize_dtype(float))

    return each(score, setup.test, all_samples(setup.test), setup.batch_size)


def each(function: Callable[[Batch], Any], data: Data, samples: Samples, batch_size: int) -> Any:
    """What a function makes of batches, arrays [B, ...], put together: a row a sample [P, ...], in their order.

    Where there are fewer samples than their order has places, the last rows are 0, or what it makes of padding.
    """
    most = samples.order.shape[0]
    size = min(batch_size, most)

    def body(i: jax.Array, rows: Any, batch: Batch) -> Any:
        def put(own: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(own, new, i * size, 0)

        return jax.tree.map(put, rows, function(batch))

    inputs, targets = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), data)
    weights: Any = jax.ShapeDtypeStruct((size,), jnp.float32)
    like = jax.eval_shape(function, Batch(inputs, targets, weights))
    room = jax.tree.map(lambda x: jnp.zeros((_ceil_div(most, size) * size, *x.shape[1:]), x.dtype), like)
    return jax.tree.map(lambda x: x[:most], over_batches(body, room, data, samples, size))


def all_samples(data: Data) -> Samples:
    """All samples of a data set, in its own order."""
    count = jax.tree.leaves(data)[0].shape[0]
    return Samples(jnp.arange(count), jnp.asarray(count), jnp.zeros((), jnp.int32))


def _sums(task: Task, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The sums of loss and score over a batch's samples of weight 1."""
    sums = []
    for name, values in (("loss", task.loss(outputs, batch.targets)), ("score", task.score(outputs, batch.targets))):
        if jnp.shape(values) != batch.weights.shape:
            given = [jax.tree.map(jnp.shape, tree) for tree in (outputs, batch.targets)]
            raise TaskError(
                f"the task's {name} must give one value a sample, {list(batch.weights.shape)}, not "
                f"{list(jnp.shape(values))}; it was given outputs of shape {given[0]} and targets of shape {given[1]}"
            )
        sums.append(jnp.sum(values * batch.weights))
    return sums[0], sums[1]


def _ceil_div(a: Any, b: int) -> Any:
    return (a + b - 1) // b
