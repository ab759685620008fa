"""Soft weight rescaling: after every step each layer's norm is drawn a little towards what it was when drawn.

Oh et al., "Recovering Plasticity of Neural Networks via Soft Weight Rescaling" (https://arxiv.org/abs/2507.04683).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_number
from wsjax.errors import TaskError
from wsjax.methods.leaves import need_params
from wsjax.trees import named_leaves, norm_of, path_name


class Layer(NamedTuple):
    """A layer by its leaves' paths; a normalisation's weight is its scale.

    Attributes:
      weight: path of the leaf whose norm is drawn back, as "hidden1/kernel".
      bias: path of the leaf that is rescaled with it; None where there is none.
      normalises: whether the layer takes away the scale of what it is given.
    """

    weight: str
    bias: str | None = None
    normalises: bool = False


Layers = Sequence[Layer] | Callable[[Any], Sequence[Layer]]


class RescalingState(NamedTuple):
    """`norms`: the norm [] that each layer's weight had when it was drawn, by the weight's path."""

    norms: dict[str, jax.Array]


def model_layers(params: Any) -> list[Layer]:
    """The layers of one of `wsjax.networks.models`, from input to output.

    In a ResNet the biases are those of normalisations, and the head's: the order within a block matters only in that
    the block's last normalisation comes last.
    """
    names = [name for name, _ in named_leaves(params)]
    modules = dict.fromkeys(name.rpartition("/")[0] for name in names)
    layers = []
    for module in sorted(modules, key=_depth):
        weight, bias = (next((f"{module}/{leaf}" for leaf in own if f"{module}/{leaf}" in names), None)
                        for own in (("kernel", "scale"), ("bias",)))  # fmt: skip
        if weight is None or not _MODULE.search(module):
            raise TaskError(f"soft_weight_rescaling: '{module}' is no layer of wsjax's networks; say which layers")
        layers.append(Layer(weight, bias, weight.endswith("scale")))
    return layers


_MODULE = re.compile(r"(^|/)(hidden\d+|stem_conv|stem_norm|shortcut_conv|shortcut_norm|conv\d|norm\d|head)$")


def _depth(module: str) -> tuple[Any, ...]:
    """Where a module of wsjax's networks stands: the stem, hidden layers and blocks by number, the head."""
    stem = module.endswith(("stem_conv", "stem_norm"))
    block, _, own = module.rpartition("/")
    inside = 0 if own.startswith("shortcut") else int(re.sub(r"\D", "", own) or 0)
    return (
        2 * module.endswith("head") + (not stem),
        [int(number) for number in re.findall(r"\d+", block or module)],
        inside,
        "norm" in own,
    )


def soft_weight_rescaling(
    rate: Any, layers: Layers | None = None, head_rate: Any = None
) -> optax.GradientTransformation:
    """Rescales every layer's weight `w` to the norm `rate * ‖w0‖ + (1 - rate) * ‖w‖`, after the step; put it last.

    `w0` is the weight that `init` was called with. With `c` the factor of a layer's weight, its bias is multiplied by
    the product of `c` over the layers up to its own, from the last normalisation on: what a network of ReLU layers in
    a row puts out is then only rescaled. Where branches are added, as in a ResNet, their factors differ, and it is not.
    Leaves that no layer names stay as they are. A weight that is zero throughout stays so.

    Args:
      rate: in [0, 1], or a traced scalar; 0 changes no bit.
      layers: those of the network from input to output, or what makes them of its params; None for `model_layers`.
      head_rate: the last layer's own rate, if it has one.

    Returns:
      A transformation whose update needs the params, of the updates' own dtypes; factors are computed in float32 or
      wider.

    Raises:
      TaskError: a rate is no such number, or a layer names a leaf that there is not; in `update`, the params are
        missing or not those that the state was built for.
    """
    who, layers = "soft_weight_rescaling", layers or model_layers
    rates = rate, rate if head_rate is None else head_rate
    for name, value in (("rate", rate), ("head_rate", rates[1])):
        check_number(f"{who}: {name}", value, least=0, most=1)

    def of(params: Any) -> tuple[dict[str, Any], Sequence[Layer]]:
        leaves, own = dict(named_leaves(params)), layers(params) if callable(layers) else layers
        for name in (name for layer in own for name in (layer.weight, layer.bias)):
            if name is not None and name not in leaves:
                raise TaskError(f"{who}: the parameters have no leaf '{name}'; there is {', '.join(leaves):.200}")
        return leaves, own

    def init(params: Any) -> RescalingState:
        leaves, own = of(params)
        return RescalingState({layer.weight: norm_of(leaves[layer.weight]) for layer in own})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RescalingState]:
        need_params(who, params)
        moved = optax.apply_updates(params, updates)
        leaves, own = of(moved)
        if odd := state.norms.keys() ^ {layer.weight for layer in own}:
            listed = ", ".join(f"'{name}'" for name in sorted(odd))
            raise TaskError(f"{who}: its state and the network differ in {listed:.200}; build it by init(params)")
        excess: dict[str, Any] = {}  # what each leaf is to be multiplied by, less 1
        before: Any = 0.0  # the product's, likewise: the difference from 1 is what a small rate leaves
        for i, layer in enumerate(own):
            norm, drawn = norm_of(leaves[layer.weight]), state.norms[layer.weight]
            factor = rates[i == len(own) - 1] * jnp.where(norm > 0, (drawn - norm) / jnp.where(norm > 0, norm, 1), 0)
            before = factor if layer.normalises else factor + before + factor * before
            excess[layer.weight] = factor
            if layer.bias is not None:
                excess[layer.bias] = before

        def rescaled(path: Any, update: Any, new: Any) -> Any:
            more = excess.get(path_name(path))
            return update if more is None else jnp.where(more == 0, update, update + more * new).astype(update.dtype)

        return jax.tree_util.tree_map_with_path(rescaled, updates, moved), state

    return optax.GradientTransformation(init, update)
