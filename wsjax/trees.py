"""Pytrees: the names of their leaves, nodes of one kind within them, norms, and dtypes that sums have room in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_name(path: Any) -> str:
    """Writes a JAX key path as its parts joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves with their names, in order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)]


def nodes(tree: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    """The nodes of those types, in the order of the leaves."""
    return [node for node in jax.tree.leaves(tree, is_leaf=_is(kinds)) if isinstance(node, kinds)]


def map_nodes(function: Callable[[Any], Any], tree: Any, kinds: type | tuple[type, ...]) -> Any:
    """The tree with `function(node)` in the place of each node of those types."""
    return jax.tree.map(lambda node: function(node) if isinstance(node, kinds) else node, tree, is_leaf=_is(kinds))


def _is(kinds: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, kinds)


def wide(dtype: Any) -> np.dtype[Any]:
    """The dtype, but float32 for narrower ones: 16 bits have no place for sums of many parts, nor for squares."""
    return jnp.dtype(dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32)


def norm_of(leaf: Any) -> jax.Array:
    """The Euclidean norm of all of a leaf's entries, by sums of 32 bits or more."""
    size = jnp.abs(leaf)
    return jnp.sqrt(jnp.sum(jnp.square(size.astype(wide(size.dtype)))))
