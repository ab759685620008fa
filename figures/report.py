"""The study's page: verdicts on the claims, every figure and table, and how it was run, as one HTML file.

Beside it, the verdicts as a table in Markdown.

    python figures/report.py [STUDY_FOLDER ...] [--out figures/results/index.html]

Reads the folders of experiments/reproduce.py, by default figures/results, and draws all from their records. The file
needs no network. Takes a minute at most.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
import runpy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro

from wsjax.errors import RunError
from wsjax.results import claims, page, plots
from wsjax.results.page import Shown
from wsjax.results.sheets import Sheet
from wsjax.scripts import cli, console
from wsjax.scripts.study import STUDY
from wsjax.storage.files import read_json, user_path, write_whole
from wsjax.storage.records import RunRecords

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Config:
    """What to show, and where to."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of studies. Default: figures/results."""
    out: Path | None = None
    """The file to write. Default: index.html in the first of the folders."""


def main(config: Config) -> None:
    """Writes the page and says where it is."""
    folders = [user_path(folder) for folder in config.folders] or [HERE / "results"]
    console.say(f"Page: {write(folders, user_path(config.out) if config.out else folders[0] / 'index.html')}")


def write(folders: Sequence[Path], out: Path) -> Path:
    """Draws the page of all studies in some folders, and writes what it says beside it as Markdown, verdicts.md.

    Raises:
      RunError: a run is damaged, or there is none.
    """
    found = {run.folder: run for folder in folders for run in claims.read_study(folder)}
    runs = list(found.values())
    if not runs:
        raise RunError(f"there is no run in {', '.join(map(str, folders))}: experiments/reproduce.py makes some")
    known = read_json(HERE / "published" / "claims.json")["claims"]
    out.parent.mkdir(parents=True, exist_ok=True)
    verdicts = claims.verdicts(known, runs)
    write_whole(out, page.render(verdicts, figures(folders, found), runs))
    write_whole(out.with_name("verdicts.md"), page.markdown(verdicts))
    return out


def figures(folders: Sequence[Path], runs: Mapping[Path, RunRecords]) -> list[Shown]:
    """Every figure and table that the studies have runs of, in the report's order; of several studies each one's."""
    found: list[Shown] = []
    for study in sorted({path for folder in folders for path in folder.rglob(STUDY)}):
        for name, own in read_json(study).items():
            paths = [study.parent / run for run in own]
            if present := [runs[path] for path in paths if path in runs]:
                found.append(show(name, present)._replace(study=study.parent.name))
    counts = Counter(shown.name for shown in found)
    found = [shown if counts[shown.name] > 1 else shown._replace(study="") for shown in found]
    return sorted(found, key=lambda shown: page.place(shown.name))


def show(name: str, runs: Sequence[RunRecords]) -> Shown:
    """A figure as the page has it; where it cannot be drawn, the caption says why."""
    script = runpy.run_path(str(HERE / f"{name}.py"))
    try:
        drawn, caption = script["draw"](runs)
        table = script["table"](runs) if "table" in script else None
    except RunError as error:
        return Shown(name, [f"Not drawn: {error}"])
    lines = caption.text.splitlines()
    if isinstance(drawn, Sheet):
        return Shown(name, lines, table=drawn)
    return Shown(name, lines, plots.png(drawn, 160), table)


if __name__ == "__main__":
    cli.run_program(main, Config, __doc__)
