"""What a caption says of each setting, and which settings of a run are not as published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wsjax.results.names import of_data
from wsjax.storage.records import BEFORE, DATA

Settings = Mapping[str, Any]

WORDS = {  # in the order of a caption
    "model": "{}",
    "width": "width {}",
    "stem_pool": "stem pool {}",
    "hidden": "hidden layers {}",
    "activation": "{}",
    "bias": "biases {}",
    "conv_init": "convolutions drawn as in the {}",
    "dataset": "{}",
    "datasets": "between {}",
    "fractions": "on {} of the target",
    "image_size": "images resized to {} pixels a side",
    "num_train": "{} training images",
    "fraction": "first round on {} of the training images",
    "increment": "{} images more a round",
    "pool": "a pool of {}",
    "max_rounds": "at most {} rounds",
    "augment": "augmentation {}",
    "optimizer": "{}",
    "opt_state": "its state at a round's start: {}",
    "learning_rate": "learning rate {}",
    "learning_rates": "learning rates {}",
    "warmup": "rising over {} steps",
    "warmup_share": "rising over {} of a round's epochs",
    "schedule": "the rate's schedule: {}",
    "milestones": "at epochs {}",
    "rate_decay": "by {}",
    "clip_norm": "gradients cut to norm {}",
    "weight_decay": "weight decay {}",
    "batch_size": "batch {}",
    "batch_sizes": "batches {}",
    "precision": "computed in {}",
    "epochs": "{} epochs a round",
    "first_epochs": "{} in the first",
    "every": "warm starts {} epochs of it apart",
    "stop": "stop by {}",
    "threshold": "train accuracy {}",
    "plateau_tolerance": "plateau within {}",
    "plateau_window": "over {} epochs",
    "train_accuracy": "train accuracy {}",
    "perturb": "perturb {}",
    "chained": "warm starts chained: {}",
    "at_once": "shrunk before the first round too: {}",
    "label_noise": "{} of the first round's labels drawn at random",
    "own_first": "the optimiser's methods act in the first round too: {}",
    "fresh": "the network drawn at a round's start: {}",
    "num_test": "{} test images",
    "batch_stats": "batch statistics: {}",
    "evaluation": "evaluation with {} statistics",
}
WHERE = ("workdir", "run", "data_dir", "coordinator", "num_processes", "process_id", "protocol")
"""Settings that say where a run lies and runs: another value of them is no other run."""
NEUTRAL = {
    *WHERE,
    *("devices", "replicas", "stack"),  # how it is spread
    *("checkpoint_every", "evaluate", "probes"),  # how often a run looks at itself
    *("gaussian_shrink", "gaussian_std"),  # methods' own factors, as their table says
    *("dash_shrink", "dash_decay", "dash_chunk", "fire_steps"),
    *("l2_init", "l2_decoupled", "tortoise", "tortoise_every", "rescaling", "head_rescaling"),
    *("methods", "shrink", "seeds", "networks"),  # what is drawn: a picture's legend and its caption's end say it
}
"""Settings that a caption leaves out, and that runs of one figure and published ones may differ in."""

_USUAL = {name: value for name, value in BEFORE.items() if name != "rate_decay"} | {
    "stem_pool": True,
    "weight_decay": 0.0,
    "chained": False,
    "stop": ["epochs"],
    "fraction": 0.5,
    "batch_stats": "keep",
    "opt_state": "rebuild",
    "evaluation": "running",
}
"""What goes without saying of a run; where something else was published, that is told all the same."""

_NONE = {"epochs": "no cap", "first_epochs": "as many as later"} | dict.fromkeys(
    ("max_rounds", "num_train", "num_test"), "all"
)
OF_MODEL = {
    "width": ("resnet18",),
    "stem_pool": ("resnet18",),
    "conv_init": ("resnet18",),
    "hidden": ("mlp",),
    "activation": ("mlp",),
    "bias": ("mlp", "logistic"),
}
"""Settings that some models alone have."""
OF_STOP = {"threshold": "accuracy", "plateau_tolerance": "plateau", "plateau_window": "plateau"}
"""Settings that one stop rule alone looks at."""
_OF_BATCH_NORM = {"batch_stats", "evaluation"}
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
    "adamw": "AdamW",
}


def told(settings: Settings) -> dict[str, Any]:
    """The settings that a caption tells, in its order: all but the neutral ones and those that the run has no use for.

    Two ways to set the same thing come out alike: a pool is a number of images, an end that comes anyway is none.
    """
    own = _alike(settings)
    models, stop = {own.get("model")}, own.get("stop", [])
    unused = {DATA}
    if networks := own.get("networks"):  # they say it
        models = {"resnet18" if network == "resnet18" else "mlp" for network in networks}
        unused |= {"model", "activation", "bias", "perturb", "evaluation"}
    unused |= {name for name, having in OF_MODEL.items() if not models & set(having)}
    unused |= {name for name, rule in OF_STOP.items() if rule not in stop}
    if "resnet18" not in models:
        unused |= _OF_BATCH_NORM
    kinds = _kinds(own)
    if not acts_early(own):
        unused.add("own_first")
    if own.get("schedule") != "steps":
        unused |= {"milestones", "rate_decay"}
    if not own.get("perturb"):  # no SP
        unused |= {"perturb"} if "SPG" in kinds else {"perturb", "at_once"}
    if stop == ["epochs"]:
        unused.add("train_accuracy")
    if "learning_rates" in own:  # every cell has its own
        unused |= {"learning_rate", "batch_size"}
    if own.get("optimizer") == "sgd":  # has no state
        unused.add("opt_state")
    names = [*WORDS, *sorted(own.keys() - WORDS.keys() - NEUTRAL - {DATA})]
    return {name: own[name] for name in names if name in own and name not in unused}


def acts_early(settings: Settings) -> bool:
    """Whether a run has methods that may act in the first round already: those that live in the optimiser."""
    return bool(_kinds(settings) & {"L2", "HT", "SWR"})


def _kinds(settings: Settings) -> set[str]:
    return {str(method).partition("@")[0] for method in settings.get("methods", ())}


def ran(own: Settings) -> str:
    """The settings that `told` gives, in words, but for the usual ones."""
    return ", ".join(
        phrase(name, value)
        for name, value in own.items()
        if value is not None and not (name in _USUAL and value == _USUAL[name])
    )


def not_as_published(own: Settings, published: Settings, capped: bool) -> list[str]:
    """Where the settings that `told` gives are not those published, each in words.

    Args:
        own: the run's; one that the published list does not name is not as published, unless it is None.
        published: all that was published, in the words of the run's settings.
        capped: whether a round ended because its epochs ran out. Where none did, another cap makes no difference.
    """
    there = _alike(published)
    free = {"epochs"} if not capped and own.get("stop") != ["epochs"] and there.get("stop") != ["epochs"] else set()
    names = [name for name in own if name not in free and own[name] != there.get(name)]
    return [f"{phrase(name, own[name])} instead of {shown(name, there.get(name))}" for name in names]


def is_alike(own: Settings, published: Settings, *names: str) -> bool:
    """Whether a run's ends may stand beside published numbers: the same data set, model, and further settings."""
    return all(own.get(name) == published.get(name) for name in ("dataset", "model", *names))


