"""How should I retrain? Tries the ways on your data, within a time, and says which is best and how to go on with it.

    wsjax advise                                              the embedded digits, a minute
    wsjax advise --data mydata.npz --new=0.2 --budget=10min   a fifth of the images are new

From scratch, from the parameters that there are, by shrink-perturb, FIRE or DASH, at the learning rate or a higher one:
what each gains, loses and saves against training from scratch, paired over seeds, and the command line of
`wsjax retrain` that does it from now on. The same command continues a study that was stopped; with a larger --budget it
takes more seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shlex
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsjax.commands import retrain
from wsjax.data.sources import expand_user, open_file
from wsjax.errors import RunError, UsageError, printable
from wsjax.results import advice, names, words
from wsjax.retraining.lineage import FACTORS
from wsjax.scripts import build, cli, config, console, hosts, process, race, unused
from wsjax.storage.about import about_run, data_digest
from wsjax.storage.files import user_path, write_json
from wsjax.storage.records import CONFIG, DATA, open_run, read_config

if TYPE_CHECKING:
    from wsjax.data.datasets import Dataset
    from wsjax.rounds.legs import Method, Round
    from wsjax.training.train import Setup

ADVICE = "advice.json"
RETRAIN = "wsjax retrain"


@dataclasses.dataclass(frozen=True)
class Config(config.Training):
    """Which data come in, and how long to look for the best way of retraining."""

    data: tuple[str, ...] = ()
    """Your data: files, folders or globs as `wsjax retrain` takes them, one .npz with a test set of its own, or
    cifar10, cifar100, svhn. Default: the embedded digits."""
    image_size: int | None = None
    """Pixels of a side, to which images of folders are resized. Default: 32."""
    new: float = 0.2
    """Share of all train images that is new at a retraining, in (0, 1)."""
    budget: str = "10min"
    """About how long to take, in all calls together: 90s, 10min, 8h or 2d."""
    first_epochs: int | None = None
    """Epochs of the model before the new data come. Default: --epochs."""
    factors: tuple[str, ...] = ("0.4/0.1", "0.3/0.6", "0.7/0.3")
    """Shrink-perturb: the SHRINK/PERTURB pairs to try."""
    raised: float = 3.0
    """What the learning rate is multiplied by for the ways that retrain at a higher one."""
    dash_shrink: float = 0.3
    """DASH: the least factor of the current model's parameters, in [0, 1]."""
    fire_steps: int | None = 10
    """FIRE: Newton-Schulz steps; None goes all the way, by a singular value decomposition."""
    tolerance: float = advice.TOLERANCE
    """A way that is less accurate than the best by more than this, on average, is not recommended for its low cost."""
    seeds: int = 36
    """The most seeds."""
    holdout: float = 0.1
    """Fraction of the images to test on, chosen by a hash of their content, if the data have no test set."""
    max_gigabytes: float = 8.0
    """The most that one data file, packed or unpacked, and all images together may take."""
    workdir: Path = Path("runs")
    """Folder for results: WORKDIR/advise/RUN."""
    run: str | None = None
    """Name of the run's folder. Default: DATA-MODEL-OPTIMIZER. The same command again continues that run."""


# As experiments/offline.py --dataset=digits has them: a short second round, in which a network that memorised the first
# half is behind.
_DIGITS = {name: value for name, value in config.DIGITS.items() if name not in ("shrink", "perturb")}
_DIGITS |= {"model": "mlp", "stop": ("epochs",), "new": 0.5, "first_epochs": 40, "epochs": 8, "budget": "60s"}
OWN = Config(**config.RETRAINING)
DIGITS = dataclasses.replace(OWN, **_DIGITS)


def defaults(data: str | None) -> Config:
    """The settings for data where nothing else is said: those of the retraining job, but for the embedded digits."""
    return DIGITS if data in (None, "digits") else OWN


