"""Singular values, one matrix at a time.

XLA's LAPACK on a CPU hands a batch of matrices to the threads that run the program, and waits for them; where several
batches are under way, as for a network's kernels, all threads may wait and none is left to work: it hangs for ever.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def svd(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The thin decomposition (U [..., m, k], s [..., k], V [..., k, n]) of matrices [..., m, n], k = min(m, n)."""
    one = jax.custom_batching.sequential_vmap(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
    return jnp.vectorize(one, signature="(m,n)->(m,k),(k),(k,n)")(matrices)


def singular_values(matrices: jax.Array) -> jax.Array:
    """The singular values [..., k], falling, of matrices [..., m, n]."""
    one = jax.custom_batching.sequential_vmap(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))
    return jnp.vectorize(one, signature="(m,n)->(k)")(matrices)
