"""What is built from settings: task, optimiser, stop rules, methods, devices. Imports jax where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsjax.errors import RunError, UsageError
from wsjax.results import names
from wsjax.scripts import methods as known
from wsjax.scripts import optimisers
from wsjax.scripts.config import Common, Training, check_training
from wsjax.scripts.hosts import has_several_processes
from wsjax.scripts.probes import with_probes

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from wsjax.data.datasets import Dataset
    from wsjax.methods.starts import Start
    from wsjax.retraining.shelf import Model
    from wsjax.rounds.legs import Method, Round
    from wsjax.training.stopping import StopRule
    from wsjax.training.task import Task
    from wsjax.training.train import Setup


def build_setup(config: Common, dataset: Dataset, alone: bool = False) -> Setup:
    """The settings' model, augmentation, optimiser, evaluation and probes, on a data set.

    It is for the devices that the settings and the environment ask for, or for each by itself (`alone`).
    """
    from wsjax import parallel
    from wsjax.training import augment, statistics, task, train

    axis_name = None if alone else parallel.axis_of(build_mesh(config))
    image_shape = dataset.train_images.shape[1:]
    own = build_task(config, dataset.num_classes, image_shape, dataset.mean, dataset.std, axis_name)
    if config.augment:
        own = augment.augmented(own, augment.standard_augmentation)
    setup = train.Setup(
        task=task.with_batch_statistics(own) if config.evaluation == "batch" else own,
        optimizer=optimisers.build_optimizer(config),
        train=(dataset.train_images, dataset.train_labels),
        test=(dataset.test_images, dataset.test_labels),
        batch_size=config.batch_size,
        judged=statistics.reestimated if config.evaluation == "reestimated" else None,
        fit=build_fit(config),
        learning_rate=optimisers.learning_rate(config),
    )
    return with_probes(setup, config)


def with_label_noise(setup: Setup, num_classes: int, share: float) -> Setup:
    """A setup whose train labels are partly noise, the same for every seed and method."""
    import jax

    from wsjax.data.label_noise import noisy

    inputs, labels = setup.train
    return setup._replace(train=(inputs, noisy(jax.random.key(0), labels, num_classes, share)))


def build_task(
    config: Training,
    num_classes: int,
    image_shape: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    axis_name: str | None = None,
) -> Task:
    """The settings' model for images of a shape, normalised by those channel statistics.

    Batch statistics are taken over `axis_name` too, for batches that are split over devices.
    """
    from wsjax.networks import models
    from wsjax.training import task

    build = {
        "resnet18": partial(
            models.resnet18,
            width=config.width,
            stem_pool=config.stem_pool,
            axis_name=axis_name,
            conv_init={"report": "he_normal", "paper": "uniform"}[config.conv_init],
        ),
        "mlp": partial(models.mlp, hidden=config.hidden, activation=config.activation, bias=config.bias),
        "logistic": partial(models.logistic_regression, bias=config.bias),
    }
    return task.image_task(build[config.model](num_classes), image_shape, mean, std, config.precision)


def build_fit(config: Training) -> Any:
    """How the train accuracy is measured that stop rules look at, where it is not the epoch's own."""
    from wsjax.training import train

    return train.fit_after if config.train_accuracy == "after" else None


def build_rounds(config: Training, setup: Setup, plan: Sequence[tuple[int, int]]) -> list[Round]:
    """Rounds of so many train images and, at most, epochs, with the settings' stop rule.

    A learning rate's schedule runs over a round's own epochs, where these are others than --epochs.
    """
    from wsjax.rounds.legs import Round

    own = {epochs: optimisers.paced(config, setup, epochs) for _, epochs in plan}
    return [Round(size, build_stop(config), epochs, own[epochs]) for size, epochs in plan]


def build_stop(config: Training) -> StopRule | None:
    """The settings' stop rule, beside the cap on epochs; None where that is all."""
    from wsjax.training import stopping

    rules = {
        "accuracy": stopping.at_accuracy(config.threshold),
        "plateau": stopping.at_plateau(config.plateau_tolerance, config.plateau_window),
    }
    own = [rules[name] for name in config.stop if name in rules]
    return stopping.any_of(*own) if own else None


def build_methods(
    config: Common, setup: Setup, rounds: Sequence[Round], table: names.Methods | None = None
) -> dict[str, Method]:
    """The settings' methods, by the names that rows and tables give them; all share the first of the rounds.

    One with a learning rate or an optimiser of its own has its own setup in its rounds. A table says what methods are
    in place of the settings.
    """
    from wsjax.rounds.legs import Method

    table = methods_table(config) if table is None else table
    own = optimisers.own_rounds(config, setup, rounds, table)
    return {name: Method(build_start(config, spec), *own.get(name, (1, None))) for name, spec in table.items()}


