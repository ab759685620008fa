"""Warm starts, shrink-perturb and retraining on growing data, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

# A public name is loaded at first use: importing jax, flax and optax takes seconds, `import wsjax` none.
_HOMES = {
    "reinit": ("kernels_only", "not_normalization", "random_init", "shrink_perturb", "warm_start"),
    "models": ("logistic_regression", "mlp", "resnet18"),
    "data": ("Dataset", "load"),
    "train": ("Task", "TrainState", "image_task", "init_state", "make_optimizer", "make_train_step", "stateless_task"),
    "rounds": ("Round", "Settings", "run_rounds"),
    "stopping": ("after_epochs", "any_of", "at_accuracy", "at_plateau"),
    "records": ("Records", "read_run"),
}

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from wsjax.data import Dataset as Dataset
    from wsjax.data import load as load
    from wsjax.models import logistic_regression as logistic_regression
    from wsjax.models import mlp as mlp
    from wsjax.models import resnet18 as resnet18
    from wsjax.records import Records as Records
    from wsjax.records import read_run as read_run
    from wsjax.reinit import kernels_only as kernels_only
    from wsjax.reinit import not_normalization as not_normalization
    from wsjax.reinit import random_init as random_init
    from wsjax.reinit import shrink_perturb as shrink_perturb
    from wsjax.reinit import warm_start as warm_start
    from wsjax.rounds import Round as Round
    from wsjax.rounds import Settings as Settings
    from wsjax.rounds import run_rounds as run_rounds
    from wsjax.stopping import after_epochs as after_epochs
    from wsjax.stopping import any_of as any_of
    from wsjax.stopping import at_accuracy as at_accuracy
    from wsjax.stopping import at_plateau as at_plateau
    from wsjax.train import Task as Task
    from wsjax.train import TrainState as TrainState
    from wsjax.train import image_task as image_task
    from wsjax.train import init_state as init_state
    from wsjax.train import make_optimizer as make_optimizer
    from wsjax.train import make_train_step as make_train_step
    from wsjax.train import stateless_task as stateless_task


def __getattr__(name: str) -> Any:
    """Loads a public name from the module that defines it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"wsjax.{module}"), name)
    raise AttributeError(f"module 'wsjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
