"""Warm starts, shrink-perturb and retraining on growing data, in JAX and Flax."""

import importlib
from typing import Any

# Public name -> module. Loaded at first use: importing jax, flax and optax takes seconds, `import wsjax` none.
_HOMES = {
    "shrink_perturb": "reinit",
    "warm_start": "reinit",
    "random_init": "reinit",
    "not_normalization": "reinit",
    "kernels_only": "reinit",
    "resnet18": "models",
    "mlp": "models",
    "logistic_regression": "models",
    "Dataset": "data",
    "load": "data",
    "Task": "train",
    "TrainState": "train",
    "image_task": "train",
    "stateless_task": "train",
    "make_optimizer": "train",
    "make_train_step": "train",
    "init_state": "train",
    "Round": "rounds",
    "Settings": "rounds",
    "run_rounds": "rounds",
    "after_epochs": "stopping",
    "at_accuracy": "stopping",
    "at_plateau": "stopping",
    "any_of": "stopping",
    "read_run": "records",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Loads a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wsjax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"wsjax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
