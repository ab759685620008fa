"""What a figure draws of one run or of several, and the caption that says what ran, how it ended and what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsjax.errors import RunError
from wsjax.results.plots import LABELS, Published, method_order
from wsjax.results.stats import mean_interval
from wsjax.results.summary import paired
from wsjax.storage.records import RunRecords, differing
from wsjax.storage.rows import Row

# What a caption says of a setting, in this order.
_WORDS = {
    "model": "{}",
    "width": "width {}",
    "stem_pool": "stem pool {}",
    "hidden": "hidden layers {}",
    "activation": "{}",
    "dataset": "{}",
    "num_train": "{} training images",
    "num_test": "{} test images",
    "fraction": "first round on {} of the training images",
    "increment": "{} images more a round",
    "pool": "a pool of {}",
    "max_rounds": "at most {} rounds",
    "optimizer": "{}",
    "opt_state": "its state at a round's start: {}",
    "learning_rate": "learning rate {}",
    "weight_decay": "weight decay {}",
    "batch_size": "batch {}",
    "precision": "computed in {}",
    "epochs": "{} epochs a round",
    "first_epochs": "{} in the first",
    "stop": "stop by {}",
    "threshold": "train accuracy {}",
    "perturb": "perturb {}",
    "batch_stats": "batch statistics: {}",
    "evaluation": "evaluation with {} statistics",
}
_OF_MODEL = {
    "width": "resnet18",
    "stem_pool": "resnet18",
    "batch_stats": "resnet18",
    "evaluation": "resnet18",
    "hidden": "mlp",
    "activation": "mlp",
}
_NAMES = {
    "resnet18": "ResNet-18",
    "mlp": "MLP",
    "logistic": "logistic regression",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "sgd": "SGD",
    "msgd": "SGD with momentum 0.9",
    "adam": "Adam",
}

_FREE = ("seeds", "methods", "shrink")  # what may differ between the runs of one figure


class DrawnRun(NamedTuple):
    """One run, or several merged: what to draw and what to say of it."""

    settings: dict[str, Any]
    rows: list[Row]
    finished: bool
    about: str

    @property
    def epochs(self) -> int | None:
        """A round's length, where it is fixed."""
        fixed = self.settings["stop"] == ["epochs"] and not self.settings.get("first_epochs")
        return self.settings["epochs"] if fixed else None


def merge_runs(
    runs: Sequence[RunRecords], experiment: str, wanted: Callable[[Row], bool] = lambda row: True
) -> DrawnRun:
    """Merges runs of an experiment that differ in seeds, methods and shrinks only.

    A method's curve of one seed comes from the run that has most of it. "SP" becomes "SP 0.3", as in runs of several
    shrinks.

    Args:
        runs: as `read_run` gives them.
        experiment: the name of the experiment that they must be of.
        wanted: which rows to keep.

    Raises:
        RunError: there is no run, one is of another experiment, their other settings differ, or no row is wanted.
    """
    if not runs:
        raise RunError("nothing to draw: give the folder of one run or of several")
    for run in runs:
        if run.config.get("experiment") != experiment:
            raise RunError(f"not a run of the {experiment} experiment but of {run.config.get('experiment')!r}")
    settings = [run.config["config"] for run in runs]
    for other in settings[1:]:
        pairs = differing(settings[0], other).items()
        differ = [f"{name} {first} and {second}" for name, (first, second) in pairs if name not in _FREE]
        if differ:
            raise RunError(f"runs of different settings cannot share a figure: {'; '.join(differ)}")

    curves: dict[tuple[str, int], list[Row]] = {}
    for run, own in zip(runs, settings, strict=True):
        found: dict[tuple[str, int], list[Row]] = {}
        for row in filter(wanted, run.rows):
            method = f"SP {own['shrink'][0]:g}" if row["method"] == "SP" else row["method"]
            found.setdefault((method, row["seed"]), []).append(row | {"method": method})
        for key, rows in found.items():
            curves[key] = max(curves.get(key, []), rows, key=len)
    rows = [row for found in curves.values() for row in found]
    if not rows:
        raise RunError("there are no epochs to draw yet: wait for the first one of the figure's methods")
    merged = settings[0] | {name: sorted({value for own in settings for value in own[name]}) for name in _FREE}
    about = "; ".join(dict.fromkeys(_about(run.config) for run in runs))
    return DrawnRun(merged, rows, all(run.summary is not None for run in runs), about)


