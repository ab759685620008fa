"""Figure 1: warm starting (WS) against random initialisation (RI), test and train accuracy by epoch.

    python figures/figure1.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure1]

Draws runs of experiments/offline.py over the report's curves, as PNG and PDF with the caption beside them as TXT.
Takes seconds. At the report's settings expect RI near 60.3 % and WS near 58.7 %.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wsjax.results import captions, plots
from wsjax.scripts import cli
from wsjax.storage.records import read_run

HERE = Path(__file__).resolve().parent
METHODS = ("first", "RI", "WS")
ROUND = 200  # epochs of each of the report's two rounds


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of offline runs; several are merged where only seeds, methods and shrinks differ."""
    out: Path = HERE / "results" / "figure1"
    """The files to write, without their endings."""


def main(config: Config) -> str:
    """Draws the figure and returns its caption."""
    run = captions.merge_runs(
        [read_run(folder) for folder in config.runs], "offline", lambda row: row["method"] in METHODS
    )
    settings = json.loads((HERE / "published" / "settings.json").read_text())["offline"]
    report = json.loads((HERE / "published" / "report.json").read_text())

    caption = "Figure 1: RI trains on all of the data from scratch, WS first on a part of them. "
    if all(run.settings[name] == settings[name] for name in ("dataset", "model")):
        curves = published_curves(report["figure1_and_5_curves_epoch_accuracy"])
        final = {"RI": report["figure5_final"]["random"], "WS": report["figure5_final"]["warm"]}
        caption += captions.offline_caption(run, settings, final)
        caption += " Dashed: the report's curves (one seed) by the epochs of each round, as far as this run goes."
    else:
        curves = None
        caption += captions.offline_caption(run)
        caption += " No published curve: the report's Figure 1 is ResNet-18 on CIFAR-10."

    figure = plots.offline_curves(run.rows, epochs=run.epochs, published=curves)
    plots.save_captioned(figure, caption, config.out)
    return caption


def published_curves(curves: dict[str, Any]) -> plots.Published:
    """The report's curves by (field, method). It counts epochs from 0, and on through both rounds."""
    published = {}
    for panel in ("test", "train"):
        warm = np.array(curves[f"fig1_{panel}:half_then_full(WS)"])
        random = np.array(curves[f"fig1_{panel}:full(RI),shifted200"])
        first, second = np.array([1, 0]), np.array([1 - ROUND, 0])
        published[f"{panel}_accuracy", "first"] = warm[warm[:, 0] < ROUND] + first
        published[f"{panel}_accuracy", "WS"] = warm[warm[:, 0] >= ROUND] + second
        published[f"{panel}_accuracy", "RI"] = random + second
    return published


if __name__ == "__main__":
    with cli.user_errors():
        print(main(tyro.cli(Config, description=__doc__)))
