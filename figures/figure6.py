"""Figure 6: online shrink-perturb (SP) from random initialisation to warm start, accuracy and time by number of images.

    python figures/figure6.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure6]

Draws runs of experiments/online.py, as PNG and PDF with the caption beside them as TXT, over the report's RI and WS
(its Figure 2a) and what the paper reached at the end, by shrink (its Figure 7, read off the image). Takes seconds. At
their settings expect SP at shrink 0.4 or 0.6 near or above RI, at a third to a half of its time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from wsjax.results import captions, plots, summary
from wsjax.scripts import cli
from wsjax.storage.records import read_run

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of online runs; several are merged where only seeds, methods and shrinks differ."""
    cost: Literal["seconds", "steps"] = "seconds"
    """What a round costs: seconds, or steps, which do not depend on the machine."""
    out: Path = HERE / "results" / "figure6"
    """The files to write, without their endings."""


def main(config: Config) -> str:
    """Draws the figure and returns its caption."""
    run = captions.merge_runs([read_run(folder) for folder in config.runs], "online")
    ends = summary.summarize_online(run.rows, {})
    settings, report, paper = (
        json.loads((HERE / "published" / f"{name}.json").read_text()) for name in ("settings", "report", "paper")
    )
    caption = "Figure 6: more images arrive every round; the parameters of the round before are shrunk and perturbed "
    caption += "(SP, by shrink), kept (WS) or drawn anew (RI). "
    own = settings["online"] | settings["online_data"]["cifar10"] | settings["online_sp"]
    if all(run.settings[name] == own[name] for name in ("dataset", "model", "threshold")):
        pool = round(own["pool"] * own["num_train"])
        curves = {**captions.published_online(report["figure2_online"]["f2c99"], pool), **paper_points(paper, pool)}
        points = plots.accuracies_at(curves, captions.common_samples(ends["rounds"]))
        caption += captions.online_caption(run, ends, own, points)
        caption += (
            " Dashed: RI and WS of the report's Figure 2a (+1,000 images a round, one seed); diamonds: where the "
            "paper's Figure 7 ends, ResNet-18 too. Both as far as this run goes; seconds are those of other machines."
        )
    else:
        curves = None
        caption += captions.online_caption(run, ends)
        caption += " No published curve: the report's Figure 6 is ResNet-18 on CIFAR-10, stopped at 99 %."

    figure = plots.online_curves(ends["rounds"], published=curves, cost=config.cost)
    plots.save_captioned(figure, caption, config.out)
    return caption


def paper_points(paper: dict[str, Any], pool: int) -> plots.Published:
    """The paper's last points of SP by (field, method)."""
    published = {}
    for name, end in paper["figure7_at_34k"].items():
        method = f"SP {float(name.removeprefix('lambda_')):g}"
        published["test_accuracy", method] = [[pool, end["accuracy"]]]
        published["train_seconds", method] = [[pool, end["seconds_per_round"]]]
    return published


if __name__ == "__main__":
    with cli.user_errors():
        print(main(tyro.cli(Config, description=__doc__)))
