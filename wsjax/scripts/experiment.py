"""What the experiment scripts share: settings with defaults by data set, and what is built from them.

A script's Config extends `Common`, and the script says which defaults a data set has. Imports no jax at the top, so
that a command line's help is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from wsjax.errors import NonFiniteLoss, RunError, UsageError
from wsjax.scripts import process
from wsjax.scripts.cli import check, choose, duration, explain_abort, print_table, progress, say
from wsjax.storage.records import about_run, follow_run, open_run, write_json
from wsjax.storage.rows import Row

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from matplotlib.figure import Figure

    from wsjax.data.datasets import Dataset
    from wsjax.results.summary import Table
    from wsjax.retraining.shelf import Model
    from wsjax.rounds.loop import Reinit, Settings
    from wsjax.training.stopping import StopRule
    from wsjax.training.train import Task

MODELS = ("resnet18", "mlp", "logistic")
OPTIMIZERS = ("sgd", "msgd", "adam")
METHODS = ("RI", "WS", "SP")
STOPS = ("epochs", "accuracy", "plateau")
CHOICES = {
    "model": MODELS,
    "activation": ("tanh", "relu"),
    "optimizer": OPTIMIZERS,
    "precision": ("float32", "bfloat16"),
    "batch_stats": ("keep", "reset"),
    "opt_state": ("rebuild", "keep"),
    "evaluation": ("running", "reestimated", "batch"),
    "evaluate": ("epoch", "round"),
}
POSITIVE = (
    "width", "learning_rate", "batch_size", "epochs", "plateau_window", "plateau_tolerance", "checkpoint_every",
)  # fmt: skip
DIGITS: dict[str, Any] = {
    "hidden": (300,),
    "activation": "relu",
    "optimizer": "adam",
    "learning_rate": 0.001,
    "batch_size": 64,
    "shrink": (0.3,),
    "perturb": (0.6,),
}
"""How every experiment trains on the embedded digits."""
PLACES = ("workdir", "run", "data_dir", "coordinator", "num_processes", "process_id")
"""Fields that say where things lie: another value of them is no other run."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Which data."""

    dataset: str = "digits"
    """Data set: digits (embedded, no download), cifar10, cifar100, svhn, or the path of your own .npz."""
    data_dir: Path | None = None
    """Folder of NAME.npz files, and of downloads. Default: $WSJAX_DATA_DIR, else ~/.cache/wsjax/data."""
    num_train: int | None = None
    """Use so many train images, drawn at random, the same for every seed. Default: all."""
    num_test: int | None = None
    """Use so many test images. Default: all."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How one model trains in one round."""

    model: str = "mlp"
    """resnet18, mlp or logistic."""
    width: int = 64
    """ResNet: channels of the first stage."""
    stem_pool: tyro.conf.FlagConversionOff[bool] = True
    """ResNet: the 3x3 stride-2 max-pool behind the stem, as the report has it (the paper's code has none)."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """MLP: sizes of the hidden layers."""
    activation: str = "tanh"
    """MLP: tanh or relu."""
    optimizer: str = "sgd"
    """sgd, msgd (momentum 0.9) or adam."""
    learning_rate: float = 0.001
    """Step size."""
    weight_decay: float = 0.0
    """Coupled L2, added to the gradient of every parameter."""
    batch_size: int = 128
    """Samples a step."""
    precision: str = "float32"
    """What layers compute in: float32 or bfloat16. Parameters, statistics and the loss are float32 in both."""
    epochs: int = 200
    """Epochs a round: its length, or the cap of the other stop rules."""
    stop: tuple[str, ...] = ("epochs",)
    """When a round ends: epochs; accuracy (train accuracy reaches --threshold); plateau; the first of those given."""
    threshold: float = 0.99
    """Train accuracy, in (0, 1], at which the accuracy rule stops."""
    plateau_tolerance: float = 0.002
    """The plateau rule stops when the last epochs' train accuracies have a smaller standard deviation than this."""
    plateau_window: int = 3
    """How many last epochs the plateau rule looks at."""
    checkpoint_every: int = 20
    """Epochs between checkpoints."""
    devices: int | None = None
    """Split every batch over so many devices (cores, on a CPU). Default: one."""