def main(settings: Config) -> None:
    """Runs the study, or what is left of it within the time, and says how to retrain from now on."""
    begin = time.monotonic()
    check(settings)
    budget = cli.seconds_of(settings.budget)
    dataset = load(settings)
    total = len(dataset.train_labels)
    table = ways(settings, total)
    own = _common(settings, table)
    old = words.share(total, 1 - settings.new)
    cli.check(0 < old < total, f"--new={settings.new:g} of {total} train images leaves none on one side; give another")
    setup = build.build_setup(own, dataset)
    plan = [(old, settings.first_epochs or settings.epochs), (total, settings.epochs)]
    rounds = build.build_rounds(own, setup, plan)
    methods = _in_order(build.build_methods(own, setup, rounds, table), setup, rounds[1])
    folder = user_path(own.workdir) / "advise" / config.run_name(own)
    console.say(
        f"{dataset.name}: a model of {old:,} images is to take in {total - old:,} new ones; "
        f"tested on {len(dataset.test_labels):,} others, {len(table)} ways, within {console.duration(budget)}"
    )
    identity = _as_begun(folder, _identity(settings, own, dataset))
    with open_run(folder, identity, about_run("advise", _devices()) | {"methods": table}):
        racing = race.Race(
            own, setup, rounds, methods, table, folder, budget, settings.seeds, settings.tolerance,
            lambda: time.monotonic() - begin,
        )  # fmt: skip
        ends, raced = race.race(racing)
        check_sufficed(settings, ends, raced, race.enough_for_two(racing, raced))
        conclude(settings, table, folder, ends, raced)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    config.check_training(settings)
    config.check_model(settings, defaults(settings.data[0] if settings.data else None))
    config.check_image_size(settings.image_size)
    nothing = re.fullmatch(r"0+(\.0+)?([smhd]|min)", settings.budget)
    cli.check(not nothing, f"--budget must be more than 0, such as 10min, not {settings.budget}")
    cli.seconds_of(settings.budget)
    config.check_list("factors", settings.factors)
    for pair in settings.factors:
        _split(pair)
    config.check_positive("seeds", settings.seeds, 1000)
    raises = _raised(settings) > settings.learning_rate
    cli.check(raises, f"--raised={settings.raised:g} raises nothing: give a factor above 1")
    config.check_run(settings.run)
    own = config.Common(devices=settings.devices)
    cli.check(not hosts.has_several_processes(own), "advise runs as one process: start it without srun")


def ways(settings: Config, num_samples: int) -> dict[str, names.Spec]:
    """What each way is, by name, from the one to try first on; `wsjax retrain` can do all of them."""
    rate = _raised(settings)
    scratch, warm = {"reinit": names.RANDOM}, {"reinit": names.WARM}
    pairs = map(_split, settings.factors)
    specs = [{"reinit": names.SHRINK, "shrink": shrink, "perturb": perturb} for shrink, perturb in pairs]
    shrunk = {names.sp_name(spec, True): spec for spec in specs}
    first = next(iter(shrunk))
    dash = {"reinit": "dash", "shrink": settings.dash_shrink, "decay": 1.0, "chunk": num_samples}
    return {
        "scratch": scratch,
        "continue": warm,
        first: shrunk.pop(first),
        f"scratch@{rate:g}": {**scratch, "learning_rate": rate},
        f"continue@{rate:g}": {**warm, "learning_rate": rate},
        "FIRE": {"reinit": "fire", "steps": settings.fire_steps},
        **shrunk,
        "DASH": dash,
    }


def _raised(settings: Config) -> float:
    """The higher learning rate, as it is written."""
    return float(f"{settings.learning_rate * settings.raised:.6g}")


def load(settings: Config) -> Dataset:
    """The data, with a test set: their own, or images held out as the retraining job does. Sets up the devices."""
    process.set_up()
    process.use_devices(settings.devices)
    from wsjax.data import datasets
    from wsjax.retraining.incoming import read_pool

    given = settings.data or ("digits",)
    if len(given) == 1 and (given[0] in datasets.NAMES or _has_test_set(given[0])):
        for name, why in (("max_gigabytes", "is loaded as a whole"), ("holdout", "has a test set")):
            config.check_unused(settings, Config, name, f"for {given[0]}, which {why}; leave it out")
        return datasets.load(given[0], image_size=settings.image_size)
    pool = read_pool(given, (), None, settings.holdout, console.say, settings.max_gigabytes, settings.image_size)
    assert pool is not None
    mean, std = datasets.channel_statistics(pool.train[0])
    return datasets.Dataset(_name(given), *pool.train, *pool.held_out, pool.class_names, mean, std)


