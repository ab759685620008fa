"""Settings of the experiment scripts: what there is, its defaults and its limits. Imports no jax.

A script's Config extends `Common`, and the script says which defaults a data set has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from wsjax.errors import UsageError
from wsjax.results import names
from wsjax.scripts import methods as known
from wsjax.scripts import unused
from wsjax.scripts.cli import check, choose
from wsjax.scripts.hosts import check_hosts, has_several_processes

METHODS = ("RI", "WS", "SP")
"""Those that run where nothing is said; `ALL_METHODS` are all."""
ALL_METHODS = (*METHODS, "SPN", *known.METHODS)
PROBES = ("weights", "dead", "rank", "distance", "gradients")
CHOICES = {
    "model": ("resnet18", "mlp", "logistic"),
    "activation": ("tanh", "relu"),
    "conv_init": ("report", "paper"),
    "optimizer": ("sgd", "msgd", "adam", "adamw"),
    "schedule": ("constant", "cosine", "steps"),
    "train_accuracy": ("running", "after"),
    "precision": ("float32", "bfloat16"),
    "batch_stats": ("keep", "reset", "reestimate"),
    "opt_state": ("rebuild", "keep"),
    "fresh": ("new", "first"),
    "evaluation": ("running", "reestimated", "batch"),
    "evaluate": ("epoch", "round"),
    "stop": ("epochs", "accuracy", "plateau"),
    "replicas": ("devices",),
}
"""What settings may be, of any script that has them; as in the next two, of a tuple each value, and None always."""
_EPOCHS = 999_999  # what a checkpoint's number has room for
LIMITS: dict[str, float] = {
    **dict.fromkeys(("epochs", "first_epochs", "plateau_window", "checkpoint_every", "tortoise_every"), _EPOCHS),
    **dict.fromkeys(("batch_size", "batch_sizes", "dash_chunk"), 2**31 - 1),
    **dict.fromkeys(("learning_rate", "learning_rates", "later_rate", "raised", "clip_norm"), math.inf),
    **dict.fromkeys(("plateau_tolerance", "pool", "max_gigabytes"), math.inf),
    **dict.fromkeys(("increment", "max_rounds", "every", "devices", "num_processes"), math.inf),
    "width": 2**16,
    "hidden": 2**20,
    "rate_decay": 1,
}
"""Those that must be positive, and the largest that they may be."""
INTERVALS: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "must lie in (0, 1]": (lambda x: 0 < x <= 1, ("threshold", "fraction", "fractions", "dash_decay")),
    "must lie in [0, 1]": (
        lambda x: 0 <= x <= 1,
        ("dash_shrink", "tortoise", "rescaling", "head_rescaling", "label_noise", "tolerance"),
    ),
    "must lie in [0, 1)": (lambda x: 0 <= x < 1, ("warmup_share",)),
    "must lie between 0 and 1": (lambda x: 0 < x < 1, ("holdout", "new")),
    "must be 0 or more": (lambda x: 0 <= x < math.inf, ("weight_decay", "gaussian_shrink", "gaussian_std", "l2_init")),
    "must lie in [0, 2^31)": (lambda x: 0 <= x < 2**31, ("warmup", "seed")),
    "must lie in [0, 1000] or be None": (lambda x: 0 <= x <= 1000, ("fire_steps",)),
}
"""What is said of those that must lie elsewhere, which values may, and whom it is about."""
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
RETRAINING: dict[str, Any] = {
    "model": "resnet18",
    "width": 16,
    "stem_pool": False,
    "optimizer": "adam",
    "stop": ("accuracy",),
    "epochs": 200,
}
"""How the retraining job trains where nothing else is said."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Which data, and what is done with them."""

    dataset: str = "digits"
    """Data set: digits, digits_shifted (embedded, no download), cifar10, cifar100, svhn, tfds:NAME (any
    tensorflow-datasets set of images with classes), or the path of your own .npz file, or of a folder with one
    sub-folder of PNG or JPEG files per class."""
    data_dir: Path | None = None
    """Folder of NAME.npz files and downloads. Default: $WSJAX_DATA_DIR, else ~/.cache/wsjax/data."""
    image_size: int | None = None
    """Pixels of a side, to which the central square of every image of a folder, or of tfds:NAME, is resized. Default:
    32, but a tensorflow-datasets set whose images all have one size keeps it."""
    num_train: int | None = None
    """How many train images to use, drawn at random, the same for every seed. Default: all."""
    num_test: int | None = None
    """How many test images to use. Default: all."""
    augment: tyro.conf.FlagCreatePairsOff[bool] = False
    """Augment train images: pad and crop, flip, colour jitter and rotation, as in the report's Figure 9."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained."""

    model: str = "mlp"
    """resnet18, mlp or logistic."""
    width: int = 64
    """ResNet: channels of the first stage."""
    stem_pool: tyro.conf.FlagConversionOff[bool] = True
    """ResNet: a 3x3 max-pool of stride 2 after the stem, as in the report (the paper's code has none)."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """MLP: sizes of the hidden layers."""
    activation: str = "tanh"
    """MLP: tanh or relu."""
    bias: tyro.conf.FlagConversionOff[bool] = True
    """MLP and logistic regression: whether layers have biases."""
    conv_init: str = "report"
    """ResNet: initialiser of convolutions: report (He's normal, by outputs) or paper (PyTorch's default, uniform)."""
    precision: str = "float32"
    """What layers compute in: float32 or bfloat16. Parameters, statistics and the loss are float32 in both."""


@dataclasses.dataclass(frozen=True)
class Training(Model):
    """How it trains in one round."""

    optimizer: str = "sgd"
    """sgd, msgd (momentum 0.9), adam or adamw (decoupled weight decay)."""
    learning_rate: float = 0.001
    """Step size."""
    warmup: int = 0
    """Steps over which the learning rate rises to its full value, whenever the optimiser's state is new; in every
    round with --schedule or --warmup_share."""
    warmup_share: float = 0.0
    """The same in every round, as a share of its --epochs, in [0, 1)."""
    schedule: str = "constant"
    """How the learning rate changes within a round: constant, cosine (down to 0) or steps. It starts again in every
    round, runs over the round's cap on epochs, and is cut short if another rule ends the round."""
    milestones: tuple[int, ...] = ()
    """Schedule steps: the epochs at whose start the rate falls."""
    rate_decay: float = 0.1
    """Schedule steps: what the rate is multiplied by."""
    clip_norm: float | None = None
    """The norm that the gradient of all parameters is clipped to. Default: no limit."""
    weight_decay: float = 0.0
    """Coupled L2, added to the gradient of every parameter."""
    batch_size: int = 128
    """Samples per step."""
    epochs: int = 200
    """Epochs per round: its length, or the cap of the other stop rules."""
    stop: tuple[str, ...] = ("epochs",)
    """When a round ends: epochs, accuracy (train accuracy reaches --threshold), plateau, or the first of several."""
    threshold: float = 0.99
    """Train accuracy, in (0, 1], at which the accuracy rule stops."""
    plateau_tolerance: float = 0.002
    """The plateau rule stops when the last epochs' train accuracies have a smaller standard deviation than this."""
    plateau_window: int = 3
    """How many of the last epochs the plateau rule looks at."""
    train_accuracy: str = "running"
    """What stop rules look at: running (the mean over an epoch's batches, each before its update) or after (a separate
    pass after each epoch, in train mode, as in the report's Table 1 and Figure 2)."""
    checkpoint_every: int = 20
    """Epochs between checkpoints."""
    devices: int | None = None
    """Split every batch over this many devices (cores, on a CPU). Default: one."""