@dataclasses.dataclass(frozen=True)
class Common(Training, Source):
    """Settings that every experiment of the study has."""

    methods: tuple[str, ...] = METHODS
    """Ways to start a round: RI (random initialisation), WS (warm start), SP (shrink-perturb)."""
    shrink: tuple[float, ...] = (0.3,)
    """SP: factors of the trained parameters; each is a way of its own."""
    perturb: tuple[float, ...] = (0.01,)
    """SP: factors of the newly drawn parameters; each is combined with each shrink."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; results are means over them with 95 % intervals."""
    batch_stats: str = "keep"
    """BatchNorm's running statistics at a round's start: keep or reset."""
    opt_state: str = "rebuild"
    """The optimiser's state at a round's start: rebuild or keep."""
    evaluation: str = "running"
    """BatchNorm's statistics in evaluation: running, reestimated (a pass over the round's train images) or batch."""
    evaluate: str = "epoch"
    """Test after every epoch, or only at the end of each round: epoch or round."""
    stack: bool | None = None
    """Train all seeds together as one program. Default: yes, but for the ResNet."""
    replicas: str | None = None
    """devices: train seeds, and ways if they are more, side by side, spread over all devices (on a CPU, cores)."""
    coordinator: str | None = None
    """Several hosts: HOST:PORT of process 0; every process gets the same command but for --process_id."""
    num_processes: int | None = None
    """Several hosts: how many processes there are. All their devices split every batch."""
    process_id: int | None = None
    """Several hosts: which process this is, from 0. Process 0 writes the records."""
    workdir: Path = Path("runs")
    """Folder for results: WORKDIR/EXPERIMENT/RUN."""
    run: str | None = None
    """Name of the run's folder. Default: DATASET-MODEL-OPTIMIZER. The same command again continues that run."""


def check_config(config: Common) -> None:
    """Checks every field, once, where it comes in; raises UsageError."""
    check_training(config)
    for name in ("batch_stats", "opt_state", "evaluation", "evaluate"):
        choose(name, getattr(config, name), CHOICES[name])
    for method in config.methods:
        choose("method", method, METHODS)
    if config.replicas is not None:
        choose("replicas", config.replicas, ("devices",))
        check(config.devices is None, "--devices splits batches and --replicas=devices spreads runs: give one of them")
    check(
        not _several_processes(config) or (config.devices is None and config.replicas is None),
        "several processes split batches over all their devices: leave out --devices and --replicas",
    )
    for name in ("methods", "shrink", "perturb", "seeds"):
        _check_list(name, getattr(config, name))
    for name in ("shrink", "perturb"):
        values = getattr(config, name)
        check(all(map(math.isfinite, values)), f"--{name} must be finite, not {_list(values)}")
    check(all(0 <= seed < 2**32 for seed in config.seeds), f"--seeds must lie in [0, 2^32), not {_list(config.seeds)}")
    check(run_name(config) == Path(run_name(config)).name != "..", f"--run must be a plain name, not '{config.run}'")


def check_training(config: Training) -> None:
    """Checks the fields of `Training`; raises UsageError."""
    for name in ("model", "activation", "optimizer", "precision"):
        choose(name, getattr(config, name), CHOICES[name])
    for rule in config.stop:
        choose("stop", rule, STOPS)
    _check_list("stop", config.stop)
    for name in POSITIVE:
        value = getattr(config, name)
        check(math.isfinite(value) and value > 0, f"--{name} must be positive, not {value}")
    check(all(size > 0 for size in config.hidden), f"--hidden must be positive sizes, not {_list(config.hidden)}")
    decay = config.weight_decay
    check(math.isfinite(decay) and decay >= 0, f"--weight_decay must be 0 or more, not {decay}")
    check(0 < config.threshold <= 1, f"--threshold must lie in (0, 1], not {config.threshold}")
    check(config.devices is None or config.devices > 0, f"--devices must be positive, not {config.devices}")


def run_name(config: Common) -> str:
    """The name of the run's folder."""
    return config.run or f"{Path(config.dataset).stem}-{config.model}-{config.optimizer}"


def is_stacked(config: Common) -> bool:
    """Whether all seeds train together: right for all but convolutions, whose kernels do not vmap well."""
    return config.model != "resnet18" if config.stack is None else config.stack


def load_data(config: Common) -> Dataset:
    """Loads the data set, or the subset of it that the settings ask for; before it, sets up the devices.

    Joins the processes of several hosts, or has a CPU pass for as many devices as are wanted.
    """
    process.set_up()
    import jax

    from wsjax import parallel
    from wsjax.data import datasets

    if _several_processes(config):
        parallel.initialize(config.coordinator, config.num_processes, config.process_id)
        explain_abort()
    else:
        use_devices(config.devices or (os.cpu_count() if config.replicas else None))
    dataset = datasets.load(config.dataset, config.data_dir)
    return datasets.take(jax.random.key(0), dataset, config.num_train, config.num_test)