def command(settings: Config, spec: names.Spec) -> str:
    """The command line that retrains in a way from now on, with these settings."""
    flags = [f"--model_dir=MODEL --data {shlex.join(settings.data) if _are_files(settings.data) else 'FILES'}"]
    method = _METHODS[spec["reinit"]]
    flags.append(f"--method={method}")
    if spec["reinit"] == names.SHRINK:
        flags.append(f"--shrink={spec['shrink']:g} --perturb={spec['perturb']:g}")
    if "learning_rate" in spec:
        flags.append(f"--later_rate={spec['learning_rate']!r}")
    others = {name for other, own in FACTORS.items() if other != method for name in own}
    others |= {name for name, _ in unused.by_models([settings.model])}
    for name, default in vars(retrain.DEFAULTS).items():
        if name in (*_OWN, *others) or not hasattr(settings, name):
            continue
        if (value := getattr(settings, name)) == default:
            continue
        several = isinstance(value, tuple)
        flags.append(shlex.join([f"--{name}", *map(str, value)] if several else [f"--{name}={value}"]))
    return " ".join([RETRAIN, *flags])


_OWN = ("data", "tolerance")
"""Fields of the job's names that are told apart, or mean something else here."""
_METHODS = {
    names.RANDOM: "scratch",
    names.WARM: "continue",
    names.SHRINK: "shrink-perturb",
    "dash": "dash",
    "fire": "fire",
}
"""What `wsjax retrain` calls a way."""


def check_sufficed(settings: Config, ends: Sequence[Any], plan: dict[str, Any], seconds: float | None) -> None:
    """Raises RunError unless scratch and another way have ended; `seconds` is a budget that suffices, if known."""
    ended = {end["method"] for end in ends}
    if "scratch" not in ended or len(ended) < 2:
        if plan["rungs"][0]["ways"] == ["scratch"]:
            raise RunError(f"no way but scratch is left: {'; '.join(_diverged(plan))}; lower --learning_rate")
        # An estimate within the budget leaves out what took the time: compiling, most likely.
        most = ""
        if seconds is not None and seconds > cli.seconds_of(settings.budget):
            most = f" ({console.duration(seconds)} should)"
        raise RunError(
            f"{settings.budget} did not suffice for two ways on one seed{most}; the same command with a larger "
            "--budget goes on where this one ended"
        )


def conclude(settings: Config, table: names.Methods, folder: Path, ends: Sequence[Any], plan: dict[str, Any]) -> None:
    """Says what the study came to, and draws it."""
    from wsjax.results import advice_plot, plots

    judged = advice.judge(ends, table, settings.tolerance, race.out_of(plan))
    console.print_table("With the new data, each way", *advice.table(judged))
    ended = {end["method"] for end in ends}
    left = [way for way in table if way not in {*ended, *plan["unseen"], *plan["diverged"]}]
    for sentence in [*advice.sentences(judged), *dropped(plan, left, settings.budget)]:
        console.say(sentence)
    rate = advice.faster_scratch(judged, table)
    if rate is not None:
        console.say(
            f"From scratch too a higher rate is better: try this command with --learning_rate={rate:g}, and see what "
            "other ways gain then."
        )
    line = command(settings, table[judged["recommended"]])
    write_json(folder / ADVICE, {**judged, "command": line})
    console.say("From now on:")
    print(printable(line, longest=sys.maxsize), flush=True)  # neither broken nor cut, for it is to be copied
    if not _are_files(settings.data):
        console.say("(FILES: .npz files with images and labels, see docs/retraining.md)")
    (picture,) = plots.save(advice_plot.tradeoff(judged, table), folder / "figure", ["png"])
    console.say(f"Picture: {picture}")
    console.say(f"Records: {folder}")


