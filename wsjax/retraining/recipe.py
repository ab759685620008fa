"""How a model is retrained, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from wsjax.data.sources import MAX_GIGABYTES
from wsjax.retraining.lineage import SHRINK_PERTURB
from wsjax.retraining.shelf import MakeTask
from wsjax.training.stopping import StopRule


class Recipe(NamedTuple):
    """How a model is retrained.

    Attributes:
      make_task: see `MakeTask`; for classes it has not seen, a network's leaves must grow at the end of an axis.
      optimizer: of optax.
      stop: when training ends.
      batch_size: samples a step.
      checkpoint_every: epochs between checkpoints.
      describe: what a lineage tells of the above, JSON values. A model whose "architecture" differs is refused.
      shrink: factor of the current model's parameters.
      perturb: factor of newly drawn ones.
      holdout: fraction of the images that are held out.
      tolerance: how much lower than its parent's a new model's held-out accuracy may be, in [0, 1].
      seed: model n draws all it draws from the key of seed + n, so that every model is perturbed by a new network.
      compare_scratch: whether to train from scratch too, on the same data, for comparison.
      mesh: `wsjax.parallel.data_mesh()` splits every batch over devices.
      max_gigabytes: what a data file, and all images together, may take in memory.
      image_size: pixels of a side, which images of folders are resized to; see `incoming.read_pool`.
      fit: what the stop rule looks at; see `Setup`.
      method: how a model begins that has a parent: one of `lineage.METHODS`.
      dash_shrink: DASH: the least factor of the current model's parameters, in [0, 1].
      fire_steps: FIRE: steps of Newton and Schulz; None goes all the way.
      later: the learning rate, for the lineage, and the optimiser of models that have a parent; None takes `optimizer`.
      again: whether a model is trained where nothing is new, too, as after one that was kept aside.
    """

    make_task: MakeTask
    optimizer: optax.GradientTransformation
    stop: StopRule
    batch_size: int
    checkpoint_every: int
    describe: Mapping[str, Any]
    shrink: float = 0.4
    perturb: float = 0.1
    holdout: float = 0.1
    tolerance: float = 0.02
    seed: int = 0
    compare_scratch: bool = False
    mesh: Mesh | None = None
    max_gigabytes: float = MAX_GIGABYTES
    image_size: int | None = None
    fit: Callable[..., Any] | None = None
    method: str = SHRINK_PERTURB
    dash_shrink: float = 0.3
    fire_steps: int | None = 10
    later: tuple[float, optax.GradientTransformation] | None = None
    again: bool = False
