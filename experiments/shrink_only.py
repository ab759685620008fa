"""Shrinking alone: the accuracy of trained networks whose parameters are multiplied by a factor, and nothing else.

    python experiments/shrink_only.py                      four MLPs on the embedded digits
    python experiments/shrink_only.py --dataset=cifar10    Figure 7: those and ResNet-18, 50 epochs, SGD 0.1

Each network (MLP with tanh or ReLU, with and without biases; ResNet-18) trains once per seed, and is tested at 81
factors from 0 to 1; ResNet-18 with BatchNorm's running statistics, with statistics re-estimated after shrinking, and
with each batch's own, as the report has it. The run's folder holds a row per epoch, a summary with the curves, and a
picture. The same command continues a run, however it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from wsjax.results import shrinking
from wsjax.scripts import build, cli, config, console, run

if TYPE_CHECKING:
    from wsjax.data.datasets import Dataset

NETWORKS: dict[str, dict[str, Any]] = {
    f"{activation}{'' if bias else '_no_bias'}": {"model": "mlp", "activation": activation, "bias": bias}
    for activation in ("tanh", "relu")
    for bias in (True, False)
}
MLPS = tuple(NETWORKS)
NETWORKS["resnet18"] = {"model": "resnet18"}
SHRINKS = 81  # factors from 0 to 1
UNUSED = ("model", "activation", "bias", "methods", "shrink", "perturb", "batch_stats", "opt_state", "fresh")


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the shrink-only experiment; what --networks says, and starts of later rounds, have no use in it."""

    networks: tuple[str, ...] = (*MLPS, "resnet18")
    """Which networks: tanh, tanh_no_bias, relu, relu_no_bias (MLPs) and resnet18."""


TRAINING: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 50}
DIGITS = Config(**TRAINING, networks=MLPS, batch_size=64, seeds=tuple(range(5)))
FIGURE_7 = Config(**TRAINING)


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 7's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_7, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    if "resnet18" in settings.networks and settings.stack is None:
        settings = dataclasses.replace(settings, stack=False)
    from wsjax.methods.starts import scratch
    from wsjax.results import shrink_plots
    from wsjax.rounds.legs import Method

    dataset = run.load_data(settings, [NETWORKS[name]["model"] for name in settings.networks])
    own = {name: dataclasses.replace(settings, **NETWORKS[name]) for name in settings.networks}
    setups = {name: build.build_setup(trained, dataset) for name, trained in own.items()}
    setup = setups[settings.networks[0]]
    (plan,) = build.build_rounds(settings, setup, [(len(dataset.train_labels), settings.epochs)])
    methods = {name: Method(scratch, 0, [plan._replace(setup=setup)]) for name, setup in setups.items()}
    outcome = run.run(
        "shrink_only", settings, setup, [plan], methods, shrinking.summarize,
        {name: NETWORKS[name] for name in settings.networks}, partial(measure, own, dataset),
    )  # fmt: skip
    table, curves = shrinking.table(outcome.summary), outcome.summary[run.MEASURED]
    sentences = shrinking.verdict(outcome.summary)
    run.conclude(outcome, "After shrinking alone", table, shrink_plots.shrink_curves(curves), sentences)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    config.check_list("networks", settings.networks)
    for network in settings.networks:
        cli.choose("networks", network, tuple(NETWORKS))
    models = dict.fromkeys(NETWORKS[network]["model"] for network in settings.networks)
    config.check_config(settings, defaults(settings.dataset), tuple(models))
    for name in UNUSED:
        config.check_unused(settings, Config, name, "here: networks are those of --networks, and they are only shrunk")


def measure(own: dict[str, Config], dataset: Dataset, states: Any) -> list[dict[str, Any]]:
    """The curve of each network, evaluation and seed, as JSON values."""
    import numpy as np

    from wsjax import parallel
    from wsjax.training.shrinking import shrink_curves

    shrinks, found = np.linspace(0, 1, SHRINKS, dtype=np.float32), []
    for network, trained in own.items():
        for evaluation in shrinking.EVALUATIONS if trained.model == "resnet18" else ("running",):
            console.say(f"Shrinking {shrinking.title(network, evaluation)}", parallel.is_main())
            tested = build.build_setup(dataclasses.replace(trained, evaluation=evaluation), dataset, alone=True)
            these = {seed: state for (name, seed), state in states.items() if name == network}
            curves = shrink_curves(tested, these, shrinks)
            of = {"network": network, "evaluation": evaluation, "shrinks": [round(float(x), 6) for x in shrinks]}
            found += [of | {"seed": seed, "accuracies": list(map(float, own))} for seed, own in curves.items()]
    return found


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)
