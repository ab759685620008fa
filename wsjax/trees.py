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


def difference(tree: Any, other: Any) -> str | None:
    """How a tree's structure differs from another's, in a few words that say "it" of the tree; None where it does not.

    Of trees of many leaves the structures themselves would be thousands of characters.
    """
    if jax.tree.structure(tree) == jax.tree.structure(other):
        return None
    own, there = (dict(named_leaves(each)) for each in (tree, other))
    lacks, more = (_some([name for name in one if name not in two]) for one, two in ((there, own), (own, there)))
    parts = [f"it lacks {lacks}" * bool(lacks), f"it has {more} besides" * bool(more)]
    if any(parts):
        return " and ".join(filter(None, parts))
    kind, wanted = _first_unlike(jax.tree.structure(tree), jax.tree.structure(other))
    return f"it has {kind} where there is {wanted}, with the same leaves"


def _some(names: list[str]) -> str:
    """The first of some leaves' names, and how many there are beside."""
    shown = ", ".join(f"'{name}'" if name else "a leaf" for name in names[:2])
    return f"{shown:.120}" + f" and {len(names) - 2} more" * (len(names) > 2)


def _first_unlike(one: Any, other: Any) -> tuple[str, str]:
    """What the first nodes are in which two structures differ."""
    nodes_of = [each.node_data() for each in (one, other)]
    if nodes_of[0] == nodes_of[1]:
        pairs = zip(one.children(), other.children(), strict=False)
        if (pair := next(((a, b) for a, b in pairs if a != b), None)) is not None:
            return _first_unlike(*pair)
    first, second = ("a leaf" if data is None else f"a {data[0].__name__}" for data in nodes_of)
    return first, second if first != second else "another"


def wide(dtype: Any) -> np.dtype[Any]:
    """The dtype, but float32 for narrower ones: 16 bits have no place for sums of many parts, nor for squares."""
    return jnp.dtype(dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32)


def norm_of(leaf: Any) -> jax.Array:
    """The Euclidean norm of all of a leaf's entries, by sums of 32 bits or more."""
    size = jnp.abs(leaf)
    return jnp.sqrt(jnp.sum(jnp.square(size.astype(wide(size.dtype)))))
