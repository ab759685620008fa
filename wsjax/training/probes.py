"""Probes: what is measured of a network at the start of each epoch, inside the compiled run, for fields of its row.

Each is a few lines, of `(setup, state, samples, key)`; `together` makes one of several. Those that look at samples take
at most `SAMPLES` of the round's, spread evenly over the order in which they came, the same ones in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wsjax.errors import TaskError
from wsjax.training import anchors
from wsjax.training.schedules import ScheduleState
from wsjax.training.singular import singular_values
from wsjax.training.task import Activations
from wsjax.training.train import Batch, Metrics, Samples, Setup, TrainState, batch_gradient, each, over_batches
from wsjax.trees import named_leaves, nodes, wide

OLD, NEW = "old_gradient", "new_gradient"
SAMPLES = 1000
"""The most samples that activations are looked at on."""

Probe = Callable[[Setup, TrainState, Samples, jax.Array], Metrics]


def together(*probes: Probe) -> Probe:
    """One probe of several; of two fields of one name the first one's counts."""

    def probe(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
        measured: Metrics = {}
        for own in probes:
            measured = own(setup, state, samples, key) | measured
        return measured

    return probe


def weights(power: int = 2, invariant: Callable[[str], bool] | None = None) -> Probe:
    """A probe of every kernel's size, and of the learning rate that it has in effect.

    A kernel whose scale a normalisation behind it takes out turns by steps of `rate / norm^2` under SGD, and by
    `rate / norm` under Adam, whose updates do not grow as the kernel shrinks (van Laarhoven 2017,
    https://arxiv.org/abs/1706.05350; Lyle et al., https://arxiv.org/abs/2507.20057).

    Args:
      power: of the norm in the effective rate: 2 for SGD, 1 for Adam.
      invariant: which kernels are scale-invariant, by their names; None for none.

    Returns:
      A probe of "weight_norm/NAME", the L2 norm, for each leaf of two axes or more, and of "effective_rate/NAME" for
      the invariant ones, where the setup tells its learning rate.
    """

    def probe(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
        del key
        kernels = [(name, leaf) for name, leaf in named_leaves(state.params) if leaf.ndim > 1]
        norms = {name.removesuffix("/kernel"): _norm(leaf) for name, leaf in kernels}
        measured = {f"weight_norm/{name}": norm for name, norm in norms.items()}
        if setup.learning_rate is None or invariant is None:
            return measured
        rate = setup.learning_rate(_count(state), -(-samples.size // min(setup.batch_size, samples.order.shape[0])))
        own = {name: rate / norm**power for name, norm in norms.items() if invariant(name)}
        return measured | {f"effective_rate/{name}": value for name, value in own.items()}

    return probe


def dead_units(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
    """The share of ReLUs' units, channels of a convolution, that are 0 for every sample, and everywhere in it.

    Returns:
      "dead_units", over all ReLUs together, in evaluation mode.
    """
    del key

    def alive(found: Activations) -> Any:
        if not found.relus:
            raise TaskError("dead_units: the network has no ReLU")
        return {name: jnp.any(x > 0, tuple(range(1, x.ndim - 1))) for name, x in found.relus.items()}

    dead = [~jnp.any(x, 0) for x in _on_samples(setup, state, samples, alive).values()]
    return {"dead_units": jnp.mean(jnp.concatenate(dead).astype(jnp.float32))}


def ranks(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
    """The ranks of the last hidden layer's outputs, as `ranks_of` has them, in evaluation mode."""
    del key

    def features(found: Activations) -> jax.Array:
        if found.features is None:
            raise TaskError("ranks: the network has no hidden layer")
        return found.features.astype(jnp.float32)

    return ranks_of(_on_samples(setup, state, samples, features))


def ranks_of(features: jax.Array) -> Metrics:
    """Three soft counts of the dimensions that features take up, of their singular values s; not centred.

    Args:
      features: [N, D]; rows of zeros change nothing.

    Returns:
      "effective_rank": exp of the entropy of s / sum(s) (Roy and Vetterli, "The effective rank", EUSIPCO 2007);
      "srank": how many of the largest s have 99 % of sum(s) (Kumar et al. 2021, https://arxiv.org/abs/2010.14498,
      delta = 0.01); "stable_rank": sum(s^2) / max(s)^2, the squared ratio of Frobenius and spectral norms. NaN where
      all features are 0.
    """
    s = singular_values(features)
    total = jnp.sum(s)
    share = s / total
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    found = {
        "effective_rank": jnp.exp(entropy),
        "srank": 1.0 + jnp.sum(jnp.cumsum(s) < 0.99 * total),
        "stable_rank": jnp.sum((s / s[0]) ** 2),
    }
    return {name: jnp.where(total > 0, value, jnp.nan) for name, value in found.items()}


def distances(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
    """How far the parameters, all together, have gone: |w - w0| / |w0|, by L2 norms.

    The setup needs `anchors=True`.

    Returns:
      "distance_from_start", w0 being those that the round started from, behind its re-initialiser, and
      "distance_from_first", those of the seed's first network; not finite where w0 is 0.
    """
    del setup, samples, key
    kept = anchors.of(state)

    def far(begin: Any) -> jax.Array:
        return _norm(jax.tree.map(lambda now, then: _wide(now) - _wide(then), state.params, begin)) / _norm(begin)

    return {"distance_from_start": far(kept.begin), "distance_from_first": far(kept.first)}


def gradient_norms(first: int | None = None, total: int | None = None) -> Probe:
    """A probe of the gradients of old and of new samples.

    With numbers, they are the first round's samples, and those that come with the second; both are measured in every
    round, whether it trains on those samples or not. Without, they are those of a round that the round before had too,
    and those that came with it: in a round that has only new ones nothing is measured of old ones.

    Args:
      first: how many samples the first round has: the old ones.
      total: how many there are with the new ones.

    Returns:
      A probe of "old_gradient" and "new_gradient", as `mean_gradient_norm` has them.
    """

    def probe(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
        before = samples.before if first is None else first
        sizes = jnp.asarray([before, (samples.size if total is None else total) - before])
        orders = jnp.stack([samples.order, jnp.roll(samples.order, -before)])

        def norm(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            order, size, own = part
            return mean_gradient_norm(setup, state, Samples(order, size, jnp.zeros_like(size)), own)

        # One after the other: side by side they would be grouped convolutions, and twice in the code compiled twice.
        old, new = jax.lax.map(norm, (orders, sizes, jax.random.split(key)))
        return {OLD: old, NEW: new}

    return probe


def mean_gradient_norm(setup: Setup, state: TrainState, samples: Samples, key: jax.Array | None = None) -> jax.Array:
    """The mean over batches of the L2 norm of a batch's gradient [], of all parameters.

    The gradient is that of the batch's mean loss, in train mode, without weight decay; the state stays as it is. The
    batches are those of the samples' own order, the last one smaller.

    Args:
      setup: gives task, data, batch size and, where batches are split over devices, the mapped axis.
      state: where the gradient is taken.
      samples: the first `size` of them.
      key: for what the task draws in training, as in augmentation; None for nothing.
    """

    def body(_: jax.Array, sums: tuple[Any, Any], batch: Batch) -> tuple[Any, Any]:
        gradient = batch_gradient(setup.task, state, batch, setup.axis_name)[0]
        return sums[0] + _norm(gradient), sums[1] + 1

    zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    norms, batches = over_batches(body, (zero, zero), setup.train, samples, setup.batch_size, setup.axis_name, key)
    return norms / batches


def _on_samples(setup: Setup, state: TrainState, samples: Samples, function: Callable[[Activations], Any]) -> Any:
    """What a function makes of the activations, a row a sample [n, ...]; rows of zeros where a round has fewer.

    Devices that split batches all look at all of these samples: they are few.
    """
    activations = setup.task.activations
    if activations is None:
        raise TaskError("the task does not tell its activations: give it a function of its own, Task(activations=...)")
    most = min(SAMPLES, samples.order.shape[0])
    count, number = jnp.minimum(samples.size, most), jnp.arange(most)
    # number * size / count, rounded down, without a product that might not fit into 32 bits.
    places = number * (samples.size // count) + number * (samples.size % count) // count
    order = samples.order[jnp.minimum(places, samples.order.shape[0] - 1)]

    def measured(batch: Batch) -> Any:
        values = function(activations(state.params, state.batch_stats, batch.inputs))
        counts = batch.weights > 0
        return jax.tree.map(lambda x: jnp.where(counts.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), values)

    return each(measured, setup.train, Samples(order, count, jnp.zeros_like(count)), setup.batch_size)


def _norm(tree: Any) -> jax.Array:
    """The norm of all leaves together; squares and small differences have no place in 16 bits."""
    return optax.tree.norm(jax.tree.map(_wide, tree))


def _wide(leaf: Any) -> jax.Array:
    return leaf.astype(wide(leaf.dtype))


def _count(state: TrainState) -> Any:
    """The steps of the learning rate's schedule so far; 0 where it has none."""
    kinds = (ScheduleState, optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)
    return next((node.count for node in nodes(state.opt_state, kinds)), 0)
