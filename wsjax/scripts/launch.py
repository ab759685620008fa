"""Runs jobs, each a command of its own with a log: side by side on this machine, or through Slurm by submitit."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsjax.errors import RunError, UsageError
from wsjax.storage.lock import is_held
from wsjax.storage.records import SUMMARY

POLL = 0.2  # seconds between two looks at the jobs that run
GRACE = 12.0  # seconds that a job has to write its checkpoint when it is told to end
_PDEATHSIG = 1  # of prctl


class Job(NamedTuple):
    """A command that may be given again until it is done.

    Attributes:
      name: of its run's folder and log.
      command: without the interpreter.
      folders: where it writes; it is done when each holds summary.json.
      seconds: about what it takes.
      steps: about how many training steps it has.
      seeds: those of its runs.
      settings: names and values of what else its runs must have been run with.
    """

    name: str
    command: tuple[str, ...]
    folders: tuple[Path, ...]
    seconds: float
    steps: float = 0.0
    seeds: tuple[int, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run."""
        return all((folder / SUMMARY).exists() for folder in self.folders)

    @property
    def held(self) -> bool:
        """Whether a process works in it."""
        return any(map(is_held, self.folders))


class Ended(NamedTuple):
    """How a job ended: its exit code, and the seconds that this call of it took."""

    job: Job
    code: int
    seconds: float


def run_local(
    jobs: Iterable[Job], logs: Path, parallel: int, observe: Callable[[Sequence[tuple[Job, float]], Ended | None], None]
) -> list[Ended]:
    """Runs jobs in processes, so many side by side, in their order; one that fails leaves the others alone.

    Args:
      jobs: those to run.
      logs: folder for what they print, one file each, added to.
      parallel: the most that run at a time.
      observe: called now and then with the jobs that run and the seconds since each began, and with each that ends.
        What it raises ends the jobs: they get SIGTERM, and time to write their checkpoints.
    """
    waiting, running, ended = list(jobs), {}, []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[job] = _start(job, logs), time.monotonic()
            for job, (process, begin) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    ended.append(Ended(job, process.returncode, time.monotonic() - begin))
                    observe(_elapsed(running), ended[-1])
            observe(_elapsed(running), None)
            time.sleep(POLL)
    finally:
        _end([process for process, _ in running.values()])
    return ended


def log_of(job: Job, logs: Path) -> Path:
    """Where a job's output goes."""
    return logs / f"{job.name}.log"


def last_lines(log: Path, count: int = 5) -> list[str]:
    """The last lines of a log."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 10_000, 0))
        return file.read().decode(errors="replace").splitlines()[-count:]


class Command:
    """A job as submitit calls it: it runs the command, and is queued again when Slurm takes its node or its time.

    Slurm's signals reach the command itself: of SIGTERM it writes its checkpoint and ends.
    """

    def __init__(self, command: Sequence[str], folder: Path):
        self.command, self.folder = list(command), folder

    def __call__(self) -> int:
        """Runs the command to its end; raises RunError where it fails."""
        self._process = subprocess.Popen([sys.executable, *self.command], cwd=self.folder, preexec_fn=_ignore_notice)
        # submitit asks for the checkpoint in a signal's handler on this thread. `wait` holds a lock that the handler's
        # own `wait` would never get, so it comes only when the command has ended.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        code = self._process.wait()
        if code == 128 + signal.SIGTERM:  # Slurm is about to end this process too: the job has not failed
            time.sleep(GRACE)
        if code:
            raise RunError(f"{' '.join(self.command)} ended with {code}")
        return code

    def checkpoint(self) -> Any:
        """What submitit queues when time runs out: the same again, which continues."""
        from submitit.helpers import DelayedSubmission

        _end([self._process])
        return DelayedSubmission(Command(self.command, self.folder))


def _ignore_notice() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # by which Slurm tells submitit that time runs out


def run_slurm(jobs: Sequence[Job], folder: Path, parallel: int, **options: Any) -> dict[str, str]:
    """Submits jobs as one array through submitit; returns Slurm's number of each, by the job's name.

    Args:
      jobs: those to run; each must be free of others.
      folder: for submitit's files and logs.
      parallel: the most that run at a time.
      options: of sbatch, as submitit names them ("slurm_partition", "timeout_min", ...); None is left out.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--launcher=slurm needs submitit: pip install 'wsjax[slurm]'") from error
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=100)
    given = {name: value for name, value in options.items() if value is not None}
    executor.update_parameters(array_parallelism=parallel, additional_parameters={"requeue": True}, **given)
    with executor.batch():
        submitted = [executor.submit(Command(job.command, Path.cwd())) for job in jobs]
    return {job.name: own.job_id for job, own in zip(jobs, submitted, strict=True)}


def slurm_log(number: str, folder: Path) -> Path:
    """Where the output of a job goes that `run_slurm` submitted, by Slurm's number."""
    return folder / f"{number}_0_log.out"


def in_queue() -> set[str]:
    """Slurm's numbers of all jobs that wait or run. Raises RunError where it cannot be asked."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(
            f"Slurm does not tell which jobs are in its queue ({error}); try again when squeue does"
        ) from error
    return set(asked.stdout.split())


def _start(job: Job, logs: Path) -> subprocess.Popen[bytes]:
    """Starts a job, once what an earlier call of this program left has let go of its folder."""
    deadline = time.monotonic() + GRACE
    while job.held and time.monotonic() < deadline:
        time.sleep(POLL)
    with log_of(job, logs).open("ab") as log:
        log.write(f"$ python {' '.join(job.command)}\n".encode())
        log.flush()
        # A group of its own: Ctrl-C is for this program, which then ends its jobs.
        return subprocess.Popen(
            [sys.executable, *job.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=_end_with_parent,
        )  # fmt: skip


def _end_with_parent() -> None:
    """Has a new process told to end when the one that started it is killed."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it
    if prctl is not None:
        prctl(_PDEATHSIG, signal.SIGTERM)


def _elapsed(running: dict[Job, Any]) -> list[tuple[Job, float]]:
    now = time.monotonic()
    return [(job, now - begin) for job, (_, begin) in running.items()]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tells processes to end, and kills those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
