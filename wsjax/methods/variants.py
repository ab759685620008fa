"""What else is called shrink-perturb: `λθ + noise`, where papers and their code take other noise and other leaves.

| where it ran | what is added to λθ | here | leaves | statistics |
|---|---|---|---|---|
| Ash and Adams 2020, their code | 0.1 of a new network; λ 0.4 | `shrink_perturb` | all | reset |
| the report | 0.01 of a new network; λ 0.1 to 0.6 | `shrink_perturb` | all | kept |
| DASH's comparison (Shin et al. 2024) | N(0, 0.01²); λ 0.3 | `gaussian_perturb` | no normalisation | kept |
| Lee et al. 2024, Han et al. 2026 (FIRE) | 0.8 of the first network; λ 0.2 | `toward_initial` | all | kept |

All of these come before a round. A name without its variant says little: a new network's noise has each layer's own
scale, Gaussian noise has one for all, and a pull to the first network adds no randomness at all. `where` chooses the
leaves: `not_normalization`, `kernels_only`, or a predicate of your own. Where normalisation follows, shrinking a kernel
changes nothing but its effective learning rate. What becomes of batch statistics is for `mixed`, or a start here, to
say: kept, reset or re-estimated.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from wsjax.checks import check_number
from wsjax.methods.reinit import Where, is_inexact, shrink_perturb
from wsjax.methods.starts import BatchStatsChoice, Boundary, OptStateChoice, Start, lifted
from wsjax.trees import wide


def gaussian_perturb(params: Any, key: jax.Array, shrink: Any, std: Any, *, where: Where | None = None) -> Any:
    """Returns `shrink * params + std * n`, leaf by leaf, with n drawn from a standard normal distribution.

    Args:
      params: pytree of the trained parameters, as for `shrink_perturb`.
      key: random key; each leaf draws by its place in the tree.
      shrink: scalar factor of `params`.
      std: scalar, the noise's standard deviation in every leaf; 0 adds none.
      where: as for `shrink_perturb`.
    """
    check_number("std", std)
    leaves, structure = jax.tree.flatten(params)
    noise = [
        jax.random.normal(jax.random.fold_in(key, i), leaf.shape, _drawn_in(leaf.dtype)) if is_inexact(leaf) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return shrink_perturb(params, jax.tree.unflatten(structure, noise), shrink, std, where=where)


def _drawn_in(dtype: Any) -> Any:
    """A leaf's dtype as JAX has it, and 32 bits for narrower ones: 16 have few numbers, and none far out."""
    own = {"g": np.dtype(float), "G": np.dtype(complex)}.get(dtype.char, dtype)  # JAX has no long doubles
    return wide(jax.dtypes.canonicalize_dtype(own))


def gaussian_start(
    shrink: Any,
    std: Any,
    *,
    where: Where | None = None,
    batch_stats: BatchStatsChoice = "keep",
    opt_state: OptStateChoice = "rebuild",
) -> Start:
    """A start by `gaussian_perturb`, with the boundary's key; batch_stats and opt_state are as for `mixed`."""

    def perturbed(boundary: Boundary) -> Any:
        return gaussian_perturb(boundary.old.params, boundary.key, shrink, std, where=where)

    return lifted(perturbed, batch_stats, opt_state)


def toward_initial(params: Any, initial: Any, rate: Any, *, where: Where | None = None) -> Any:
    """Returns `(1 - rate) * params + rate * initial`, leaf by leaf; at rate 1 exactly `initial`.

    As `partial(toward_initial, rate=0.8)` it is a re-initialiser. Its `fresh` is the network that the run began with
    under `Settings(fresh="first")`, a script's --fresh=first; before round 1 (`at_once`) it is a new one all the same.

    Args:
      params: pytree of the trained parameters, as for `shrink_perturb`.
      initial: pytree like it, of the network before any training.
      rate: scalar, the share of `initial`.
      where: as for `shrink_perturb`.
    """
    check_number("rate", rate)
    return shrink_perturb(params, initial, 1 - rate, rate, where=where)