def run(
    name: str,
    config: Common,
    dataset: Dataset,
    plan: Sequence[tuple[int, int]],
    summarize: Callable[..., dict[str, Any]],
) -> tuple[Path, list[Row], dict[str, Any]]:
    """Runs an experiment's rounds, or what is left of them, in its folder.

    Args:
      name: the experiment's.
      config: its settings, checked.
      dataset: what `load_data` gave.
      plan: of each round, the number of train images and the most epochs.
      summarize: `(rows, shrink and perturb by way) -> summary`, written as summary.json.

    Returns:
      (folder, rows, summary).
    """
    import jax

    from wsjax import parallel
    from wsjax.networks import kernels
    from wsjax.rounds import loop

    mesh = build_mesh(config)
    folder = config.workdir / name / run_name(config)
    settings = {field: value for field, value in dataclasses.asdict(config).items() if field not in PLACES}
    settings |= {"num_train": len(dataset.train_labels), "num_test": len(dataset.test_labels)}
    about = about_run(name, parallel.device_names())
    if config.model == "resnet18":  # they give other bits than XLA's convolutions
        about["compiled_kernels"] = kernels.support(jax.ShapeDtypeStruct((), config.precision))
    ways = build_ways(config)
    first, *later = (size * cap for size, cap in plan)
    work = len(config.seeds) * (first + len(ways) * sum(later))
    caps = [cap for _, cap in plan]
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.together())
        records = stack.enter_context(open_run(folder, settings, about)) if parallel.is_main() else None
        parallel.wait_for_all("records")
        records = follow_run(folder) if records is None else records
        left = work - sum(_work(records.rows, caps))
        advance = stack.enter_context(progress(max(left, 1), ", if no round ends early", parallel.is_main()))
        try:
            result = loop.run_rounds(
                build_task(
                    config,
                    dataset.num_classes,
                    dataset.train_images.shape[1:],
                    dataset.mean,
                    dataset.std,
                    parallel.axis_of(mesh),
                ),
                build_optimizer(config),
                (dataset.train_images, dataset.train_labels),
                (dataset.test_images, dataset.test_labels),
                [loop.Round(size, build_stop(config, cap)) for size, cap in plan],
                ways,
                config.seeds,
                settings=build_settings(config),
                stack=is_stacked(config),
                mesh=mesh,
                records=records,
                checkpoints=folder / "checkpoints",
                observe=partial(_observe, advance, caps),
            )
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error}, at learning rate {config.learning_rate:g}: lower it") from error
        seconds = time.perf_counter() - begin
        say(f"Ran for {duration(seconds)}, of which compiling took {result.compile_seconds:.1f} s", parallel.is_main())
        ends = summarize(result.rows, sp_factors(config))
        if parallel.is_main():
            write_json(folder / "summary.json", ends)
    return folder, result.rows, ends


def conclude(folder: Path, title: str, table: Table, ends: dict[str, Any], figure: Figure) -> None:
    """Says what a run's summary comes to, draws its picture, and tells what its folder holds."""
    from wsjax import parallel
    from wsjax.results import plots, summary

    if not parallel.is_main():
        return
    print_table(title, *table)
    for sentence in summary.verdict(ends):
        say(sentence)
    picture, _ = plots.save(figure, folder / "figure")
    size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    say(f"Picture: {picture}\nRecords: {folder} (its checkpoints take {size / 1e6:,.1f} MB)")


def use_devices(count: int | None) -> None:
    """Has a CPU pass for so many devices, unless JAX was told of a number; call it before anything touches a device."""
    import jax

    if count and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count)


def build_mesh(config: Common) -> Mesh | None:
    """The devices that the settings ask for; None for one."""
    from wsjax import parallel

    if _several_processes(config):
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


def _several_processes(config: Common) -> bool:
    return config.coordinator is not None or config.num_processes is not None


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
    from wsjax.training import train

    build = {
        "resnet18": partial(models.resnet18, width=config.width, stem_pool=config.stem_pool, axis_name=axis_name),
        "mlp": partial(models.mlp, hidden=config.hidden, activation=config.activation),
        "logistic": models.logistic_regression,
    }
    return train.image_task(build[config.model](num_classes), image_shape, mean, std, config.precision)