@dataclasses.dataclass(frozen=True)
class Methods:
    """How rounds after the first begin."""

    methods: tuple[str, ...] = METHODS
    """How a round starts: RI (random initialisation), WS (warm start), SP (shrink-perturb), SPN (its control: a new
    network, each leaf at SP's norm), SPG (SP with Gaussian noise), DASH, FIRE; or a warm start with L2-Init (L2), Hare
    and Tortoise (HT) or soft weight rescaling (SWR). NAME@RATE, such as RI@0.01, is NAME with another learning rate in
    the rounds after the first."""
    shrink: tuple[float, ...] = (0.3,)
    """SP, SPN: factors of the trained parameters; each is a method of its own."""
    perturb: tuple[float, ...] = (0.01,)
    """SP, SPN: factors of the newly drawn parameters; each is combined with each shrink."""
    gaussian_shrink: float = 0.3
    """SPG: the factor of the parameters, normalisation layers' excepted, to which Gaussian noise is added."""
    gaussian_std: float = 0.01
    """SPG: the noise's standard deviation."""
    dash_shrink: float = 0.3
    """DASH: the least factor of the trained parameters, in [0, 1]."""
    dash_decay: float = 0.3
    """DASH: the weight, in (0, 1], of a chunk's gradient against those of the images that came before."""
    dash_chunk: int = 1000
    """DASH: images, in the order of their arrival, whose gradient is taken together; its authors take --increment."""
    fire_steps: int | None = 10
    """FIRE: Newton-Schulz steps; None goes all the way, by a singular value decomposition."""
    l2_init: float = 0.001
    """L2: how strongly the parameters are pulled to the seed's first network."""
    l2_decoupled: tyro.conf.FlagConversionOff[bool] = False
    """L2: pull by the learning rate alone, as AdamW's weight decay does, not through the gradient."""
    tortoise: float = 0.999
    """HT: the share of itself that the slow copy, which is the one tested, keeps at each step, in [0, 1]."""
    tortoise_every: int = 10
    """HT: epochs between two returns of the parameters to the slow copy; the first is after one epoch."""
    rescaling: float = 0.0001
    """SWR: how far each step draws the layers' norms towards those of the seed's first network, in [0, 1]."""
    head_rescaling: float | None = None
    """SWR: the same for the last layer. Default: --rescaling."""
    own_first: tyro.conf.FlagCreatePairsOff[bool] = False
    """L2, HT, SWR: act in the first round too, which then is their own, not the one that all methods share."""
    batch_stats: str = "keep"
    """BatchNorm's running statistics at a round's start: keep, reset or reestimate (a pass over the round's images)."""
    opt_state: str = "rebuild"
    """The optimiser's state at a round's start: rebuild or keep."""
    fresh: str = "new"
    """The network that RI and SP draw: new, or first (the seed's first one again, as in the report's Table 1)."""


