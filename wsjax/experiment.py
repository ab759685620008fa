"""What the experiment scripts share: settings with defaults by data set, and what is built from them.

A script's Config extends `Common`; a field left at None takes its default from the data set's row of `PRESETS`.
Imports no jax at the top, so that a command line's help is quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from wsjax.cli import UsageError, check, choose

if TYPE_CHECKING:
    from wsjax.data import Dataset
    from wsjax.rounds import Reinit, Settings
    from wsjax.stopping import StopRule
    from wsjax.train import Task

MODELS = ("resnet18", "mlp", "logistic")
OPTIMIZERS = ("sgd", "msgd", "adam")
METHODS = ("RI", "WS", "SP")
STOPS = ("epochs", "accuracy", "plateau")
CHOICES = {
    "model": MODELS,
    "activation": ("tanh", "relu"),
    "optimizer": OPTIMIZERS,
    "batch_stats": ("keep", "reset"),
    "opt_state": ("rebuild", "keep"),
    "evaluation": ("running", "reestimated", "batch"),
}
PLACES = ("workdir", "run", "data_dir")
"""Fields that say where things lie: another value of them is no other run."""

Self = TypeVar("Self", bound="Common")
Named = Annotated[str, tyro.conf.arg(metavar="NAME")]


@dataclasses.dataclass(frozen=True)
class Common:
    """Settings that every experiment has."""

    dataset: str = "digits"
    """Data set: digits (embedded, no download), cifar10, cifar100, svhn, or the path of your own .npz."""
    data_dir: Path | None = None
    """Folder of NAME.npz files, and of downloads. Default: $WSJAX_DATA_DIR, else ~/.cache/wsjax/data."""
    num_train: int | None = None
    """Use so many train images, drawn at random, the same for every seed. Default: all."""
    num_test: int | None = None
    """Use so many test images. Default: all."""
    model: str | None = None
    """resnet18, mlp or logistic."""
    width: int = 64
    """ResNet: channels of the first stage."""
    stem_pool: bool = True
    """ResNet: the 3x3 stride-2 max-pool behind the stem, as the report has it (the paper's code has none)."""
    hidden: tuple[int, ...] | None = None
    """MLP: sizes of the hidden layers."""
    activation: str | None = None
    """MLP: tanh or relu."""
    optimizer: str | None = None
    """sgd, msgd (momentum 0.9) or adam."""
    learning_rate: float | None = None
    """Step size."""
    weight_decay: float = 0.0
    """Coupled L2, added to the gradient of every parameter."""
    batch_size: int | None = None
    """Samples a step."""
    epochs: int | None = None
    """Epochs a round: its length, or the cap of the other stop rules."""
    stop: tuple[str, ...] | None = None
    """When a round ends: epochs; accuracy (train accuracy reaches --threshold); plateau; the first of those given."""
    threshold: float = 0.99
    """Train accuracy, in (0, 1], at which the accuracy rule stops."""
    plateau_tolerance: float = 0.002
    """The plateau rule stops when the last epochs' train accuracies have a smaller standard deviation than this."""
    plateau_window: int = 3
    """How many last epochs the plateau rule looks at."""
    methods: tuple[str, ...] = METHODS
    """Ways to start a round: RI (random initialisation), WS (warm start), SP (shrink-perturb)."""
    shrink: tuple[float, ...] | None = None
    """SP: factors of the trained parameters; each is a way of its own."""
    perturb: tuple[float, ...] | None = None
    """SP: factors of the newly drawn parameters; each is combined with each shrink."""
    seeds: tuple[int, ...] | None = None
    """Seeds; results are means over them with 95 % intervals."""
    batch_stats: str = "keep"
    """BatchNorm's running statistics at a round's start: keep or reset."""
    opt_state: str = "rebuild"
    """The optimiser's state at a round's start: rebuild or keep."""
    evaluation: str = "running"
    """BatchNorm's statistics in evaluation: running, reestimated (a pass over the round's train images) or batch."""
    stack: bool | None = None
    """Train all seeds together as one program. Default: yes, but for the ResNet."""
    checkpoint_every: int = 20
    """Epochs between checkpoints."""
    workdir: Path = Path("runs")
    """Folder for results: WORKDIR/EXPERIMENT/RUN."""
    run: str | None = None
    """Name of the run's folder. Default: DATASET-MODEL-OPTIMIZER. The same command again continues that run."""


def resolve(config: Self, presets: Mapping[str, Mapping[str, Any]]) -> Self:
    """Fills the fields that are None from the presets and checks every field; raises UsageError.

    Args:
      config: as parsed.
      presets: defaults by data set; "" is the row of all that are not named.
    """
    preset = presets.get(config.dataset, presets[""])
    missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **missing)
    for name, options in CHOICES.items():
        choose(name, getattr(config, name), options)
    for name, options in (("method", METHODS), ("stop", STOPS)):
        values = config.methods if name == "method" else config.stop
        for value in values:
            choose(name, value, options)
        check(len(values) > 0, f"no {name} given; possible: {', '.join(options)}")
    for name in ("width", "batch_size", "epochs", "learning_rate", "plateau_window", "plateau_tolerance"):
        value = getattr(config, name)
        check(math.isfinite(value) and value > 0, f"--{name} must be positive, not {value}")
    check(config.checkpoint_every > 0, f"--checkpoint_every must be positive, not {config.checkpoint_every}")
    check(all(size > 0 for size in config.hidden), f"--hidden must be positive sizes, not {_list(config.hidden)}")
    decay = config.weight_decay
    check(math.isfinite(decay) and decay >= 0, f"--weight_decay must be 0 or more, not {decay}")
    check(0 < config.threshold <= 1, f"--threshold must lie in (0, 1], not {config.threshold}")
    for name in ("shrink", "perturb"):
        values = getattr(config, name)
        check(len(values) > 0 and all(map(math.isfinite, values)), f"--{name} must be finite, not {_list(values)}")
    for name in ("seeds", "methods", "stop", "shrink", "perturb"):
        values = getattr(config, name)
        check(len(values) > 0, f"--{name} needs at least one value")
        check(len(set(values)) == len(values), f"--{name} must not repeat a value: {_list(values)}")
    check(all(0 <= seed < 2**32 for seed in config.seeds), f"--seeds must lie in [0, 2^32), not {_list(config.seeds)}")
    stack = config.model != "resnet18" if config.stack is None else config.stack
    run = config.run or f"{Path(config.dataset).stem}-{config.model}-{config.optimizer}"
    check(Path(run).name == run, f"--run must be a plain name, not '{run}'")
    return dataclasses.replace(config, stack=stack, run=run)


