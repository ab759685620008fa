"""Retrains a model on all data that have come in, from the parameters that it has: a job for cron.

    wsjax retrain --model_dir=MODEL --data 'incoming/*.npz'
    wsjax retrain --model_dir=MODEL --rollback

The data are .npz files with images (uint8 [N, height, width, channels]), labels (integers from 0) and, if you like,
class_names; or folders with a sub-folder of PNG or JPEG files a class. The first call trains from scratch. Every later
one reads the files known so far and the new ones, shrinks and perturbs the current model's parameters (or begins as
--method says; `wsjax advise` finds out which is best), trains until the train accuracy reaches --threshold, and
compares both models on images that never enter training. Without new images it changes nothing.

Exit codes: 0 the new model is current, or nothing is new; 2 an error, in one line; 3 the new model is worse and was
kept aside; 4 nothing was trained, and what may be new could not be used: a file was left out, or a pattern matches no
file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from wsjax.errors import LeftOut, Terminated, UserError
from wsjax.retraining.lineage import FACTORS, METHODS, SCRATCH, SHRINK_PERTURB, current_settings
from wsjax.scripts import build, cli, console, ending, optimisers, process
from wsjax.scripts import config as common
from wsjax.storage.files import user_path

ARCHITECTURE = ("model", "width", "stem_pool", "hidden", "activation", "bias")
KEPT_ASIDE, LEFT_OUT = 3, 4


@dataclasses.dataclass(frozen=True)
class Config(common.Training):
    """Settings of the retraining job. The network's settings and --holdout default to those of the model folder."""

    model_dir: Path = Path("model")
    """Folder of the models; made by the first call."""
    data: tuple[str, ...] = ()
    """Data files, folders of images, or globs. Files of earlier calls are read again whether or not they are named."""
    image_size: int | None = None
    """Pixels of a side, to which images of folders are resized. Default: the size of the known images, or else 32."""
    method: str = SHRINK_PERTURB
    """What a retraining begins with: shrink-perturb; continue (the current model as it is); scratch (a new network);
    dash or fire (the current model treated by these)."""
    shrink: float = 0.4
    """Shrink-perturb: factor of the current model's parameters."""
    perturb: float = 0.1
    """Shrink-perturb: factor of newly drawn parameters."""
    dash_shrink: float = 0.3
    """DASH: the least factor of the current model's parameters, in [0, 1]."""
    fire_steps: int | None = 10
    """FIRE: Newton-Schulz steps; None goes all the way, by a singular value decomposition."""
    later_rate: float | None = None
    """Learning rate of every model but the first. Default: --learning_rate."""
    max_gigabytes: float = 8.0
    """The most that one data file, packed or unpacked, and all images together may take; training needs twice that."""
    holdout: float = 0.1
    """Fraction of the images that is held out, chosen by a hash of their content."""
    tolerance: float = 0.02
    """A model whose held-out accuracy is lower than its parent's by more than this is kept aside."""
    seed: int = 0
    """Everything random in model n is drawn from the key of seed + n."""
    compare_scratch: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also train from scratch, on the same data, to compare accuracy and cost."""
    again: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train a model even if nothing is new: with other flags, after one that was kept aside."""
    rollback: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go back to the current model's parent, and do nothing else."""
    rollback_to: int | None = None
    """Make this model current, and do nothing else."""


DEFAULTS = Config(**common.RETRAINING)
ORIGINS = {"continue": "as it is", "dash": "made ready by DASH", "fire": "made ready by FIRE"}


def defaults(dataset: str | None) -> Config:
    """The settings where nothing else is said: of what must not change, those of the command line's model folder."""
    folder = cli.peeked("model_dir", sys.argv[1:], "--model-dir")
    return with_kept(DEFAULTS, DEFAULTS.model_dir if folder is None else Path(folder))