@dataclasses.dataclass(frozen=True)
class Running:
    """How often, how it is tested, on which devices, and where the results go."""

    seeds: tuple[int, ...] = (0,)
    """Seeds; results are means over them with 95 % intervals."""
    evaluation: str = "running"
    """BatchNorm's statistics in evaluation: running, reestimated (a pass over the round's train images) or batch."""
    evaluate: str = "epoch"
    """Test after every epoch, or only at the end of each round: epoch or round."""
    probes: tuple[str, ...] = ()
    """What else to measure at the start of each epoch, as fields of its row: weights (norms, and effective learning
    rates), dead (ReLU units), rank (of the last hidden layer), distance (from the round's start and from the first
    network), gradients (norms on old and on new images, by a pass over all of them)."""
    stack: bool | None = None
    """Train all seeds together as one program. Default: yes, except for the ResNet."""
    replicas: str | None = None
    """devices: train seeds, and methods if devices are left, side by side on all devices (on a CPU, cores)."""
    coordinator: str | None = None
    """Several hosts: HOST:PORT of process 0; every process gets the same command, apart from --process_id. Under srun
    processes find each other without it."""
    num_processes: int | None = None
    """Several hosts: how many processes there are. All their devices split every batch."""
    process_id: int | None = None
    """Several hosts: which process this is, from 0. Process 0 writes the records."""
    workdir: Path = Path("runs")
    """Folder for results: WORKDIR/EXPERIMENT/RUN."""
    run: str | None = None
    """Name of the run's folder. Default: DATASET-MODEL-OPTIMIZER. The same command again continues that run."""


@dataclasses.dataclass(frozen=True)
class Common(Running, Methods, Training, Data):
    """Settings that every experiment of the study has."""


def check_config(config: Common, default: Any, models: Sequence[str] = ()) -> None:
    """Checks every field, once, where it comes in; raises UsageError.

    `default` is what the script has where nothing is said, a protocol's settings included; `models` are those that it
    trains where it does not go by --model.
    """
    check_training(config, default)
    check_model(config, default, models)
    check_image_size(config.image_size)
    kinds = []
    for method in config.methods:
        kind, rate = _split(method)
        choose("method", kind, ALL_METHODS)
        check_positive(f"methods {method}", rate)
        kinds.append(kind)
    for name, why in unused.by_methods(kinds):
        check_unused(config, default, name, why)
    own = in_optimizer(config.methods)
    check(
        not own or config.opt_state == "rebuild" or config.own_first,
        f"--opt_state=keep: {' '.join(own)} cannot go on with the first round's optimiser; add --own_first",
    )
    by_batch = config.model == "resnet18" and config.evaluation == "batch"
    check(
        not by_batch or "DASH" not in kinds,
        "--evaluation=batch: DASH's gradients are by running statistics; leave DASH or that out",
    )
    for probe in config.probes:
        choose("probe", probe, PROBES)
    check(len(set(config.probes)) == len(config.probes), f"--probes must not repeat a value: {_list(config.probes)}")
    if config.replicas is not None:
        check(config.devices is None, "--devices splits batches and --replicas=devices spreads runs: give one of them")
    check_hosts(config)
    check(
        not has_several_processes(config) or (config.devices is None and config.replicas is None),
        "several processes split batches over all their devices: leave out --devices and --replicas",
    )
    for name in ("methods", "shrink", "perturb", "seeds"):
        check_list(name, getattr(config, name))
    for name in ("shrink", "perturb"):
        values = getattr(config, name)
        check(all(map(math.isfinite, values)), f"--{name} must be finite, not {_list(values)}")
    check(all(0 <= seed < 2**32 for seed in config.seeds), f"--seeds must lie in [0, 2^32), not {_list(config.seeds)}")
    check_run(config.run)


