"""Figure 2: online warm starting (WS) against random initialisation (RI), accuracy and time by the number of images.

    python figures/figure2.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure2]

Draws runs of experiments/online.py over the report's curves, as PNG and PDF with the caption beside them as TXT: its
panel a for CIFAR-10 stopped at 99 % train accuracy, b and c for SVHN at 99 % and 99.9 %. Takes seconds. At the
report's settings expect RI near 78.3 % and WS near 73.2 % (panel a), and WS 9.5 times as fast.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from wsjax.results import captions, plots, summary
from wsjax.scripts import cli
from wsjax.storage.records import read_run

HERE = Path(__file__).resolve().parent
METHODS = ("first", "RI", "WS")
PANELS = {("cifar10", 0.99): "f2c99", ("svhn", 0.99): "f2s99", ("svhn", 0.999): "f2s999"}


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of online runs; several are merged where only seeds, methods and shrinks differ."""
    cost: Literal["seconds", "steps"] = "seconds"
    """What a round costs: seconds, or steps, which do not depend on the machine."""
    out: Path = HERE / "results" / "figure2"
    """The files to write, without their endings."""


def main(config: Config) -> str:
    """Draws the figure and returns its caption."""
    runs = [read_run(folder) for folder in config.runs]
    run = captions.merge_runs(runs, "online", lambda row: row["method"] in METHODS)
    ends = summary.summarize_online(run.rows, {})
    settings = json.loads((HERE / "published" / "settings.json").read_text())
    report = json.loads((HERE / "published" / "report.json").read_text())

    caption = "Figure 2: more images arrive every round; RI trains on all of them from scratch, WS on from the round "
    caption += "before. "
    panel = PANELS.get((run.settings["dataset"], run.settings["threshold"]))
    if panel and run.settings["model"] == "resnet18":
        own = settings["online"] | settings["online_data"][run.settings["dataset"]]
        own |= {"threshold": run.settings["threshold"]}
        curves = captions.published_online(report["figure2_online"][panel], round(own["pool"] * own["num_train"]))
        points = plots.accuracies_at(curves, captions.common_samples(ends["rounds"]))
        caption += captions.online_caption(run, ends, own, points)
        caption += (
            " Dashed: the report's curves (one seed, BatchNorm evaluated with each test batch's statistics), as far as "
            "this run goes; its seconds are those of another machine and include evaluation."
        )
    else:
        curves = None
        caption += captions.online_caption(run, ends)
        caption += (
            " No published curve: the report's Figure 2 is ResNet-18 on CIFAR-10 stopped at 99 % train accuracy and on "
            "SVHN at 99 % and 99.9 %."
        )

    figure = plots.online_curves(ends["rounds"], published=curves, cost=config.cost)
    plots.save_captioned(figure, caption, config.out)
    return caption


if __name__ == "__main__":
    with cli.user_errors():
        print(main(tyro.cli(Config, description=__doc__)))
