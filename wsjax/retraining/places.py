"""Where the data files of the newest model are now: some may have moved since it was trained.

    MODEL/places.json          {"model": 3, "files": [{"path": ..., "sha256": ..., "images": 80}, ...]}

A model is never changed once it has its number, so that its lineage goes on telling the old places. This file tells the
new ones until the next model is trained, whose own lineage has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsjax.errors import RunError
from wsjax.retraining.lineage import files_fault
from wsjax.storage.files import read_json, write_json
from wsjax.storage.rows import Row

PLACES = "places.json"


def known_files(folder: Path, lineage: Mapping[str, Any], say: Callable[[str], None]) -> Sequence[Row]:
    """The data files that a model was trained on, where they were found last.

    Nothing depends on what was noted: where it cannot be read, that is told, and the lineage's places count.
    """
    path = folder / PLACES
    try:
        noted = read_json(path, missing={})
    except RunError as error:
        say(f"{error}; till then files count as where they were trained on")
        return lineage["files"]
    if noted.get("model") != lineage["model"]:  # it was noted of another one
        return lineage["files"]
    if wrong := files_fault(noted):
        say(f"{path} is damaged: {wrong}; remove it; till then files count as where they were trained on")
        return lineage["files"]
    return noted["files"]


def keep(folder: Path, number: int, known: Sequence[Row], present: Sequence[Row]) -> None:
    """Notes where the known files are now of which those present are, if one has moved.

    Args:
      folder: the model folder.
      number: of the model that was trained on the known files.
      known: a row a file, at the places known so far.
      present: a row a file that was read.
    """
    files = moved(known, present)
    if [row["path"] for row in files] != [row["path"] for row in known]:
        write_json(folder / PLACES, {"model": number, "files": files})


def moved(known: Sequence[Row], present: Sequence[Row]) -> list[Row]:
    """The known files where they are: one that is missing has moved to where a new one has its content."""
    old, here = {row["path"] for row in known}, {row["path"] for row in present}
    new = {row["sha256"]: row["path"] for row in reversed(present) if row["path"] not in old}
    return [row if row["path"] in here else {**row, "path": new.get(row["sha256"], row["path"])} for row in known]