def with_kept(config: Config, folder: Path) -> Config:
    """Settings with the architecture and --holdout of a folder's current model, where they can be read there."""
    try:
        stored = current_settings(user_path(folder))
        if not stored:
            return config
        architecture = stored.get("architecture", {})
        network = build.trained_as(folder, architecture)
        kept = {name: getattr(network, name) for name in ARCHITECTURE if name in architecture}
        made = dataclasses.replace(config, **kept, holdout=stored["holdout"])
        check(made, made)
    except (UserError, TypeError, KeyError):  # the call itself says what is wrong with the folder
        return config
    return made


def main(config: Config) -> None:
    """Retrains, says what came of it, and exits with a code that says it too.

    A signal that comes when a model has been trained ends it after the report, by the signal's code.
    """
    check(config, with_kept(DEFAULTS, config.model_dir))
    process.set_up()
    process.use_devices(config.devices)
    from wsjax.retraining.shelf import roll_back

    if config.rollback or config.rollback_to is not None:
        old, new = roll_back(config.model_dir, build.load_model, config.rollback_to)
        before = "" if old is None else f", not {old}, which stays in {config.model_dir}/models"
        return console.say(f"rolled back: model {new} is current{before}")
    given = len(config.data) > 0 or config.again
    cli.check(given, "--data is missing: give files, folders or globs, such as --data 'incoming/*.npz'")
    try:
        lineage = _retrain(config)
    except LeftOut as error:
        console.say(str(error))
        sys.exit(LEFT_OUT)
    if lineage is None:
        return console.say("no new data: nothing changed")
    for line in report(config, lineage):
        console.say(line)
    ending.check()
    if not lineage["promoted"]:
        sys.exit(KEPT_ASIDE)


def _retrain(config: Config) -> dict[str, Any] | None:
    """Trains the next model and shows how far it is; returns its lineage, None where nothing is new."""
    from wsjax.retraining.retrain import retrain

    lineage = None
    try:
        with console.progress(_most_epochs(config), ", if training does not end early") as advance, advice(config):
            lineage = retrain(
                config.model_dir,
                config.data,
                build_recipe(config),
                say=console.say,
                observe=lambda rows: advance(
                    1, f"epoch {rows[0]['epoch']}: train accuracy {rows[0]['train_accuracy']:.1%}"
                ),
            )
    except Terminated:
        if lineage is None:
            raise
    return lineage  # of a model that is stored: no later call would tell what came of it


def _most_epochs(config: Config) -> int:
    """The epochs that a call trains at most: a training from scratch, for comparison, may come on top."""
    again = config.compare_scratch and (config.method != SCRATCH or build_later(config) is not None)
    return config.epochs * (2 if again else 1)


@contextlib.contextmanager
def advice(config: Config) -> Iterator[None]:
    """Says what to do about a loss that is not finite."""
    from wsjax.errors import NonFiniteLoss

    try:
        yield
    except NonFiniteLoss as error:
        flags = "--learning_rate" if config.later_rate is None else "--later_rate, or --learning_rate of a first model"
        raise NonFiniteLoss(f"{error}; nothing changed; lower {flags}") from error


def build_recipe(config: Config) -> Any:
    """The settings as a `retraining.Recipe`."""
    from wsjax.retraining.recipe import Recipe
    from wsjax.training.stopping import after_epochs, any_of

    told: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(common.Training)}
    architecture = {name: told.pop(name) for name in ARCHITECTURE}
    made: dict[str, Any] = {
        "make_task": partial(build.build_task, config),
        "optimizer": optimisers.build_optimizer(config),
        "stop": any_of(*filter(None, [build.build_stop(config), after_epochs(config.epochs)])),
        "describe": {"architecture": architecture, **told},
        "mesh": build.data_mesh(config.devices),
        "fit": build.build_fit(config),
        "later": build_later(config),
    }
    as_given = {name: getattr(config, name) for name in Recipe._fields if name not in made}
    return Recipe(**made, **as_given)


