"""Re-initialisers: what happens to the parameters between two rounds of training.

A re-initialiser is a pure function `(params, fresh) -> params` of two pytrees of one structure: the parameters trained
so far, and those of a newly drawn network. `functools.partial(shrink_perturb, shrink=0.4, perturb=0.1)` is one;
`warm_start` and `random_init` are its two ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from wsjax.checks import check_number
from wsjax.errors import TaskError
from wsjax.trees import difference, named_leaves, nodes, path_name, wide

Where = Callable[[str], bool]
"""Chooses leaves by their path, written as "block_0/conv/kernel"."""


def shrink_perturb(params: Any, fresh: Any, shrink: Any, perturb: Any, *, where: Where | None = None) -> Any:
    """Returns `shrink * params + perturb * fresh`, leaf by leaf.

    Ash and Adams, "On Warm-Starting Neural Network Training" (NeurIPS 2020, https://arxiv.org/abs/1910.08475), section
    4.1, with the noise drawn by the network's own initialiser, as their code has it.

    `shrink=1, perturb=0` is exactly warm starting and `shrink=0, perturb=1` exactly random initialisation: a term whose
    factor is 0 is left out, so that not even the sign of a zero changes, and infinities in it do no harm.

    Args:
      params: pytree of the trained parameters: Flax dicts, Equinox modules, NNX state, tuples, anything that
        `jax.tree` walks. Floating-point and complex arrays of JAX and NumPy are mixed; arrays of other dtypes,
        random keys, None, Python's own numbers (floats too: modules keep a rate of dropout as one) and all that is no
        array are returned as they are in `params`.
      fresh: pytree of newly drawn parameters, with the structure and shapes of `params`.
      shrink: scalar factor of `params`, a number or a (traced) array of shape [].
      perturb: scalar factor of `fresh`, likewise.
      where: keeps the leaves whose path it answers False for as they are in `params`; None mixes all.
        `not_normalization` and `kernels_only` are ready-made. A path begins as the tree does: that of linen's variables
        with "params/".

    Returns:
      A pytree like `params`, with its dtypes. Works under jit, vmap and grad, in all four arguments.

    Raises:
      ValueError: the trees differ in structure, or in a leaf's shape or kind of dtype; a leaf is an array without
        values to mix: another library's, a mere shape, or one that was donated (the first such leaf is named);
        `where` chooses none of the leaves that can be mixed; or shrink or perturb is no real number or, where it is not
        traced, not finite.
    """
    for name, factor in (("shrink", shrink), ("perturb", perturb)):
        check_number(name, factor)
    check_match(params, fresh)

    def leaf(path: Any, is_mixed: bool, old: Any, new: Any) -> Any:
        return _mix_leaf(path_name(path), old, new, shrink, perturb) if is_mixed else old

    return jax.tree_util.tree_map_with_path(leaf, chosen_by(where, params), params, fresh)


def warm_start(params: Any, fresh: Any) -> Any:
    """Continues from the trained parameters: `shrink_perturb` with shrink 1 and perturb 0."""
    return shrink_perturb(params, fresh, 1.0, 0.0)


def random_init(params: Any, fresh: Any) -> Any:
    """Starts from scratch: `shrink_perturb` with shrink 0 and perturb 1."""
    return shrink_perturb(params, fresh, 0.0, 1.0)


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NORMALIZATION = re.compile(r"[a-z]*norms?|[a-z]*normali[sz]ation|[blg]ns?", re.IGNORECASE)
_PART = re.compile(r"[/.]")
_KERNEL = re.compile(r"(^|[/.])(kernel|weight|w)([/.]value)?$")


def not_normalization(path: str) -> bool:
    """Chooses every leaf but those of normalisation layers.

    Their own name, or that of the module that holds them, has a word that ends in "norm" or is bn, ln or gn:
    LayerNorm_0, rms_norm, batchnorm2, bn1, but not normal_head. Capitals, digits and signs part words. What such a
    layer lies in says nothing: a PreNormBlock has kernels.
    """
    leaf, *holders = [part for part in _PART.split(path)[::-1] if part != "value"]
    holder = next((part for part in holders if _WORD.search(part)), "")
    return not any(_NORMALIZATION.fullmatch(word) for word in _WORD.findall(f"{holder} {leaf}"))


def kernels_only(path: str) -> bool:
    """Chooses the kernels of dense and convolutional layers: leaves named kernel, weight or w; no normalisation.

    Flax's embeddings are named embedding and are none; Equinox's are named weight and are.
    """
    return not_normalization(path) and bool(_KERNEL.search(path))


@jax.custom_jvp
@jax.jit
def _mix(old: jax.Array, new: jax.Array, shrink: jax.Array, perturb: jax.Array) -> jax.Array:
    kept, drawn = _times(shrink, old), _times(perturb, new)
    return jnp.where(perturb == 0, kept, jnp.where(shrink == 0, drawn, kept + drawn))


def _times(factor: jax.Array, array: jax.Array) -> jax.Array:
    # A product with 1 or 0 is not exact: XLA flushes subnormal numbers, and a complex one mixes infinities with 0.
    return jnp.where(factor == 1, array, jnp.where(factor == 0, 0, factor * array))


@partial(_mix.defjvp, symbolic_zeros=True)
def _mix_jvp(primals: Any, tangents: Any) -> Any:
    # The selection in _mix would hide the derivative with respect to a factor that is 0: differentiate the plain sum.
    old, new, shrink, perturb = primals
    terms = [
        factor * tangent
        for factor, tangent in zip((shrink, perturb, old, new), tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)  # of which infinities would make NaN
    ]
    mixed = _mix(*primals)
    return mixed, sum(terms, jnp.zeros_like(mixed))


def _mix_leaf(name: str, old: Any, new: Any, shrink: Any, perturb: Any) -> Any:
    dtype = np.dtype(old.dtype)
    if is_rounded(dtype):
        return _mix_on_host(name, old, new, shrink, perturb)
    # Narrower leaves are mixed in float32 and rounded once.
    return _mix(*(jnp.asarray(x, wide(dtype)) for x in (old, new, shrink, perturb))).astype(dtype)


def _mix_on_host(name: str, old: Any, new: Any, shrink: Any, perturb: Any) -> np.ndarray:
    """Mixes leaves that JAX would round or does not know: long doubles, and float64 where it runs with 32 bits."""
    if any(isinstance(x, jax.core.Tracer) for x in (old, new, shrink, perturb)):
        raise ValueError(f"leaf '{name}' is {old.dtype}, which a traced program rounds; set jax_enable_x64, or cast it")
    terms = [(np.asarray(factor, old.dtype), np.array(x, old.dtype)) for factor, x in ((shrink, old), (perturb, new))]
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN pass silently, as they do in JAX
        kept, *more = [x if factor == 1 else factor * x for factor, x in terms if factor != 0] or [np.zeros_like(old)]
        return kept + more[0] if more else kept


def chosen_by(where: Where | None, params: Any, of: Callable[[Any], bool] | None = None) -> Any:
    """Which leaves, of those that `of` holds for, `where` chooses: a tree of True and False.

    Args:
      where: None chooses all.
      params: pytree.
      of: None for `is_inexact`.

    Raises:
      TaskError: there are such leaves, and `where` chooses none of them. A part of a tree, whose other leaves
        `optax.masked` has taken out, may be without any.
    """
    if where is not None and not callable(where):
        raise TaskError(f"where must be a function of a leaf's path, such as wsjax.kernels_only, not {where!r:.80}")
    fits = of or is_inexact

    def choice(path: Any, leaf: Any) -> bool:
        return bool(fits(leaf) and (where is None or where(path_name(path))))

    chosen = jax.tree_util.tree_map_with_path(choice, params)
    if not any(jax.tree.leaves(chosen)):
        paths = [path for path, leaf in named_leaves(params) if fits(leaf)]
        if paths and not _is_part(params):
            shown = ", ".join(f"'{path}'" for path in paths[:3]) + f" and {len(paths) - 3} more" * (len(paths) > 3)
            raise TaskError(f"where chooses none of the leaves; it is asked for their paths, {shown:.300}")
    return chosen


def _is_part(params: Any) -> bool:
    from optax import MaskedNode  # asked for where an error is due, so that to mix needs no optax

    return bool(nodes(params, MaskedNode))


def is_rounded(dtype: np.dtype[Any]) -> bool:
    """Whether JAX would round numbers of a dtype, or does not know it."""
    return dtype.char in "gG" or jax.dtypes.canonicalize_dtype(dtype) != dtype  # g and G: NumPy's long doubles


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy of floating-point or complex numbers."""
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _kind(leaf: Any) -> str:
    if not _is_array(leaf):
        return "no array"
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    return next((kind.__name__ for kind in kinds if jnp.issubdtype(leaf.dtype, kind)), str(leaf.dtype))


def check_match(params: Any, fresh: Any, other: str = "fresh") -> None:
    """Raises a ValueError that names the first leaf in which the trees differ, and calls the second tree `other`."""
    old, new = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (params, fresh))
    for (old_path, old_leaf), (new_path, new_leaf) in zip(old, new, strict=False):
        name = path_name(old_path)
        if old_path != new_path:
            there = f"params has leaf '{name}' where {other} has '{path_name(new_path)}'"
            raise ValueError(
                f"trees differ: {there}{_advice(name, old_leaf) or _advice(path_name(new_path), new_leaf)}"
            )
        if np.shape(old_leaf) != np.shape(new_leaf) or _kind(old_leaf) != _kind(new_leaf):
            there = f"{_describe(old_leaf)} in params, {_describe(new_leaf)} in {other}"
            raise ValueError(f"leaf '{name}' differs: {there}")
        for holder, leaf in (("params", old_leaf), (other, new_leaf)):
            if fault := _fault(leaf):
                raise ValueError(f"leaf '{name}' of {holder} {fault}")
    if len(old) != len(new):
        longer, holder = (old, "params") if len(old) > len(new) else (new, other)
        path, leaf = longer[min(len(old), len(new))]
        raise ValueError(f"trees differ: only {holder} has leaf '{path_name(path)}'{_advice(path_name(path), leaf)}")
    if unlike := difference(fresh, params):
        raise ValueError(f"trees differ: of {other}, compared with params, {unlike}")


def function_fault(name: str, leaf: Any) -> str | None:
    """What is wrong with a leaf that is a function, where arrays alone will do; None of any other."""
    if not callable(leaf) or hasattr(leaf, "dtype"):
        return None
    return f"leaf '{name}' is a function, no array: give the arrays alone, of Equinox eqx.filter(tree, eqx.is_array)"


def _advice(name: str, leaf: Any) -> str:
    fault = function_fault(name, leaf)
    return f"; {fault}" if fault else ""


def _fault(leaf: Any) -> str | None:
    """What keeps an array from being mixed or handed on."""
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
        return "was deleted: a compiled function took it as a donation; copy it before that call"
    if not _is_array(leaf) and hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"is a {type(leaf).__module__}.{type(leaf).__name__}, no array of JAX or NumPy; convert it"
    return None


def _describe(leaf: Any) -> str:
    return f"shape {leaf.shape} of {leaf.dtype}" if _is_array(leaf) else f"{type(leaf).__name__} {leaf!r}"
