"""The study's jobs: which there are, what each costs, which are chosen, and running them. Imports no jax."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsjax.errors import RunError, UsageError
from wsjax.results import words
from wsjax.results.names import of_data
from wsjax.scripts import cli, console, launch, plan
from wsjax.scripts.launch import Ended, Job
from wsjax.storage.files import read_json, write_json
from wsjax.storage.records import CONFIG, RECORDS, differing

STUDY = "study.json"
"""What of a study's folder belongs to which figure."""
TOOK = "took.json"
"""The seconds that each job took here, of all calls together but those that were killed."""
LOGS = "logs"
SUBMITTED = "slurm.json"
"""Slurm's number of each job that was submitted last."""
SLURM = "slurm"
"""Folder of the files and logs of Slurm's jobs."""
FREE = (*words.WHERE, "seeds", "devices", "replicas", "stack", "checkpoint_every")
"""Settings that a job's run may have otherwise: seeds are looked at by themselves, others say how it is computed."""
LEFT = ("num_train", "num_test", "first_epochs")
"""Settings that a run tells as numbers where the job leaves them to its script or the data."""

Grid = Mapping[str, Sequence[str]]
"""Figure to jobs, each a script's name and its flags. Jobs of the same settings are one, named by the first figure."""


def make_jobs(grid: Grid, scripts: Path, workdir: Path, more: str = "") -> dict[str, list[Job]]:
    """Each figure's jobs, with what they cost by the scripts' own settings.

    Args:
      grid: see `Grid`.
      scripts: folder of the experiments' scripts.
      workdir: where runs go.
      more: flags for every job.

    Raises:
      UsageError: a script does not take its flags.
    """
    made: dict[tuple[str, str], Job] = {}
    figures: dict[str, list[Job]] = {}
    for figure, texts in grid.items():
        own: dict[str, Job] = {}
        for text in texts:
            script, *flags = shlex.split(f"{text} {more}")
            path = scripts / f"{script}.py"
            settings = parsed(path, tuple(flags))
            key = script, repr(settings)
            if key not in made:
                number = sum(job.name.split("-")[0] == figure for job in made.values())
                name = figure if number == 0 else f"{figure}-{number + 1}"
                made[key] = _job(name, path, [*flags, f"--run={name}", f"--workdir={workdir}"], settings, workdir)
            own[made[key].name] = made[key]
        figures[figure] = list(own.values())
    return figures


def _job(name: str, script: Path, flags: Sequence[str], settings: Any, workdir: Path) -> Job:
    # A script that runs several data sets has a folder for each.
    names = [f"{name}-{of_data(dataset)}" for dataset in getattr(settings, "datasets", ())] or [name]
    folders = tuple(workdir / script.stem / own for own in names)
    cost = plan.cost(script.stem, settings)
    return Job(name, (str(script), *flags), folders, cost.seconds, cost.steps, settings.seeds, _told(settings))


def _told(settings: Any) -> tuple[tuple[str, Any], ...]:
    """What a job's runs must have been run with."""
    fields = {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}
    if "datasets" in fields:  # each run has one of them as its own
        del fields["dataset"]
    if fields["num_train"] is None:
        fields["num_train"] = plan.SIZES.get(str(fields.get("dataset")))
    return tuple((name, value) for name, value in fields.items() if value is not None or name not in LEFT)


def check_runs(jobs: Sequence[Job]) -> None:
    """Raises UsageError where a folder holds a run of other seeds or settings than its job's."""
    for job in jobs:
        for folder in job.folders:
            if (folder / CONFIG).exists():
                _check_run(job, folder, read_json(folder / CONFIG).get("config", {}))


