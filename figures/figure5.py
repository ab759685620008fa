"""Figure 5: shrink-perturb (SP) against RI and WS, test accuracy by epoch on all of the data.

    python figures/figure5.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure5]

Draws runs of experiments/offline.py over the report's curves, as PNG and PDF with the caption beside them as TXT.
Takes seconds. At the report's settings expect SP near 80.9, 64.7 and 59.7 % at shrink 0.1, 0.3 and 0.6.
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
CURVES = {"RI": "RI", "WS": "WS", "SP 0.1": "lam0.1", "SP 0.3": "lam0.3", "SP 0.6": "lam0.6"}
FINALS = {"RI": "random", "WS": "warm", "SP 0.1": "shrink_0_1", "SP 0.3": "shrink_0_3", "SP 0.6": "shrink_0_6"}


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of offline runs; several are merged where only seeds, methods and shrinks differ."""
    out: Path = HERE / "results" / "figure5"
    """The files to write, without their endings."""


def main(config: Config) -> str:
    """Draws the figure and returns its caption."""
    run = captions.merge_runs([read_run(folder) for folder in config.runs], "offline", lambda row: row["round"] == 2)
    settings = json.loads((HERE / "published" / "settings.json").read_text())
    settings = settings["offline"] | settings["offline_sp"]
    report = json.loads((HERE / "published" / "report.json").read_text())

    caption = "Figure 5: training on all of the data from scratch (RI), on from a part of them (WS), and after "
    caption += "shrink-perturb (SP, by shrink). "
    if all(run.settings[name] == settings[name] for name in ("dataset", "model")):
        curves = published_curves(report["figure1_and_5_curves_epoch_accuracy"])
        final = {method: report["figure5_final"][name] for method, name in FINALS.items()}
        caption += captions.offline_caption(run, settings, final)
        caption += (
            " Dashed: the report's curves (one seed), as far as this run goes; perturb 0.01 as run, 0.0001 in its text."
        )
    else:
        curves = None
        caption += captions.offline_caption(run)
        caption += " No published curve: the report's Figure 5 is ResNet-18 on CIFAR-10."

    figure = plots.offline_curves(run.rows, ["test_accuracy"], epochs=run.epochs, published=curves)
    plots.save_captioned(figure, caption, config.out)
    return caption


def published_curves(curves: dict[str, Any]) -> plots.Published:
    """The report's curves by (field, method). It counts epochs from 0."""
    measured = {method: np.array(curves[f"fig5_offline_sp_sigma0.01:{name}"]) for method, name in CURVES.items()}
    return {("test_accuracy", method): points + np.array([1, 0]) for method, points in measured.items()}


if __name__ == "__main__":
    with cli.user_errors():
        print(main(tyro.cli(Config, description=__doc__)))