def offline_caption(
    run: DrawnRun, settings: Mapping[str, Any] | None = None, final: Mapping[str, float] | None = None
) -> str:
    """Says what ran, how it ended, and how that differs from what was published.

    Args:
        run: its rows are those drawn.
        settings: the published settings, in the words of the run's; None where there is nothing to compare with.
        final: method to published final test accuracy, in percent.
    """
    sentences = _what_ran(run, settings)
    if run.finished and run.epochs is None:
        sentences.append("A seed that stopped earlier holds its last value.")
    ends = [row for row in run.rows if row["round"] == 2 and row["stop"]]
    if ends:
        numbers = "; ".join(_accuracies(ends, final or {}))
        sentences.append(f"Final test accuracy in percent: {numbers}.")
    return " ".join([*sentences, *_bands(run)])


def online_caption(
    run: DrawnRun,
    summary: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    published: Mapping[str, float] | None = None,
) -> str:
    """Says what ran, how it stands at the last number of images that every way and seed has reached, and what differs.

    Args:
        run: its rows are those drawn.
        summary: what `summarize_online` makes of those rows.
        settings: the published settings, in the words of the run's; None where there is nothing to compare with.
        published: method to published test accuracy, in percent, at that number of images.
    """
    sentences = _what_ran(run, settings)
    samples = common_samples(summary["rounds"])
    ends = [row for row in summary["rounds"] if row["samples"] == samples]
    numbers = "; ".join(_accuracies(ends, published or {}))
    sentences.append(f"Test accuracy in percent at {samples:,} images: {numbers}.")
    if slope := summary["gap_slope"]:
        low, high = slope["low"], slope["high"]
        bounds = "" if low is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
        sentences.append(f"RI - WS changes by {100 * slope['mean']:+.2f} points{bounds} a round.")
    shares = {way: share for way, share in summary["steps_of_RI"].items() if share is not None}
    if run.finished and shares:
        took = "; ".join(f"{way} {_share(share)}" for way, share in shares.items())
        sentences.append(f"Steps over all rounds, in percent of RI's: {took}.")
    capped = sum(row["capped_rounds"] for row in summary["rows"])
    if capped and "accuracy" in run.settings["stop"]:
        cap = run.settings["epochs"]
        sentences.append(f"{capped} of {len(summary['rounds'])} rounds ended at the cap of {cap} epochs.")
    return " ".join([*sentences, *_bands(run)])


def published_online(curves: Mapping[str, Any], pool: int) -> Published:
    """A panel of the report's Figure 2 as curves by (field, method); the last round has what is left of the pool."""
    samples = np.minimum(1000 * np.array(curves["n_thousand"]), pool)
    published = {}
    for method in ("RI", "WS"):
        published["test_accuracy", method] = np.stack([samples, 100 * np.array(curves[f"acc_{method}"])], axis=1)
        published["train_seconds", method] = np.stack([samples, curves[f"time_s_{method}"]], axis=1)
    return published


def common_samples(rounds: Sequence[Row]) -> int:
    """The largest number of images that every way and seed has trained on, of a row a round."""
    largest: dict[tuple[str, int], int] = {}
    for row in rounds:
        largest[row["method"], row["seed"]] = max(largest.get((row["method"], row["seed"]), 0), row["samples"])
    return min(largest.values())