def _check_run(job: Job, folder: Path, there: Mapping[str, Any]) -> None:
    seeds = there.get("seeds")
    if seeds is not None and list(seeds) != list(job.seeds):
        theirs, own = (" ".join(map(str, each)) for each in (seeds, job.seeds))
        raise UsageError(
            f"{folder} is a run of the seeds {theirs}, and {job.name} here is of {own}: "
            "give another --workdir, or the same seeds: leave --seeds out, or give as many as there"
        )
    here = json.loads(json.dumps(dict(job.settings)))
    differ = differing({name: value for name, value in there.items() if name in here}, here)
    if differ:
        told = "; ".join(f"{name} {one} there, {other} here" for name, (one, other) in list(differ.items())[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UsageError(
            f"{folder} is a run of other settings than {job.name} here ({told}{more}): "
            "give another --workdir, or the --scale that it was run at"
        )


@functools.cache
def _script(path: Path) -> Any:
    """A script as a module, for its settings."""
    spec = importlib.util.spec_from_file_location(f"wsjax_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where its annotations are looked up
    spec.loader.exec_module(module)
    return module


def parsed(path: Path, flags: Sequence[str]) -> Any:
    """A script's settings by its flags, read and checked as by the script. Raises UsageError where it would."""
    script = _script(path)
    default = cli.default_of(script.defaults, flags)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            settings = cli.parse(default, flags)
        script.check(settings)
    except SystemExit as error:
        raise UsageError(f"{path.name} does not take {shlex.join(flags)}") from error
    except UsageError as error:
        raise UsageError(f"{path.name} does not take {shlex.join(flags)}: {error}") from error
    return settings


def select(figures: Mapping[str, list[Job]], only: Sequence[str]) -> dict[str, list[Job]]:
    """The figures asked for; all where none is. Raises UsageError for one that there is not."""
    return {cli.choose("figure", name, list(figures)): figures[name] for name in only or figures}


def speed(jobs: Sequence[Job], workdir: Path) -> float:
    """How much longer jobs take here than guessed: of those that are complete; 1 where none is."""
    took = read_took(workdir)
    known = [(took[job.name], job.seconds) for job in jobs if job.done and job.name in took]
    return sum(own for own, _ in known) / sum(guess for _, guess in known) if known else 1.0


def read_took(workdir: Path) -> dict[str, float]:
    """The seconds that each job took so far."""
    return read_json(workdir / TOOK, {})


def within(
    jobs: Sequence[Job], budget: float | None, factor: float, parallel: int
) -> tuple[list[Job], list[Job], float]:
    """The jobs that fit into so many seconds, in their order, those that do not, and the seconds that the former take.

    So many run side by side, and the next begins as soon as one of them ends.
    """
    chosen, left_out, ends = [], [], [0.0] * parallel
    for job in jobs:
        first = ends.index(min(ends))
        end = ends[first] + job.seconds * factor
        if budget is None or end <= budget:
            chosen.append(job)
            ends[first] = end
        else:
            left_out.append(job)
    return chosen, left_out, max(ends)


def write_study(figures: Mapping[str, Sequence[Job]], workdir: Path) -> None:
    """Writes which runs belong to which figure, beside what other calls wrote."""
    path = workdir / STUDY
    known = read_json(path, {})
    own = {
        figure: [str(folder.relative_to(workdir)) for job in jobs for folder in job.folders]
        for figure, jobs in figures.items()
    }
    if known != known | own:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known | own)


def run(jobs: Sequence[Job], workdir: Path, factor: float, parallel: int) -> list[Ended]:
    """Runs jobs on this machine under one progress bar; returns those that failed."""
    if not jobs:
        return []
    total = sum(job.seconds for job in jobs) * factor
    over = 0.0
    now: list[tuple[Job, float]] = []

    with console.progress(total / parallel) as advance:
        advance(0, "starting")
        ended_work = 0.0

        def observe(running: Sequence[tuple[Job, float]], ended: Ended | None) -> None:
            nonlocal over, ended_work
            now[:] = running
            if ended is not None:
                ended_work += ended.job.seconds * factor
                _add_took(workdir, {ended.job.name: ended.seconds})
            # A job counts as its guess at most, until it ends.
            work = ended_work + sum(min(seconds, 0.95 * job.seconds * factor) for job, seconds in running)
            step = max(work / parallel - over, 0.0)
            over += step
            advance(step, ", ".join(job.name for job, _ in running) or "ending")

        try:
            ended = launch.run_local(jobs, workdir / LOGS, parallel, observe)
        finally:  # of a call that is stopped too, or a job would seem as fast as its last call
            _add_took(workdir, {job.name: seconds for job, seconds in now})
    return [end for end in ended if not end.job.done]  # what it did not do is all that counts


def _add_took(workdir: Path, seconds: Mapping[str, float]) -> None:
    if seconds:
        took = read_took(workdir)  # another call may have written
        write_json(workdir / TOOK, took | {name: took.get(name, 0.0) + own for name, own in seconds.items()})


def read_submitted(workdir: Path) -> dict[str, str]:
    """Slurm's number of each job that was submitted last, by the job's name."""
    return read_json(workdir / SUBMITTED, {})


def under_way(jobs: Sequence[Job], workdir: Path) -> set[str]:
    """The names of the jobs that a process works in, or that Slurm has in its queue; see `launch.in_queue`."""
    submitted = read_submitted(workdir)
    queue = launch.in_queue() if submitted else set()
    return {job.name for job in jobs if job.held or submitted.get(job.name) in queue}


def submit(jobs: Sequence[Job], workdir: Path, parallel: int, **options: Any) -> dict[str, str]:
    """Submits jobs to Slurm and writes down their numbers, which it returns; see `launch.run_slurm`."""
    numbers = launch.run_slurm(jobs, workdir / SLURM, parallel, **options)
    write_json(workdir / SUBMITTED, read_submitted(workdir) | numbers)
    return numbers


def states(jobs: Sequence[Job], workdir: Path) -> list[list[str]]:
    """A line a job: name, state, how far, seconds so far, and its log."""
    took, submitted, queued = read_took(workdir), read_submitted(workdir), set()
    with contextlib.suppress(RunError):  # how far jobs are can be told without Slurm
        queued = under_way(jobs, workdir)
    lines = []
    for job in jobs:
        records = [path for folder in job.folders if (path := folder / RECORDS).exists()]
        rows = sum(path.read_bytes().count(b"\n") for path in records)
        state = "queued" if job.name in queued else "begun" if rows else "waiting"
        state = "complete" if job.done else "running" if job.held else state
        logs = [launch.log_of(job, workdir / LOGS)]
        if job.name in submitted:
            logs.append(launch.slurm_log(submitted[job.name], workdir / SLURM))
        log = max((path for path in logs if path.exists()), key=lambda path: path.stat().st_mtime, default="")
        seconds = console.duration(took[job.name]) if job.name in took else ""
        lines.append([job.name, state, f"{rows:,}", seconds, str(log)])
    return lines


def explain(failed: Sequence[Ended], workdir: Path) -> None:
    """Says which jobs failed, with the ends of their logs; raises RunError where one did."""
    for end in failed:
        log = launch.log_of(end.job, workdir / LOGS)
        console.say(f"FAILED: {end.job.name} ended with {end.code}. The end of {log}:")
        for line in launch.last_lines(log):
            console.say(f"    {line}")
    if failed:
        raise RunError(f"{len(failed)} jobs failed, the others are complete; the same command tries them again")