def build_later(config: Config) -> tuple[float, Any] | None:
    """The learning rate and the optimiser of models that have a parent; None where they are those of the first."""
    rate = config.later_rate
    if rate is None or rate == config.learning_rate:
        return None
    return rate, optimisers.build_optimizer(dataclasses.replace(config, learning_rate=rate))


def check(config: Config, default: Config) -> None:
    """Checks every field, with what the job has where nothing is said; raises UsageError."""
    common.check_training(config)
    common.check_model(config, default)
    cli.choose("method", config.method, METHODS)
    for method, factors in FACTORS.items():
        for name in factors if method != config.method else ():
            common.check_unused(config, default, name, f"without --method={method}; leave it out, or give that")
    for name in ("shrink", "perturb"):
        value = getattr(config, name)
        cli.check(math.isfinite(value), f"--{name} must be finite, not {value}")
    both = config.rollback and config.rollback_to is not None
    cli.check(not both, "--rollback goes to the parent, --rollback_to to the model that it names: give one of them")
    common.check_image_size(config.image_size)


def report(config: Config, lineage: dict[str, Any]) -> list[str]:
    """What happened, in lines."""
    number, parent, metrics = lineage["model"], lineage["parent"], lineage["metrics"]
    method = lineage["settings"].get("method", SHRINK_PERTURB)  # older lineages do without
    origin = f"from model {parent}, {ORIGINS.get(method, 'shrunk and perturbed')}"
    if parent is None or method == SCRATCH:
        origin = "from scratch"
    sizes = f"{metrics['train_images']:,} images, {metrics['held_out_images']:,} more held out"
    took = f"{metrics['steps']:,} steps ({metrics['epochs']} epochs, {console.duration(metrics['train_seconds'])})"
    reason = f"train accuracy {metrics['train_accuracy']:.1%}"
    lines = [f"model {number}, {origin}: {sizes}; {took}, to {reason}"]
    if _is_capped(config, metrics):
        lower = " or lower --threshold" if "accuracy" in config.stop else ""
        lines.append(f"it ended at the cap of {metrics['epochs']} epochs; raise --epochs{lower}")
    scratch, change = lineage["scratch"], lineage["change"]
    if change is None:
        lines.append(f"held-out accuracy: {metrics['accuracy']:.2%}")
    else:
        points = f"{100 * change['mean']:+.2f} points, standard error {100 * change['standard_error']:.2f}"
        lines.append(f"held-out accuracy: before {lineage['before']:.2%}, now {metrics['accuracy']:.2%} ({points})")
        cap = " (the cap)" if _is_capped(config, scratch) else ""
        cost = f"{scratch['steps']:,} steps{cap}, {scratch['accuracy']:.2%}"
        when = f"measured with model {scratch['model']}, on {scratch['train_images']:,} images"
        if scratch["held_out_images"] != metrics["held_out_images"]:  # its accuracy is not to be compared
            when += " and another held-out set"
        lines.append(f"from scratch: {cost} ({when})")
    if lineage["promoted"]:
        lines.append(f"model {number} is current: {config.model_dir}/models/{number:04d}")
    else:
        tolerance = lineage["settings"].get("tolerance", config.tolerance)  # older lineages do without
        lines.append(f"KEPT ASIDE, model {parent} stays current: worse by more than --tolerance={tolerance:g}")
        command = f"wsjax retrain --model_dir={shlex.quote(str(config.model_dir))}"
        lines.append(f"to take model {number} all the same: {command} --rollback_to={number}")
        lines.append(
            "to try another way on the same data: this command with --again and, say, --method=scratch for its method"
        )
    return lines


def _is_capped(config: Config, cost: dict[str, Any]) -> bool:
    """Whether the cap on epochs ended a training; of one that an older lineage tells of, this call's --stop decides."""
    return cost.get("capped", cost["stop"] == "epochs" and set(config.stop) != {"epochs"})