def _what_ran(run: DrawnRun, settings: Mapping[str, Any] | None) -> list[str]:
    """The sentences of the settings, of where they differ from those published, and of what is still to run."""
    own = _used_settings(run)
    ran = ", ".join(_phrase(name, value) for name, value in own.items())
    sentences = [f"{ran}; {_seeds(sorted({row['seed'] for row in run.rows}))}; {run.about}."]
    if settings is not None:
        names = [name for name in own if name in settings and own[name] != settings[name]]
        differ = "; ".join(f"{_phrase(name, own[name])} instead of {_value(settings[name])}" for name in names)
        sentences.append(f"Not as published: {differ}." if differ else "Settings as published.")
    if not run.finished:
        sentences.append(_progress(run.rows))
    return sentences


def _progress(rows: Sequence[Row]) -> str:
    """Where an unfinished run is."""
    ended = {(row["method"], row["seed"], row["round"]) for row in rows if row["stop"]}
    under_way = [row for row in rows if (row["method"], row["seed"], row["round"]) not in ended]
    if not under_way:
        return "UNFINISHED RUN, between two curves."
    last = under_way[-1]
    method = LABELS.get(last["method"], last["method"])
    return f"UNFINISHED RUN, so far at seed {last['seed']}, {method}, round {last['round']}, epoch {last['epoch']}."


def _accuracies(ends: Sequence[Row], published: Mapping[str, float]) -> list[str]:
    """Each way's mean test accuracy, and the paired gap, beside the published numbers where there are some."""
    numbers = []
    for method in sorted({row["method"] for row in ends}, key=method_order):
        interval = mean_interval([row["test_accuracy"] for row in ends if row["method"] == method])
        numbers.append(f"{method} {_number(*interval, published.get(method))}")
    if gap := paired(ends, "RI", "WS"):
        both = {"RI", "WS"} <= set(published)
        numbers.append(
            f"gap RI - WS "
            f"{_number(gap['mean'], gap['low'], gap['high'], published['RI'] - published['WS'] if both else None)}"
        )
    return numbers


def _bands(run: DrawnRun) -> list[str]:
    """What the bands and brackets are."""
    seeds = len({row["seed"] for row in run.rows})
    if seeds == 1:
        return []
    bounds = "bands ranges, brackets" if seeds == 2 else "bands and brackets"
    return [f"Lines are means over seeds, {bounds} 95 % t-intervals of the mean."]


def _used_settings(run: DrawnRun) -> dict[str, Any]:
    """The settings that a caption names: those that the run's model and methods use."""
    unused = {name for name, model in _OF_MODEL.items() if model != run.settings["model"]}
    if not any(row["method"].startswith("SP") for row in run.rows):
        unused.add("perturb")
    if run.epochs is not None:
        unused.add("stop")
    if "accuracy" not in run.settings["stop"]:
        unused.add("threshold")
    if run.settings["optimizer"] == "sgd":  # has no state
        unused.add("opt_state")
    return {name: run.settings[name] for name in _WORDS if name not in unused and run.settings.get(name) is not None}


def _about(config: Mapping[str, Any]) -> str:
    """Where a run ran: devices, jax's version and the commit, as far as they are known."""
    jax = (config.get("versions") or {}).get("jax")
    commit = config.get("git_commit")
    parts = [*dict.fromkeys(config.get("devices", [])), jax and f"jax {jax}", commit and f"commit {commit[:9]}"]
    return ", ".join(part for part in parts if part)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _number(mean: float, low: float | None, high: float | None, published: float | None) -> str:
    """A mean over seeds in percent, its bounds where there are several, and the published number where there is one."""
    bounds = "" if low is None or high is None or np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * mean:.1f}{bounds}" + ("" if published is None else f" (published {published:.1f})")


def _share(share: Mapping[str, Any]) -> str:
    return _number(share["mean"], share["low"], share["high"], None)


def _phrase(name: str, value: Any) -> str:
    return _WORDS[name].format(_value(value))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return "/".join(map(_value, value))
    return _NAMES.get(value, Path(value).stem)  # a data set may be a file
