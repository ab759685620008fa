"""Offline warm starts: train on half of the data, then on all of it, from three starting points.

    python experiments/offline.py                      the embedded digits
    python experiments/offline.py --dataset=cifar10    Figure 1: ResNet-18, SGD 0.001, 200 + 200 epochs

RI starts the second round from scratch, WS from the parameters of the first, SP from their shrink-perturb. The run's
folder gets a row an epoch, a summary with the paired gap RI - WS, and a picture. The same command continues a run that
was stopped, however it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from wsjax import cli, experiment, summary
from wsjax.records import Row, about_run, open_run, write_json

PRESETS = {
    "digits": {
        "model": "mlp",
        "hidden": (100, 100, 100),
        "activation": "relu",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "batch_size": 128,
        "epochs": 200,
        "stop": ("epochs",),
        "shrink": (0.3,),
        "perturb": (0.1,),
        "seeds": tuple(range(40)),
    },
    "": {  # Figure 1
        "model": "resnet18",
        "hidden": (100, 100, 100),
        "activation": "tanh",
        "optimizer": "sgd",
        "learning_rate": 0.001,
        "batch_size": 128,
        "epochs": 200,
        "stop": ("epochs",),
        "shrink": (0.3,),
        "perturb": (0.01,),
        "seeds": (0,),
    },
}


@dataclasses.dataclass(frozen=True)
class Config(experiment.Common):
    """Settings of the offline experiment."""

    fraction: float = 0.5
    """Share of the train images that the first round has, in (0, 1]."""


def main(config: Config) -> None:
    """Runs the experiment, or what is left of it."""
    config = experiment.resolve(config, PRESETS)
    import jax

    from wsjax import data, rounds

    experiment.use_compilation_cache()
    dataset = experiment.load_data(config)
    task, ways = experiment.build_task(config, dataset), experiment.build_ways(config)
    total = len(dataset.train_labels)
    sizes = (data.fraction_size(total, config.fraction), total)
    stop = experiment.build_stop(config)
    folder = config.workdir / "offline" / str(config.run)
    settings = experiment.what_decides(config, num_train=total, num_test=len(dataset.test_labels))
    about = about_run("offline", [f"{device.platform} ({device.device_kind})" for device in jax.devices()])

    seeds, epochs = config.seeds or (), config.epochs or 0
    work = epochs * len(seeds) * (sizes[0] + len(ways) * sizes[1])
    with open_run(folder, settings, about) as records, cli.progress(work, ", if no round ends early") as advance:

        def observe(rows: list[Row]) -> None:
            done = sum(row["samples"] for row in rows)
            skipped = sum(row["samples"] * (epochs - row["epoch"]) for row in rows if row["stop"])
            accuracy = sum(row["test_accuracy"] for row in rows) / len(rows)
            last = rows[-1]
            advance(done, f"{last['method']} epoch {last['epoch']}: test {accuracy:.1%}", skipped)

        result = rounds.run_rounds(
            task,
            experiment.build_optimizer(config),
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
            [rounds.Round(size, stop) for size in sizes],
            ways,
            seeds,
            settings=experiment.build_settings(config),
            stack=bool(config.stack),
            records=records,
            checkpoints=folder / "checkpoints",
            observe=observe,
        )
        ends = summary.summarize(result.rows, experiment.sp_names(config))
        write_json(folder / "summary.json", ends)
    report(folder, result.rows, ends, epochs if config.stop == ("epochs",) else None)


def report(folder: Path, rows: list[Row], ends: dict[str, Any], epochs: int | None) -> None:
    """Prints the table and what it says, and draws the picture."""
    from wsjax import plots

    cli.print_table("All of the data, after the first round", *summary.table(ends))
    for sentence in summary.verdict(ends):
        cli.say(sentence)
    picture, _ = plots.save(plots.offline_curves(rows, epochs=epochs), folder / "figure")
    cli.say(f"Picture: {picture}\nRecords: {folder}")


if __name__ == "__main__":
    cli.run_script(main, Config, experiment.describe(__doc__, PRESETS))
