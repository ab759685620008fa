"""What the scripts of figures and tables share: runs by their folders in, a picture or a table with its caption out.

Imports no jax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from wsjax.scripts import cli, console
from wsjax.storage.files import user_path
from wsjax.storage.records import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsjax.results.captions import Caption
    from wsjax.results.sheets import Sheet

    Draw = Callable[..., tuple[Figure | Sheet, Caption]]
    Table = Callable[..., Sheet]


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; several are merged where only seeds and methods differ."""
    out: Path | None = None
    """The files to write, without their endings. Default: figures/results/ and the script's name."""


@dataclass(frozen=True)
class OnlineConfig(Config):
    """What to draw of online runs, and where to."""

    cost: Literal["steps", "seconds"] = "steps"
    """What a round costs: steps, or seconds, which depend on the machine and on what else ran there; of seconds the
    report's curves are drawn too."""


def run_script(
    draw: Draw, script: str, text: str | None, config_type: type[Config] = Config, *, table: Table | None = None
) -> None:
    """Draws the runs that the command line names, writes picture or table and caption, and prints the caption.

    Args:
      draw: `(runs, **options) -> (figure or sheet, caption)`, where runs are as `read_run` gives them and the options
        are the config's further fields.
      script: the script's file.
      text: what the help says first.
      config_type: the fields of the command line.
      table: `runs -> sheet`, for a figure that is a table too.
    """

    def main(config: Config) -> None:
        for line in write(draw, script, config, table).text.splitlines():
            console.say(line)

    cli.run_program(main, config_type, text)


def write(draw: Draw, script: str, config: Config, table: Table | None = None) -> Caption:
    """Draws runs, writes stem.png and stem.pdf, or stem.md and stem.tex, and stem.txt, and returns the caption.

    With a table beside the figure it writes all of them.
    """
    from wsjax.results import plots, sheets

    options = {name: value for name, value in asdict(config).items() if name not in ("runs", "out")}
    runs = [read_run(folder) for folder in config.runs]
    drawn, caption = draw(runs, **options)
    out = config.out or Path(script).resolve().parent / "results" / Path(script).stem
    save = sheets.save_captioned if isinstance(drawn, sheets.Sheet) else plots.save_captioned
    save(drawn, caption, user_path(out))  # type: ignore[arg-type]
    if table is not None:
        sheets.save(table(runs), user_path(out))
    return caption