def check_run(name: str | None) -> None:
    """Raises UsageError unless a run's name can be a folder's, or is left to the script."""
    check(name != "", "--run is empty: give a name, or leave it out")
    check(name is None or name == Path(name).name != "..", f"--run must be a plain name, not '{name}'")


def check_training(config: Training, default: Any = Training) -> None:
    """Checks the fields of `Training`, and of a script's own what the tables above say of them; raises UsageError."""
    for name, value in vars(config).items():
        for one in value if isinstance(value, tuple) else (value,):
            _check_value(name, one)
    check_list("stop", config.stop)
    _check_steps(config)
    for name, why in unused.by_rules(config.stop):
        check_unused(config, default, name, why)


def check_model(config: Model, default: Any, models: Sequence[str] = ()) -> None:
    """Raises UsageError where somebody gave a setting that the model does not have, or none of several."""
    for name, why in unused.by_models(models or [config.model]):
        check_unused(config, default, name, why)


def in_optimizer(methods: Sequence[str]) -> list[str]:
    """Those of the methods that have an optimiser of their own, which cannot go on with another's state."""
    return [method for method in methods if _split(method)[0] in known.IN_OPTIMIZER]


def _check_value(name: str, value: Any) -> None:
    """Checks a value of a setting by the tables above."""
    if value is None:
        return
    if name in CHOICES:
        choose(name, value, CHOICES[name])
    if name in LIMITS:
        check_positive(name, value, LIMITS[name])
    for text, (holds, those) in INTERVALS.items():
        check(name not in those or holds(value), f"--{name} {text}, not {value}")


def _check_steps(config: Training) -> None:
    """Checks the fields of a schedule of steps."""
    steps = config.schedule == "steps"
    check(
        bool(config.milestones) or not steps, "--schedule=steps needs --milestones: the epochs at which the rate falls"
    )
    check(steps or not config.milestones, "--milestones are for --schedule=steps; leave them out")
    before = 0
    for epoch in config.milestones:
        check(before < epoch, f"--milestones must rise from above 0: {_list(config.milestones)}")
        before = epoch


def check_image_size(size: int | None) -> None:
    """Raises UsageError unless images can be resized to squares of that side."""
    if size is not None:
        from wsjax.data.image_files import LARGEST_SIZE

        check_positive("image_size", size, LARGEST_SIZE)


def check_positive(name: str, value: float | None, most: float = math.inf) -> None:
    """Raises UsageError unless a setting's value is finite, above 0 and at most `most`, or None."""
    if value is None:
        return
    check(math.isfinite(value) and value > 0, f"--{name} must be positive, not {value}")
    check(value <= most, f"--{name} must be at most {most:,}, not {value:,}")


def check_unused(config: Any, default: Any, name: str, why: str) -> None:
    """Raises UsageError where somebody gave a setting, that is where it is not the default's, which has no use."""
    check(getattr(config, name) == getattr(default, name), f"--{name} has no use {why}")


def run_name(config: Common) -> str:
    """The name of the run's folder."""
    return config.run or f"{names.of_data(config.dataset)}-{config.model}-{config.optimizer}"


def _split(method: str) -> tuple[str, float | None]:
    try:
        return names.split(method)
    except ValueError as error:
        raise UsageError(f"--methods {method}: a learning rate is written as in RI@0.01") from error


def check_list(name: str, values: Sequence[Any]) -> None:
    """Raises UsageError unless a setting has values, each once."""
    check(len(values) > 0, f"--{name} needs at least one value")
    check(len(set(values)) == len(values), f"--{name} must not repeat a value: {_list(values)}")


def _list(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))
