"""Kills the study at random moments, again and again, and compares its page with that of one which is left alone.

python tests/kills.py FOLDER --kills=200                       the newcomer's tour, in about an hour
python tests/kills.py FOLDER --kills=10 --flags --only table1  any flags of experiments/reproduce.py
"""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tyro

REPRODUCE = Path(__file__).resolve().parents[1] / "experiments" / "reproduce.py"


@dataclasses.dataclass(frozen=True)
class Config:
    """How often, how fast, and of what."""

    folder: tyro.conf.Positional[Path]
    """Where both studies go: FOLDER/alone, unless it is there already, and FOLDER/killed."""
    kills: int = 200
    """How many there are at most: the study may end before."""
    every: float = 10.0
    """The mean of the seconds between two, which are drawn from an exponential distribution."""
    seed: int = 0
    """Of what is drawn."""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A flag of reproduce.py; give it again for the next."""


def start(workdir: Path, flags: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Starts, or continues, a study; what it prints is added to WORKDIR.log."""
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(REPRODUCE), f"--workdir={workdir}", *flags], stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def jobs_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a study has started."""
    try:
        return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def kill(process: subprocess.Popen[bytes], jobs_too: bool) -> None:
    """Kills a study outright, and its jobs with it, which else are told to end by its death."""
    jobs = jobs_of(process) if jobs_too else []
    for number in (process.pid, *jobs):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def run_killed(workdir: Path, flags: tuple[str, ...], kills: int, every: float, seed: int) -> int:
    """Runs a study to its end through so many kills; returns how many there were."""
    random = np.random.default_rng(seed)
    for done in range(kills + 1):
        process = start(workdir, flags)
        try:
            code = process.wait(random.exponential(every) if done < kills else None)
        except subprocess.TimeoutExpired:
            kill(process, jobs_too=random.random() < 0.5)
            continue
        assert code == 0, workdir.with_suffix(".log").read_text()[-2000:]
        return done
    raise AssertionError


def page_of(workdir: Path) -> str:
    """A study's page without the hours that its runs took."""
    page = (workdir / "index.html").read_text()
    found = re.sub(r"<td([^>]*)>\d+\.\d\d</td>(?=\s*</tr>)", r"<td\1></td>", page)
    assert found != page
    return found


def main(config: Config) -> None:
    """Runs both and compares them."""
    config.folder.mkdir(parents=True, exist_ok=True)
    alone, killed = config.folder / "alone", config.folder / "killed"
    begin = time.monotonic()
    run_killed(alone, config.flags, 0, 0.0, 0)
    print(f"left alone: {time.monotonic() - begin:.0f} s")
    count = run_killed(killed, config.flags, config.kills, config.every, config.seed)
    same = page_of(alone) == page_of(killed)
    print(f"{count} kills, {time.monotonic() - begin:.0f} s: the page is {'the same' if same else 'ANOTHER'}")
    sys.exit(not same)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
