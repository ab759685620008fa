"""Warm starts, shrink-perturb and retraining on growing data, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

# A public name is loaded at first use: importing jax, flax and optax takes seconds, `import wsjax` none.
_MODULES = {
    "methods.reinit": ("kernels_only", "not_normalization", "random_init", "shrink_perturb", "warm_start"),
    "methods.starts": ("Boundary", "anchored", "forgotten", "grown", "mixed", "new_heads", "scratch", "started"),
    "methods.l2_init": ("l2_init",),
    "methods.soft_weight_rescaling": ("Layer", "model_layers", "soft_weight_rescaling"),
    "methods.hare_tortoise": ("hare_tortoise", "tortoise", "tortoise_kept"),
    "methods.shrink_perturb_every": ("shrink_perturb_every",),
    "training.schedules": ("Schedule",),
    "methods.dash": ("dash", "dash_start"),
    "methods.fire": ("fire", "isometry_error", "with_norms_of"),
    "methods.layouts": ("Axes", "equinox_layout", "flax_layout", "wsjax_layout"),
    "methods.parseval": ("add_parseval", "parseval"),
    "methods.variants": ("gaussian_perturb", "gaussian_start", "toward_initial"),
    "networks.models": ("logistic_regression", "mlp", "resnet18"),
    "data.datasets": ("Dataset", "load"),
    "data.image_files": ("read_image",),
    "training.augment": ("augmented", "standard_augmentation"),
    "training.task": ("Task", "image_task", "stateless_task"),
    "training.train": ("Batch", "Samples", "Setup", "TrainState", "init_state", "make_optimizer", "make_train_step"),
    "training.stopping": ("after_epochs", "any_of", "at_accuracy", "at_plateau"),
    "rounds.legs": ("Method", "Round", "Settings"),
    "rounds.loop": ("run_rounds",),
    "storage.records": ("Records", "read_run"),
    "scripts.build": ("load_model",),
    "parallel": ("data_mesh", "replica_mesh"),
    "errors": ("DataError", "NonFiniteLoss", "RunError", "TaskError", "UserError"),
}

_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

__version__: str  # of the package that is installed

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from wsjax.data.datasets import Dataset as Dataset
    from wsjax.data.datasets import load as load
    from wsjax.data.image_files import read_image as read_image
    from wsjax.errors import DataError as DataError
    from wsjax.errors import NonFiniteLoss as NonFiniteLoss
    from wsjax.errors import RunError as RunError
    from wsjax.errors import TaskError as TaskError
    from wsjax.errors import UserError as UserError
    from wsjax.methods.dash import dash as dash
    from wsjax.methods.dash import dash_start as dash_start
    from wsjax.methods.fire import fire as fire
    from wsjax.methods.fire import isometry_error as isometry_error
    from wsjax.methods.fire import with_norms_of as with_norms_of
    from wsjax.methods.hare_tortoise import hare_tortoise as hare_tortoise
    from wsjax.methods.hare_tortoise import tortoise as tortoise
    from wsjax.methods.hare_tortoise import tortoise_kept as tortoise_kept
    from wsjax.methods.l2_init import l2_init as l2_init
    from wsjax.methods.layouts import Axes as Axes
    from wsjax.methods.layouts import equinox_layout as equinox_layout
    from wsjax.methods.layouts import flax_layout as flax_layout
    from wsjax.methods.layouts import wsjax_layout as wsjax_layout
    from wsjax.methods.parseval import add_parseval as add_parseval
    from wsjax.methods.parseval import parseval as parseval
    from wsjax.methods.reinit import kernels_only as kernels_only
    from wsjax.methods.reinit import not_normalization as not_normalization
    from wsjax.methods.reinit import random_init as random_init
    from wsjax.methods.reinit import shrink_perturb as shrink_perturb
    from wsjax.methods.reinit import warm_start as warm_start
    from wsjax.methods.shrink_perturb_every import shrink_perturb_every as shrink_perturb_every
    from wsjax.methods.soft_weight_rescaling import Layer as Layer
    from wsjax.methods.soft_weight_rescaling import model_layers as model_layers
    from wsjax.methods.soft_weight_rescaling import soft_weight_rescaling as soft_weight_rescaling
    from wsjax.methods.starts import Boundary as Boundary
    from wsjax.methods.starts import anchored as anchored
    from wsjax.methods.starts import forgotten as forgotten
    from wsjax.methods.starts import grown as grown
    from wsjax.methods.starts import mixed as mixed
    from wsjax.methods.starts import new_heads as new_heads
    from wsjax.methods.starts import scratch as scratch
    from wsjax.methods.starts import started as started
    from wsjax.methods.variants import gaussian_perturb as gaussian_perturb
    from wsjax.methods.variants import gaussian_start as gaussian_start
    from wsjax.methods.variants import toward_initial as toward_initial
    from wsjax.networks.models import logistic_regression as logistic_regression
    from wsjax.networks.models import mlp as mlp
    from wsjax.networks.models import resnet18 as resnet18
    from wsjax.parallel import data_mesh as data_mesh
    from wsjax.parallel import replica_mesh as replica_mesh
    from wsjax.rounds.legs import Method as Method
    from wsjax.rounds.legs import Round as Round
    from wsjax.rounds.legs import Settings as Settings
    from wsjax.rounds.loop import run_rounds as run_rounds
    from wsjax.scripts.build import load_model as load_model
    from wsjax.storage.records import Records as Records
    from wsjax.storage.records import read_run as read_run
    from wsjax.training.augment import augmented as augmented
    from wsjax.training.augment import standard_augmentation as standard_augmentation
    from wsjax.training.schedules import Schedule as Schedule
    from wsjax.training.stopping import after_epochs as after_epochs
    from wsjax.training.stopping import any_of as any_of
    from wsjax.training.stopping import at_accuracy as at_accuracy
    from wsjax.training.stopping import at_plateau as at_plateau
    from wsjax.training.task import Task as Task
    from wsjax.training.task import image_task as image_task
    from wsjax.training.task import stateless_task as stateless_task
    from wsjax.training.train import Batch as Batch
    from wsjax.training.train import Samples as Samples
    from wsjax.training.train import Setup as Setup
    from wsjax.training.train import TrainState as TrainState
    from wsjax.training.train import init_state as init_state
    from wsjax.training.train import make_optimizer as make_optimizer
    from wsjax.training.train import make_train_step as make_train_step


def __getattr__(name: str) -> Any:
    """Loads a public name from the module that defines it; `__version__` is that of the installed package."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"wsjax.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib import metadata

        return metadata.version("wsjax")
    raise AttributeError(f"module 'wsjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