def is_published(own: Settings, published: Settings) -> bool:
    """Whether a run's curves may be drawn over published ones: the same data, network, optimiser and stop rule.

    A narrow network's curve under a wide one's would mislead.
    """
    one, other = told(own), told(published)
    same = ("dataset", "num_train", *OF_MODEL, "model", "optimizer", "learning_rate", "stop", "threshold")
    return all(one.get(name) == other.get(name) for name in same if name != "bias")


def phrase(name: str, value: Any) -> str:
    """A setting in words."""
    text = shown(name, value)
    return WORDS[name].format(text) if name in WORDS else f"{name.replace('_', ' ')} {text}"


def share(total: int, fraction: float) -> int:
    """How many images a fraction of them in (0, 1] is, rounded up, as in the report's code; one at least."""
    return max(math.ceil(round(total * fraction, 6)), 1)  # 0.07 of 100 is 7, and not 7.000000000000001


def _alike(settings: Settings) -> dict[str, Any]:
    """Settings with one value for everything that comes to the same."""
    before = {name: value for name, value in BEFORE.items() if name != "at_once" or "increment" in settings}
    own = before | dict(settings)
    if len(rules := sorted(own.get("stop") or [])) > 1:
        own["stop"] = [rule for rule in rules if rule != "epochs"]  # the cap is in force with every other rule
    if own.get("first_epochs") is not None and own["first_epochs"] == own.get("epochs"):
        own["first_epochs"] = None
    if own.get("pool") is not None and own.get("num_train") is not None:
        pool = own["pool"]
        own["pool"] = share(own["num_train"], pool) if pool <= 1 else int(pool)
        if own.get("increment") and (own.get("max_rounds") or 0) * own["increment"] >= own["pool"]:
            own["max_rounds"] = None
    return own


def shown(name: str, value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return _NONE.get(name, "none")
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return short if float(short := f"{value:.5g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return "/".join(shown(name, one) for one in value)
    return label(str(value), name)


def label(value: str, name: str = "dataset") -> str:
    """A data set, model or optimiser as it is called in a text; a data set may be a file."""
    return _NAMES.get(value, of_data(value) if name in ("dataset", "datasets") else value)
