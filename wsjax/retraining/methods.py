"""What a retraining begins with, by the name of a method: the current model's parameters, made ready, or nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from wsjax.errors import UsageError
from wsjax.methods.dash import dash, falling
from wsjax.methods.fire import fire
from wsjax.methods.layouts import wsjax_layout
from wsjax.methods.reinit import shrink_perturb, warm_start
from wsjax.methods.starts import grown
from wsjax.retraining.lineage import FACTORS, METHODS, SCRATCH, SHRINK_PERTURB
from wsjax.retraining.recipe import Recipe
from wsjax.training.train import Setup, TrainState, all_samples


def factors(recipe: Recipe) -> dict[str, Any]:
    """A recipe's method with its own settings, as a lineage tells them; raises UsageError where there is none such."""
    if recipe.method not in METHODS:
        raise UsageError(f"unknown method {recipe.method!r:.40}; available: {', '.join(METHODS)}")
    return {"method": recipe.method, **{name: getattr(recipe, name) for name in FACTORS.get(recipe.method, ())}}


def begun(recipe: Recipe, setup: Setup, parent: TrainState, fresh: Any) -> tuple[Any, Any] | None:
    """What training begins with: (params, batch_stats), or None for a newly drawn network.

    Args:
      recipe: says which method; DASH and FIRE look into kernels, which must lie as `wsjax_layout` has them.
      setup: with all images to train on, of which DASH takes the gradient, as one chunk.
      parent: the current model's state. Units of classes that it does not know are newly drawn; DASH and FIRE then
        treat them as all others.
      fresh: newly drawn parameters.
    """
    if recipe.method == SCRATCH:
        return None
    reinit = partial(shrink_perturb, shrink=recipe.shrink, perturb=recipe.perturb)
    params = grown(reinit if recipe.method == SHRINK_PERTURB else warm_start)(parent.params, fresh)
    if recipe.method == "fire":
        params = fire(params, steps=recipe.fire_steps, layout=wsjax_layout)
    if recipe.method == "dash":
        direction = _falling(setup, params, parent.batch_stats)
        params = dash(params, direction=direction, shrink=recipe.dash_shrink, layout=wsjax_layout)
    return params, parent.batch_stats


def _falling(setup: Setup, params: Any, batch_stats: Any) -> Any:
    """The way that the loss over all images falls."""
    state = TrainState(params, batch_stats, (), jnp.zeros((), jnp.int32))
    train = jax.tree.map(jnp.asarray, setup.train)
    count = jax.tree.leaves(train)[0].shape[0]

    def measure(state: TrainState, train: Any) -> Any:
        return falling(setup._replace(train=train), state, all_samples(train), chunk=count, decay=1.0)

    return jax.jit(measure)(state, train)
