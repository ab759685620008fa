"""Layouts: which leaves are kernels and biases, and which of their axes are outputs, inputs and space.

Shapes do not tell: Flax stores a dense kernel as [in, out], PyTorch, Equinox and this package's own networks as
[out, in]. So every method that looks into kernels takes a layout, a function `(path, leaf) -> Axes | None`. By default
it is `flax_layout`, which knows kernels by their names and refuses those of Equinox and PyTorch. There is one for each
library; one of your own is a line, as this one that leaves out the head:
`lambda path, leaf: None if path.startswith("head") else flax_layout(path, leaf)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.methods.reinit import is_inexact, is_rounded, kernels_only, not_normalization
from wsjax.trees import named_leaves, wide


class Axes(NamedTuple):
    """What the axes of a kernel are, by their numbers; without inputs, those of a bias.

    An axis that is none of these is a stack: what lies along it are kernels of their own, as where `nn.scan` stacks
    layers.
    """

    output: tuple[int, ...]
    input: tuple[int, ...] = ()
    space: tuple[int, ...] = ()


EXACT = jax.lax.Precision.HIGHEST
"""Of a product of kernels: an accelerator would round the factors to 10 bits or fewer."""

Layout = Callable[[str, Any], Axes | None]
"""`(path, leaf) -> Axes`, or None for a leaf that is neither kernel nor bias. The path is written "conv/kernel"."""


def flax_layout(path: str, leaf: Any) -> Axes | None:
    """Flax's (linen and NNX), Haiku's too: a dense kernel is [in, out], one of a convolution [..., in, out].

    A kernel is a leaf of two axes or more that is named "kernel" (Flax) or "w" (Haiku), and the number of its axes is
    all else that is looked at: a matrix "w" of your own that is [out, in] is taken for one of Haiku's, and stacked
    two-dimensional convolutions [stack, height, width, in, out], as under `jax.vmap`'s or `nn.scan`'s axis, for a
    three-dimensional one. Give a layout of your own there.

    Raises:
      ValueError: a kernel has three axes: it may be a one-dimensional convolution's, an attention's
        ([in, heads, out]), or a stack of dense ones; or it is named "weight", as those of Equinox and PyTorch, which
        are [out, in].
    """
    if not kernels_only(path) or leaf.ndim < 2:
        return _bias(path, leaf)
    if _WEIGHT.search(path):
        raise ValueError(
            f"leaf '{path}' of shape {leaf.shape} is named as kernels of Equinox and PyTorch are, [out, in, ...]: give "
            "layout=equinox_layout, or a layout of your own"
        )
    if leaf.ndim == 3:
        raise ValueError(
            f"leaf '{path}' of shape {leaf.shape} may be the kernel of a one-dimensional convolution, of an attention, "
            "or a stack of layers; say which of its axes are what in a layout of your own"
        )
    return Axes((leaf.ndim - 1,), (leaf.ndim - 2,), tuple(range(leaf.ndim - 2)))


def wsjax_layout(path: str, leaf: Any) -> Axes | None:
    """That of `wsjax.networks.models`: a dense kernel is [out, in], one of a convolution [..., in, out]."""
    axes = flax_layout(path, leaf)
    return Axes((0,), (1,)) if axes is not None and leaf.ndim == 2 else axes


def equinox_layout(path: str, leaf: Any) -> Axes | None:
    """Equinox's and PyTorch's: a dense kernel is [out, in], one of a convolution [out, in, ...].

    Their embeddings and the biases of unnamed normalisation layers have no names of their own, and are taken for
    kernels and biases: leave them out by a layout of your own where there are any.
    """
    if not kernels_only(path) or leaf.ndim < 2:
        return _bias(path, leaf)
    return Axes((0,), (1,), tuple(range(2, leaf.ndim)))


def is_kernel(axes: Axes | None) -> bool:
    """Whether axes are those of a kernel, not of a bias."""
    return axes is not None and bool(axes.input)


def map_layers(
    function: Callable[..., jax.Array], layout: Layout, params: Any, *others: Any, biases: bool = False
) -> Any:
    """Maps `function(axes, kernel, *others)` over the kernels of a tree, and over its biases where they are wanted.

    Kernels come as [stack, space, out, in], with what is missing of length 1 and, of a bias, all of it in `out`; in
    float32 where they are narrower. What the function returns, of that shape, is put back as the leaf was, in its
    dtype. All other leaves stay as they are.

    Raises:
      ValueError: no leaf is a kernel, or one is complex or would be rounded; the first such leaf is named.
    """
    structure = jax.tree.structure(params)

    def changed(axes: Axes | None, old: Any, *more: Any) -> Any:
        if axes is None or not (biases or is_kernel(axes)) or old.size == 0:
            return old
        order, _ = _order(axes, old)
        new = function(axes, *(_laid_out(x, axes) for x in (old, *more)))
        back = np.argsort(order).tolist()
        return jnp.transpose(new.reshape([old.shape[axis] for axis in order]), back).astype(old.dtype)

    found, more = _leaves(layout, params, biases), map(structure.flatten_up_to, others)
    return structure.unflatten([changed(axes, old, *own) for (_, old, axes), *own in zip(found, *more, strict=True)])


def kernels_of(layout: Layout, params: Any) -> dict[str, jax.Array]:
    """The kernels of a tree by their paths, as `map_layers` has them: [stack, space, out, in]; none without numbers."""
    kernels = [own for own in _leaves(layout, params) if is_kernel(own[2]) and own[1].size]
    return {path: _laid_out(leaf, axes) for path, leaf, axes in kernels if axes is not None}


def axes_of(layout: Layout, path: str, leaf: Any, biases: bool = False) -> Axes | None:
    """The axes of a leaf, checked; None where it is neither kernel nor bias, or no array of numbers to change.

    What a bias is made of is looked at where `biases` are to be worked with.

    Raises:
      ValueError: the layout names an axis that the leaf has not, or one twice; or the leaf is of a dtype that methods
        cannot work in.
    """
    axes = layout(path, leaf) if is_inexact(leaf) else None
    if axes is None:
        return None
    named = (*axes.space, *axes.output, *axes.input)
    if len(set(named)) != len(named) or not set(named) <= set(range(leaf.ndim)) or not axes.output:
        raise ValueError(f"leaf '{path}' of shape {leaf.shape} cannot have {axes}: name each axis once, by its number")
    if not (biases or is_kernel(axes)):
        return axes
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"leaf '{path}' is {leaf.dtype}; kernels and biases must be of real numbers")
    if is_rounded(leaf.dtype):
        raise ValueError(f"leaf '{path}' is {leaf.dtype}, which JAX rounds here; set jax_enable_x64, or cast it")
    return axes


def _leaves(layout: Layout, params: Any, biases: bool = False) -> list[tuple[str, Any, Axes | None]]:
    """The leaves with their paths and axes; raises ValueError where none is a kernel."""
    leaves = named_leaves(params)
    found = [(path, leaf, axes_of(layout, path, leaf, biases)) for path, leaf in leaves]
    if not any(is_kernel(axes) for _, _, axes in found):
        name = getattr(layout, "__name__", "the layout")
        raise ValueError(f"no leaf is a kernel by {name}" + (f"; the first one is '{leaves[0][0]}'" if leaves else ""))
    return found


def _laid_out(leaf: Any, axes: Axes) -> jax.Array:
    """The leaf as [stack, space, out, in]."""
    order, shape = _order(axes, leaf)
    return jnp.transpose(jnp.asarray(leaf, wide(leaf.dtype)), order).reshape(shape)


def _order(axes: Axes, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The leaf's axes as stack, space, out, in; and the length of each of the four."""
    named = (*axes.space, *axes.output, *axes.input)
    parts = (tuple(axis for axis in range(leaf.ndim) if axis not in named), axes.space, axes.output, axes.input)
    return sum(parts, ()), tuple(math.prod(leaf.shape[axis] for axis in part) for part in parts)


_BIAS = re.compile(r"(^|[/.])(bias|b)([/.]value)?$")
_WEIGHT = re.compile(r"(^|[/.])weight([/.]value)?$")


def _bias(path: str, leaf: Any) -> Axes | None:
    return Axes(tuple(range(leaf.ndim))) if not_normalization(path) and leaf.ndim and _BIAS.search(path) else None