def dropped(plan: dict[str, Any], left: Sequence[str], budget: str) -> list[str]:
    """What a race did not follow to its end, and why; `left` are the ways that are still to end the first seeds."""
    said = []
    if left:
        said.append(f"Did not fit into {budget}: {', '.join(map(names.label, left))}.")
    if plan["unseen"]:
        unseen = ", ".join(map(names.label, plan["unseen"]))
        said.append(f"Not tried, for the first seeds' time was over: {unseen}. A new --run with more time would.")
    if plan["aside"]:
        behind = ", ".join(map(names.label, plan["aside"]))
        said.append(f"Left aside when the time grew short, for they were the last by the rule then: {behind}.")
    said += [f"{sentence}." for sentence in _diverged(plan)]
    if not plan["rungs"][-1]["ended"]:
        said.append("The last seeds were not run for all ways; the same command with a larger --budget goes on.")
    return said


def _diverged(plan: dict[str, Any]) -> list[str]:
    return [f"{names.label(way)} diverged and dropped out: {why}" for way, why in plan["diverged"].items()]


def _common(settings: Config, table: names.Methods) -> config.Common:
    """The settings as the experiments have them. Statistics are taken anew for the test, as the retraining job does."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(config.Training)}
    return config.Common(
        **fields, dataset=" ".join(settings.data) or "digits", methods=tuple(table), shrink=(), perturb=(),
        evaluation="reestimated", evaluate="round", workdir=settings.workdir,
        dash_shrink=settings.dash_shrink, fire_steps=settings.fire_steps,
        run=settings.run or f"{_name(settings.data)}-{settings.model}-{settings.optimizer}",
    )  # fmt: skip


def _in_order(methods: dict[str, Method], setup: Setup, here: Round) -> dict[str, Method]:
    """The ways with those behind the raised rates in rounds of their own, which are the same.

    Ways of the same rounds run one after the other: where the time is short, the control would come last.
    """
    raised = [number for number, method in enumerate(methods.values()) if method.rounds is not None]
    own = [here._replace(setup=here.setup or setup)]
    return {
        name: method._replace(rounds=own) if number > max(raised) else method
        for number, (name, method) in enumerate(methods.items())
    }


def _identity(settings: Config, own: config.Common, dataset: Dataset) -> dict[str, Any]:
    """All that decides the rows of a race, but for how far it goes."""
    fields = {name: value for name, value in dataclasses.asdict(own).items() if name not in words.WHERE}
    data = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    fields |= {"new": settings.new, "first_epochs": settings.first_epochs, DATA: data_digest(data)}
    fields |= {"image_size": settings.image_size, "holdout": settings.holdout}
    return {name: value for name, value in fields.items() if name != "seeds"}


def _as_begun(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The identity without what a folder of an older version does not tell: there its data decide alone."""
    if not (folder / CONFIG).exists() or "holdout" in read_config(folder)["config"]:
        return identity
    return {name: value for name, value in (identity | {"image_size": None}).items() if name != "holdout"}


def _name(data: Sequence[str]) -> str:
    """What data are called, in a folder's name too."""
    stem = names.stem_of(data[0]) if data else "digits"
    return re.sub(r"[^\w.-]+", "", stem).strip(".-") or "data"


def _are_files(data: Sequence[str]) -> bool:
    """Whether data are files that the retraining job takes as they are."""
    from wsjax.data.datasets import NAMES

    return bool(data) and not any(name in NAMES or _has_test_set(name) for name in data)


def _has_test_set(path: str) -> bool:
    """Whether a file holds train_images and the like; one that cannot be read holds nothing."""
    try:
        with open_file(expand_user(path)) as file, zipfile.ZipFile(file) as archive:
            return "train_images.npy" in archive.namelist()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # a DataError is a ValueError
        return False


def _split(pair: str) -> tuple[float, float]:
    """Shrink and perturb, as they are written."""
    with contextlib.suppress(ValueError):
        shrink, perturb = map(float, pair.split("/"))
        if math.isfinite(shrink) and math.isfinite(perturb):
            return shrink, perturb
    raise UsageError(f"--factors are written as 0.4/0.1, SHRINK/PERTURB, not '{pair}'")


def _devices() -> list[str]:
    from wsjax import parallel

    return parallel.device_names()