def describe(text: str | None, presets: Mapping[str, Mapping[str, Any]]) -> str:
    """A script's description with the defaults that depend on the data set."""
    lines = [text or "", "Where a default below is None, it is the data set's:"]
    for name, preset in presets.items():
        values = ", ".join(f"{field} {_short(value)}" for field, value in preset.items())
        lines.append(f"    {name or 'others'}: {values}")
    return "\n".join(lines)


def what_decides(config: Common, **more: Any) -> dict[str, Any]:
    """The settings that decide a run's results: those that config.json keeps, and a resume must repeat."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in PLACES}
    return fields | more


def load_data(config: Common) -> Dataset:
    """Loads the data set, or the subset of it that the settings ask for."""
    import jax

    from wsjax import data

    dataset = data.load(config.dataset, config.data_dir)
    return data.take(jax.random.key(0), dataset, config.num_train, config.num_test)


def build_task(config: Common, dataset: Dataset) -> Task:
    """The settings' model, for a data set's images and classes."""
    from wsjax import models, train

    build = {
        "resnet18": partial(models.resnet18, width=config.width, stem_pool=config.stem_pool),
        "mlp": partial(models.mlp, hidden=config.hidden, activation=config.activation),
        "logistic": models.logistic_regression,
    }
    model = build[str(config.model)](dataset.num_classes)
    return train.image_task(model, dataset.train_images.shape[1:], dataset.mean, dataset.std)


def build_optimizer(config: Common) -> Any:
    """The settings' optimiser."""
    from wsjax.train import make_optimizer

    return make_optimizer(str(config.optimizer), _number(config.learning_rate), config.weight_decay)


def build_stop(config: Common) -> StopRule:
    """The settings' stop rule; the cap on epochs always holds."""
    from wsjax import stopping

    rules = {
        "accuracy": stopping.at_accuracy(config.threshold),
        "plateau": stopping.at_plateau(config.plateau_tolerance, config.plateau_window),
    }
    wanted = [rules[name] for name in config.stop or () if name in rules]
    return stopping.any_of(*wanted, stopping.after_epochs(int(_number(config.epochs))))


def build_settings(config: Common) -> Settings:
    """The settings of the loop of rounds."""
    from wsjax.rounds import Settings

    return Settings(
        batch_size=int(_number(config.batch_size)),
        batch_stats=config.batch_stats,  # type: ignore[arg-type]
        opt_state=config.opt_state,  # type: ignore[arg-type]
        evaluation=config.evaluation,  # type: ignore[arg-type]
        checkpoint_every=config.checkpoint_every,
    )


def build_ways(config: Common) -> dict[str, Reinit]:
    """The settings' ways, by the names that rows and tables give them."""
    from wsjax.reinit import random_init, shrink_perturb, warm_start

    ways: dict[str, Reinit] = {}
    for method in config.methods:
        if method == "SP":
            for name, (shrink, perturb) in sp_names(config).items():
                ways[name] = partial(shrink_perturb, shrink=shrink, perturb=perturb)
        else:
            ways[method] = {"RI": random_init, "WS": warm_start}[method]
    return ways


def sp_names(config: Common) -> dict[str, tuple[float, float]]:
    """(shrink, perturb) by name: "SP" where there is one, else "SP 0.3", or "SP 0.3/0.01" where perturb varies too."""
    pairs = [(shrink, perturb) for shrink in config.shrink or () for perturb in config.perturb or ()]
    if len(pairs) == 1:
        return {"SP": pairs[0]}
    several = len(config.perturb or ()) > 1
    return {f"SP {shrink:g}" + f"/{perturb:g}" * several: (shrink, perturb) for shrink, perturb in pairs}


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of one: a second start is quicker."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wsjax" / f"xla-{_machine()}"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _machine() -> str:
    """A short name of this machine's processor: its programs must not reach another kind through a shared home."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")] if cpuinfo.exists() else []
    return hashlib.sha256("".join([platform.machine(), *flags[:1]]).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return f"{value[0]} to {value[-1]}" if len(value) > 5 else " ".join(map(str, value))


def _list(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


def _number(value: float | None) -> float:
    if value is None:
        raise UsageError("a setting is missing: resolve the config first")
    return value
