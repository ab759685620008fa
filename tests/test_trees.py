"""Leaves' paths, nodes of a kind, and dtypes wide enough for sums."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsjax.trees import difference, map_nodes, nodes, path_name, wide


class Pair(NamedTuple):
    a: Any
    b: Any


def test_nodes_are_found_and_replaced_in_their_order():
    tree = {"y": [Pair(1, 2), 3], "x": Pair(4, Pair(5, 6)), "z": None}
    assert nodes(tree, Pair) == [Pair(4, Pair(5, 6)), Pair(1, 2)]  # the outer one of two
    assert nodes(tree, (Pair, list)) == [Pair(4, Pair(5, 6)), [Pair(1, 2), 3]]
    assert map_nodes(lambda pair: pair.a, tree, Pair) == {"y": [1, 3], "x": 4, "z": None}


def test_a_path_is_its_parts():
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"x": [Pair(1, 2)]})]
    assert paths == ["x/0/a", "x/0/b"]


WHOLE = {"x": {"k": 1, "b": 2, "c": 3}, "y": [4]}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (WHOLE, None),
        ({"x": {"k": 1, "b": 2}, "y": [4], "z": 5}, "it lacks 'x/c' and it has 'z' besides"),
        ({}, "it lacks 'x/b', 'x/c' and 2 more"),
        (1, "it lacks 'x/b', 'x/c' and 2 more and it has a leaf besides"),
        ({**WHOLE, "y": (4,)}, "it has a tuple where there is a list, with the same leaves"),
        ({**WHOLE, "z": None}, "it has a dict where there is another, with the same leaves"),
    ],
)
def test_how_structures_differ_is_told_shortly(tree, said):
    assert difference(tree, WHOLE) == said


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float8_e5m2", "float32"), ("float32", "float32"),
     ("float64", "float64"), ("complex64", "complex64")],
)  # fmt: skip
def test_no_dtype_is_narrower_than_32_bits(dtype, expected):
    assert wide(jnp.dtype(dtype)) == np.dtype(expected)
