"""Singular values, one matrix at a time.

XLA's LAPACK on a CPU hands a batch of matrices to the threads that run the program, and waits for them; where several
batches are under way, as for a network's kernels, all threads may wait and none is left to work: it hangs for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def svd(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The thin decomposition (U [..., m, k], s [..., k], V [..., k, n]) of matrices [..., m, n], k = min(m, n)."""
    one = jax.custom_batching.sequential_vmap(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
    return _over_leading(one, matrices)


def singular_values(matrices: jax.Array) -> jax.Array:
    """The singular values [..., k], falling, of matrices [..., m, n]."""
    return _over_leading(jax.custom_batching.sequential_vmap(lambda m: jnp.linalg.svd(m, compute_uv=False)), matrices)


def _over_leading(one: Callable[[jax.Array], Any], matrices: jax.Array) -> Any:
    for _ in range(matrices.ndim - 2):
        one = jax.vmap(one)
    return one(matrices)