def build_start(config: Common, spec: names.Spec) -> Start:
    """How a method starts a round, by what it is."""
    from wsjax.methods.reinit import shrink_perturb, warm_start
    from wsjax.methods.starts import forgotten, mixed, scratch

    if spec["reinit"] == names.RANDOM:
        return scratch
    if (method := known.of(spec)) is not None:
        return method.start(config, spec)
    reinit = warm_start
    if spec["reinit"] in names.BY_PAIR.values():
        reinit = partial(shrink_perturb, shrink=spec["shrink"], perturb=spec["perturb"])
    start = mixed(reinit, config.batch_stats, config.opt_state)  # type: ignore[arg-type]
    return forgotten(start) if spec["reinit"] == names.SIZE else start


def at_once(methods: Mapping[str, Method], table: names.Methods, rounds: Sequence[Round]) -> dict[str, Method]:
    """The methods, but that those which shrink and perturb do so before the first round too, as the report's code."""
    return {
        name: method._replace(after=0, at_once=True, rounds=[rounds[0], *(method.rounds or rounds[1:])])
        if table[name]["reinit"] in names.AT_ONCE.values()
        else method
        for name, method in methods.items()
    }


def after_trunk(config: Common, setup: Setup, later: Sequence[Round], new_head: bool) -> dict[str, Method]:
    """The settings' methods with rounds of their own on other data, after a trunk that they share.

    Args:
      config: the settings.
      setup: with the data and the task of the later rounds.
      later: those rounds.
      new_head: whether that task has another number of classes: then a head is newly drawn, and not shrunk.
    """
    from wsjax.methods.starts import with_new_heads

    own = [here._replace(setup=here.setup or setup) for here in later]
    made = {}
    for name, method in build_methods(config, setup, [*own[:1], *own]).items():
        start = with_new_heads(method.start) if new_head else method.start
        made[name] = method._replace(start=start, rounds=method.rounds or own)
    return made


def methods_table(config: Common) -> dict[str, names.Spec]:
    """What each of the settings' methods is, by name."""
    others = known.specs(config, config.methods)
    return names.from_settings(config.methods, config.shrink, config.perturb, others)


def is_stacked(config: Common) -> bool:
    """Whether all seeds train together: right for all but convolutions, whose kernels do not vmap well."""
    return config.model != "resnet18" if config.stack is None else config.stack


def build_mesh(config: Common) -> Mesh | None:
    """The devices that the settings ask for; None for one."""
    from wsjax import parallel

    if has_several_processes(config):
        return parallel.data_mesh()
    if config.replicas:
        return parallel.replica_mesh()
    return data_mesh(config.devices)


def data_mesh(devices: int | None) -> Mesh | None:
    """The devices that --devices splits every batch over; None for one."""
    from wsjax import parallel

    try:
        return None if devices is None else parallel.data_mesh(devices)
    except ValueError as error:
        raise UsageError(f"--devices={devices}: {error}") from error


def load_model(folder: Path | str, number: int | None = None) -> Model:
    """Loads a model that `wsjax retrain` trained, by default the current one; `model(images)` gives logits.

    It computes in float32, however it was trained.
    """
    from wsjax.retraining import shelf

    lineage = shelf.lineage_of(folder, number)
    path = shelf.model_folder(shelf.expanded(folder), lineage["model"]) / shelf.LINEAGE
    config = trained_as(path, lineage["settings"].get("architecture"))
    return shelf.load_model(folder, partial(build_task, config), lineage["model"])


def trained_as(path: Path, architecture: Any) -> Training:
    """The settings of a network as a lineage tells them; raises RunError where they are not such."""
    defaults: dict[str, Any] = dataclasses.asdict(Training())
    if not isinstance(architecture, dict) or not architecture.keys() <= defaults.keys():
        raise RunError(f"{path}: settings.architecture is {architecture!r:.80}, which wsjax retrain never wrote")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in architecture.items()
    }
    for name, value in given.items():
        sizes = value if isinstance(value, tuple) else ()
        if type(value) is not type(defaults[name]) or any(type(size) is not int for size in sizes):
            raise RunError(f"{path}: settings.architecture.{name} is {value!r:.80}; restore the file from a copy")
    config = Training(**given)
    try:
        check_training(config)
    except UsageError as error:
        raise RunError(f"{path}: settings.architecture: {error}; restore the file from a copy") from error
    return config
