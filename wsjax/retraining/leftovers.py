"""What calls that were killed while they replaced a file left beside it: .current.json.PID.part and the like."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from wsjax.retraining.lineage import CURRENT, LINEAGE, SAMPLES
from wsjax.retraining.places import PLACES
from wsjax.storage.records import CONFIG

_OWN = "|".join(map(re.escape, (CURRENT, PLACES, LINEAGE, SAMPLES, CONFIG)))
_PART = re.compile(rf"\.(?:{_OWN})\.([0-9]+)\.part")


def remove(folder: Path) -> None:
    """Removes such files from a model folder that this process holds, unless the process that wrote them still runs.

    One may run in spite of the lock: not every file system has locks. What cannot be removed harms nothing and stays.
    """
    for path in [*folder.glob(".*.part"), *folder.glob("models/*/.*.part")]:
        match = _PART.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink() and not _runs(int(match[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether another process of this number runs; where that cannot be told it may."""
    if process == os.getpid():  # of an earlier process: in a container all have one number
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
