"""Online warm starts: data keeps arriving, and every round trains on all that has come until it fits.

    python experiments/online.py                                           the embedded digits
    python experiments/online.py --dataset=cifar10 --increment=1000        Figure 2a
    python experiments/online.py --dataset=cifar10 --increment=2500 --train_accuracy=running \\
      --shrink 0 0.2 0.4 0.6 0.8 1                                         Figure 6

Each round starts from scratch (RI), from the parameters of the round before (WS), or from their shrink-perturb (SP),
on the same images in the same order, and ends at a train accuracy. The first round is the same for all methods, except
for those that --at_once shrinks before it. The run's folder holds a row per epoch and a summary with a row per round,
the paired gap RI - WS and the steps that each method took. The same command continues a run, however it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
from typing import Any

import tyro

from wsjax.results import names, summary, tables, words
from wsjax.scripts import build, cli, config, protocols, run


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the online experiment."""

    increment: int = 1000
    """Train images that arrive each round; the last round has what is left."""
    pool: float = 2 / 3
    """How much of the train split arrives in all: a fraction up to 1, or a number of images above that."""
    max_rounds: int | None = None
    """Stop after this many rounds. Default: when the pool is used up."""
    at_once: tyro.conf.FlagCreatePairsOff[bool] = False
    """Whether to shrink and perturb before the first round too, as the report and the paper did."""
    protocol: str | None = None
    """Published settings as defaults: dash or dash-tuned."""


# A little of shrink-perturb at each of many rounds.
ON_DIGITS: dict[str, Any] = config.DIGITS | {"shrink": (0.9,), "perturb": (0.1,), "seeds": tuple(range(20))}
DIGITS = Config(**ON_DIGITS, stop=("accuracy",), threshold=0.9, epochs=200, increment=30, pool=1.0, evaluate="round")
FIGURE_2 = Config(
    model="resnet18",
    optimizer="adam",
    stop=("accuracy",),
    train_accuracy="after",
    epochs=200,
    shrink=(0.4,),
    perturb=(0.01,),
    at_once=True,
    evaluate="round",
)


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 2's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_2, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    from wsjax.data import datasets
    from wsjax.results import plots

    dataset = run.load_data(settings)
    total = len(dataset.train_labels)
    pool = words.share(total, settings.pool) if settings.pool <= 1 else int(settings.pool)
    cli.check(pool <= total, f"--pool asks for {pool} images; the train split has {total}")
    sizes = datasets.increment_sizes(pool, settings.increment)[: settings.max_rounds]
    setup = build.build_setup(settings, dataset)
    rounds = build.build_rounds(settings, setup, [(size, settings.epochs) for size in sizes])
    methods = build.build_methods(settings, setup, rounds)
    if settings.at_once:
        methods = build.at_once(methods, build.methods_table(settings), rounds)
    outcome = run.run("online", settings, setup, rounds, methods, summary.summarize_online)
    table = tables.online_table(outcome.summary)
    curves = plots.online_curves(outcome.summary["rounds"], outcome.methods)
    run.conclude(outcome, f"{len(sizes)} rounds, up to {sizes[-1]:,} of {total:,} images", table, curves)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    default = protocols.applied(defaults(settings.dataset), settings.protocol)
    config.check_config(settings, default)
    if not names.AT_ONCE.keys() & {names.split(method)[0] for method in settings.methods}:
        why = f"without {' or '.join(names.AT_ONCE)} in --methods; leave it out, or add one"
        config.check_unused(settings, default, "at_once", why)
    whole = settings.pool <= 1 or settings.pool.is_integer()
    cli.check(whole, f"--pool is a fraction up to 1, or a whole number of images above that, not {settings.pool:g}")


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)
