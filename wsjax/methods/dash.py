"""DASH, direction-aware shrinking: weights that the loss pulls at are kept, others are shrunk.

Shin, Oh, Cho and Yun, "DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of Plasticity"
(NeurIPS 2024, https://arxiv.org/abs/2410.23495).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from wsjax.checks import check_choice, check_count, check_number
from wsjax.errors import TaskError
from wsjax.methods.layouts import Axes, Layout, flax_layout, is_kernel, map_layers
from wsjax.methods.reinit import check_match
from wsjax.methods.starts import BatchStatsChoice, Boundary, OptStateChoice, Start, lifted
from wsjax.parallel import total
from wsjax.training.train import Batch, Samples, Setup, TrainState, over_batches, wide_zeros

Granularity = Literal["authors", "unit", "kernel"]

_EPSILON = 1e-8  # the least norm, as in PyTorch's cosine: a vector of zeros is at a right angle to every other


def dash(
    params: Any,
    *,
    direction: Any,
    shrink: Any = 0.3,
    layout: Layout = flax_layout,
    granularity: Granularity = "authors",
) -> Any:
    """Shrinks each part w of the parameters to `clip(cos(direction, w), shrink, 1) * w`.

    Args:
      params: pytree of the trained parameters.
      direction: pytree like it, minus the gradient of the loss: the way that the loss falls. Its length does not
        matter, but that a part of norm below 1e-8 counts as shorter, as in the authors' code: it leads nowhere, and its
        weights shrink.
      shrink: scalar, the least factor, in [0, 1]: a number or a (traced) array of shape [].
      layout: tells kernels and biases; all other leaves, those of normalisation layers among them, stay as they are.
      granularity: what shares a cosine: "authors", as their code has it, the kernel of a convolution for each pair of
        input and output (over space: where that is one weight, its sign decides), that of a dense layer for each
        output, and a whole bias; "unit", all that leads to one output, and a whole bias; "kernel", a whole leaf.

    Returns:
      A pytree like `params`, with its dtypes. Works under jit and vmap.

    Raises:
      ValueError: the trees differ; no leaf is a kernel, or one is of numbers that cannot be worked with (the first such
        leaf is named); or shrink or granularity is none.
    """
    check_number("shrink", shrink, least=0, most=1)
    check_choice("granularity", granularity, get_args(Granularity))
    check_match(params, direction, "direction")

    def shrunk(axes: Axes, weight: jax.Array, direction: jax.Array) -> jax.Array:
        over = _shared(axes, granularity)
        cosine = jnp.sum(_unit(weight, over) * _unit(direction, over), over, keepdims=True)
        return jnp.clip(cosine, shrink, 1) * weight

    return map_layers(shrunk, layout, params, direction, biases=True)


def dash_start(
    shrink: Any = 0.3,
    decay: float = 0.3,
    *,
    chunk: int = 1000,
    layout: Layout = flax_layout,
    granularity: Granularity = "authors",
    batch_stats: BatchStatsChoice = "keep",
    opt_state: OptStateChoice = "rebuild",
) -> Start:
    """A start that shrinks by `dash`, along `falling` of the old state over all samples of the round.

    Args:
      shrink: as for `dash`.
      decay: the weight of a chunk against what came before it.
      chunk: samples, in the order of their arrival, whose gradient is taken as one: as many as arrive a round.
      layout: as for `dash`.
      granularity: as for `dash`.
      batch_stats: BatchNorm's running statistics: as for `mixed`. The authors keep them; they are wrong by then.
      opt_state: the optimiser's state, likewise. The authors keep it.
    """
    check_number("shrink", shrink, least=0, most=1)
    check_number("decay", decay)
    if not 0 < decay <= 1:
        raise TaskError(f"decay must lie in (0, 1], not {decay}")
    check_count("chunk", chunk)

    def shrunk(boundary: Boundary) -> Any:
        direction = falling(boundary.setup, boundary.old, boundary.samples, chunk, decay)
        return dash(boundary.old.params, direction=direction, shrink=shrink, layout=layout, granularity=granularity)

    return lifted(shrunk, batch_stats, opt_state)


def falling(setup: Setup, state: TrainState, samples: Samples, chunk: int, decay: float) -> Any:
    """The way that the loss falls, a tree like the parameters: a moving average of chunks' negative gradients.

    `G <- (1 - decay) * G - decay * (the gradient of a chunk's mean loss)`, from 0, over chunks of samples from the
    oldest to the newest, the last one filled as far as it goes; in evaluation mode, with the state's batch statistics,
    and with nothing random.

    Samples do not depend on each other then: this is one sum over them, each with its chunk's share, and is taken in
    batches of the setup's size, however large the chunks are. (Not so by a task that is evaluated with each batch's own
    statistics, `with_batch_statistics`: give the setup the task itself.)
    """
    last = (samples.size - 1) // chunk

    def body(_: jax.Array, fallen: Any, batch: Batch) -> Any:
        number = batch.position // chunk
        length = jnp.clip(samples.size - number * chunk, 1, chunk)
        share = batch.weights * decay * jnp.power(1.0 - decay, jnp.maximum(last - number, 0)) / length

        def loss(params: Any) -> jax.Array:
            outputs, _ = setup.task.apply(params, state.batch_stats, batch.inputs, batch.weights, False, None)
            return jnp.sum(setup.task.loss(outputs, batch.targets) * share)

        return jax.tree.map(jnp.subtract, fallen, jax.grad(loss)(state.params))

    fallen = over_batches(body, wide_zeros(state.params), setup.train, samples, setup.batch_size, setup.axis_name)
    return jax.tree.map(lambda own, leaf: own.astype(leaf.dtype), total(fallen, setup.axis_name), state.params)


def _shared(axes: Axes, granularity: Granularity) -> tuple[int, ...]:
    """The axes, of [stack, space, out, in], over which weights share a cosine."""
    if granularity == "kernel" or not is_kernel(axes):
        return (1, 2, 3)
    if granularity == "unit":
        return (1, 3)
    return (1,) if axes.space else (3,)


def _unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Vectors over those axes at length 1."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)), _EPSILON)