def load_model(folder: Path | str, number: int | None = None) -> Model:
    """Loads a model that experiments/retrain.py trained, by default the current one; `model(images)` gives logits.

    It computes in float32, however it was trained.
    """
    from wsjax.retraining import shelf

    lineage = shelf.lineage_of(folder, number)
    path = shelf.model_folder(shelf.expanded(folder), lineage["model"]) / shelf.LINEAGE
    config = _trained_as(path, lineage["settings"].get("architecture"))
    return shelf.load_model(folder, partial(build_task, config), lineage["model"])


def _trained_as(path: Path, architecture: Any) -> Training:
    """The settings of a network as a lineage tells them; raises RunError where they are not such."""
    defaults: dict[str, Any] = dataclasses.asdict(Training())
    if not isinstance(architecture, dict) or not architecture.keys() <= defaults.keys():
        raise RunError(
            f"{path}: settings.architecture is {architecture!r:.80}, which experiments/retrain.py never wrote"
        )
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


def build_optimizer(config: Training) -> Any:
    """The settings' optimiser."""
    from wsjax.training.train import make_optimizer

    return make_optimizer(config.optimizer, config.learning_rate, config.weight_decay)


def build_stop(config: Training, cap: int) -> StopRule:
    """The settings' stop rule for a round of at most `cap` epochs."""
    from wsjax.training import stopping

    rules = {
        "accuracy": stopping.at_accuracy(config.threshold),
        "plateau": stopping.at_plateau(config.plateau_tolerance, config.plateau_window),
    }
    wanted = [rules[name] for name in config.stop if name in rules]
    return stopping.any_of(*wanted, stopping.after_epochs(cap))


def build_settings(config: Common) -> Settings:
    """The settings of the loop of rounds."""
    from wsjax.rounds.loop import Settings

    return Settings(
        batch_size=config.batch_size,
        batch_stats=config.batch_stats,  # type: ignore[arg-type]
        opt_state=config.opt_state,  # type: ignore[arg-type]
        evaluation=config.evaluation,  # type: ignore[arg-type]
        evaluate=config.evaluate,  # type: ignore[arg-type]
        checkpoint_every=config.checkpoint_every,
    )


def build_ways(config: Common) -> dict[str, Reinit]:
    """The settings' ways, by the names that rows and tables give them."""
    from wsjax.methods.reinit import random_init, shrink_perturb, warm_start

    ways: dict[str, Reinit] = {}
    for method in config.methods:
        if method == "SP":
            for name, (shrink, perturb) in sp_factors(config).items():
                ways[name] = partial(shrink_perturb, shrink=shrink, perturb=perturb)
        else:
            ways[method] = {"RI": random_init, "WS": warm_start}[method]
    return ways


def sp_factors(config: Common) -> dict[str, tuple[float, float]]:
    """(shrink, perturb) by name: "SP" where there is one, else "SP 0.3", or "SP 0.3/0.01" where perturb varies too."""
    pairs = [(shrink, perturb) for shrink in config.shrink for perturb in config.perturb]
    if len(pairs) == 1:
        return {"SP": pairs[0]}
    several = len(config.perturb) > 1
    return {f"SP {shrink:g}" + f"/{perturb:g}" * several: (shrink, perturb) for shrink, perturb in pairs}


def _observe(advance: Callable[..., None], caps: Sequence[int], rows: list[Row]) -> None:
    """Shows an epoch's rows."""
    last = rows[-1]
    field = "train_accuracy" if last["test_accuracy"] is None else "test_accuracy"
    values = [row[field] for row in rows if row[field] is not None]
    what = f"{field.replace('_', ' ')} {sum(values) / len(values):.1%}"
    done, skipped = _work(rows, caps)
    advance(done, f"{last['method']}, round {last['round']}, epoch {last['epoch']}: {what}", skipped)


def _work(rows: Sequence[Row], caps: Sequence[int]) -> tuple[int, int]:
    """The samples that epochs have seen, and those that stopped rounds did not need."""
    done = sum(row["samples"] for row in rows)
    skipped = sum(row["samples"] * (caps[row["round"] - 1] - row["epoch"]) for row in rows if row["stop"])
    return done, skipped


def _check_list(name: str, values: Sequence[Any]) -> None:
    check(len(values) > 0, f"--{name} needs at least one value")
    check(len(set(values)) == len(values), f"--{name} must not repeat a value: {_list(values)}")


def _list(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))
