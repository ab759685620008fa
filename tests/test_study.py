"""The study's jobs: which there are, what they cost, and what happens when they fail or are killed."""

import dataclasses
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsjax.data import datasets
from wsjax.data.embedded import EMBEDDED
from wsjax.errors import RunError, UsageError
from wsjax.scripts import cli, launch, plan, study
from wsjax.storage.files import read_json
from wsjax.storage.lock import hold

ROOT = Path(__file__).resolve().parents[1]
REPRODUCE = ROOT / "experiments" / "reproduce.py"

# A script that takes the settings of offline.py, and counts instead of training: a row every 20 ms.
SCRIPT = """
import dataclasses, sys, time
from wsjax.scripts import cli, config, console, ending
from wsjax.storage.files import write_json
from wsjax.storage.lock import hold

@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    fraction: float = 0.5
    first_epochs: int | None = None

def defaults(dataset):
    return Config(epochs=5)

def check(settings):
    config.check_config(settings, defaults(None))

def main(settings):
    folder = settings.workdir / "offline" / settings.run
    with hold(folder):
        if settings.epochs == 13:
            sys.exit("this one fails")
        rows = folder / "records.jsonl"
        with console.progress(settings.epochs) as advance:
            while (done := rows.read_bytes().count(b"\\n") if rows.exists() else 0) < settings.epochs:
                time.sleep(0.02)
                with rows.open("a") as file:
                    file.write(f"{done}\\n")
                advance(1, "row")
        write_json(folder / "summary.json", {"rows": done})

if __name__ == "__main__":
    cli.run_script(main, defaults, "")
"""
RUN = """
import sys
from pathlib import Path
from wsjax.scripts import cli, console, study
scripts, workdir, grid = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
with cli.user_errors():
    figures = study.make_jobs(grid, scripts, workdir)
    jobs = [job for own in figures.values() for job in own if not job.done]
    study.explain(study.run(jobs, workdir, 1.0, 2), workdir)
"""


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "offline.py").write_text(SCRIPT)
    return folder


def make(scripts, grid, more=""):
    return study.make_jobs(grid, scripts, scripts.parent / "work", more)


def test_jobs_of_one_text_are_one_job_of_the_first_figures_name(scripts):
    figures = make(scripts, {"figure5": ["offline", "offline --epochs=7"], "figure1": ["offline"]}, "--seeds 0 1")
    assert [job.name for job in figures["figure5"]] == ["figure5", "figure5-2"]
    assert figures["figure1"] == figures["figure5"][:1]
    job = figures["figure5"][1]
    assert job.command[0] == str(scripts / "offline.py")
    assert job.command[1:] == (
        "--epochs=7",
        "--seeds",
        "0",
        "1",
        "--run=figure5-2",
        f"--workdir={scripts.parent / 'work'}",
    )
    assert job.folders == (scripts.parent / "work" / "offline" / "figure5-2",)


def test_a_flag_that_a_script_does_not_take_is_told_at_once(scripts):
    with pytest.raises(UsageError, match=r"offline\.py does not take --epoch=7$"):
        make(scripts, {"figure5": ["offline --epoch=7"]})
    with pytest.raises(UsageError, match=r"offline\.py does not take --epochs=0: --epochs must be positive, not 0$"):
        make(scripts, {"figure5": ["offline --epochs=0"]})
    with pytest.raises(UsageError, match=r"--learning_rate has no use here: give the cells' own"):
        study.make_jobs({"figure4": ["hyperparameters --learning_rate=5"]}, REPRODUCE.parent, scripts.parent)


def test_twice_the_epochs_cost_about_twice_as_much(scripts):
    one, two = (make(scripts, {"f": [f"offline --dataset=cifar10 --model=resnet18 --epochs={n}"]})["f"][0].seconds
                for n in (100, 200))  # fmt: skip
    assert one > 1000
    assert 1.9 < two / one <= 2


def test_the_cost_is_that_of_the_networks_and_images_that_a_script_trains_on():
    def seconds(text):
        (job,) = study.make_jobs({"f": [text]}, REPRODUCE.parent, Path("work"))["f"]
        return job.seconds - plan.START

    mlp, resnet, both = (
        seconds(f"shrink_only --dataset=cifar10 --networks {networks}")
        for networks in ("relu", "resnet18", "relu resnet18")
    )
    assert resnet > 100 * mlp
    assert both == pytest.approx(mlp + resnet)
    small, large = (
        seconds(f"transfer --datasets {sets} --model=resnet18 --num_train=1000 --epochs=8 --first_epochs=8 --seeds 0")
        for sets in ("digits_low digits_high", "cifar10 cifar100")
    )
    assert large > 10 * small


def test_what_is_asked_for_is_run_and_what_there_is_not_is_named(scripts):
    figures = make(scripts, {"figure5": ["offline"], "table2": ["offline --epochs=7"]})
    assert list(study.select(figures, ["table2"])) == ["table2"]
    assert list(study.select(figures, [])) == ["figure5", "table2"]
    with pytest.raises(UsageError, match="unknown figure 'table3'; available: figure5, table2; did you mean 'table2'"):
        study.select(figures, ["table3"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("10min", 600), ("8h", 28800), ("2d", 172800)]
)
def test_times(text, seconds):
    assert cli.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "0h", "h", "8 h", "-1h", "1w", "nan s"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match=re.escape(f"a time is written as 90s, 30m, 8h or 2d, not '{text}'")):
        cli.seconds_of(text)


def test_a_budget_takes_what_fits_in_order():
    jobs = [launch.Job(name, (), (), seconds) for name, seconds in (("a", 30), ("b", 100), ("c", 20))]
    a, b, c = jobs
    assert study.within(jobs, 60, 1.0, 1) == ([a, c], [b], 50)
    assert study.within(jobs, 60, 2.0, 1) == ([a], [b, c], 60)  # this machine is half as fast
    assert study.within(jobs, None, 1.0, 1) == (jobs, [], 150)


def test_jobs_side_by_side_take_as_long_as_the_longest_row_of_them():
    jobs = [a, b, c] = [launch.Job(name, (), (), seconds) for name, seconds in (("a", 30), ("b", 100), ("c", 20))]
    assert study.within(jobs, None, 1.0, 2) == (jobs, [], 100)  # c after a, beside b
    assert study.within(jobs, 30, 1.0, 2) == ([a, c], [b], 30)
    assert study.within(jobs, 99, 1.0, 16) == ([a, c], [b], 30)  # b alone takes longer
    assert study.within([], None, 1.0, 2) == ([], [], 0)


def test_speed_is_what_complete_jobs_took_over_what_was_guessed(scripts):
    figures = make(scripts, {"a": ["offline"], "b": ["offline --epochs=7"]})
    jobs, workdir = [job for own in figures.values() for job in own], scripts.parent / "work"
    assert study.speed(jobs, workdir) == 1.0
    jobs[0].folders[0].mkdir(parents=True)
    (jobs[0].folders[0] / "summary.json").write_text("{}")
    (workdir / study.TOOK).write_text(json.dumps({"a": 3 * jobs[0].seconds, "b": 9.0}))
    assert study.speed(jobs, workdir) == pytest.approx(3.0)


def start(scripts, grid):
    command = [sys.executable, "-c", RUN, str(scripts), str(scripts.parent / "work"), repr(grid)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def test_a_job_that_fails_leaves_the_others_alone_and_is_told(scripts):
    run = start(scripts, {"a": ["offline --epochs=13"], "b": ["offline --epochs=2"], "c": ["offline --epochs=3"]})
    out, err = run.communicate(timeout=120)
    workdir = scripts.parent / "work"
    assert run.returncode == 2
    assert err == "error: 1 jobs failed, the others are complete; the same command tries them again\n"
    assert f"FAILED: a ended with 1. The end of {workdir / 'logs' / 'a.log'}:\n" in out
    assert out.endswith("    this one fails\n")
    assert sorted(read_json(workdir / study.TOOK)) == ["a", "b", "c"]
    figures = make(scripts, {"a": ["offline --epochs=13"], "b": ["offline --epochs=2"]})
    jobs = [job for own in figures.values() for job in own]
    states = {name: state for name, state, *_ in study.states(jobs, workdir)}
    assert states == {"a": "waiting", "b": "complete"}


def test_why_jobs_failed_is_told_also_where_there_is_nothing_to_draw(tmp_path, monkeypatch, capsys):
    own = runpy.run_path(str(REPRODUCE))
    monkeypatch.setattr(study, "run", lambda jobs, *_: [launch.Ended(job, 1, 1.0) for job in jobs])
    with pytest.raises(RunError, match="1 jobs failed"):
        own["main"](own["Config"](only=("figure8",), seeds=1, workdir=tmp_path))
    assert "FAILED: figure8 ended with 1." in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_goes_on_where_it_was(scripts, number):
    """Its jobs end with it, having told how far they are; the next call waits for them and continues."""
    grid = {name: [f"offline --epochs={epochs}"] for name, epochs in (("a", 200), ("b", 201), ("c", 3))}
    records = scripts.parent / "work" / "offline" / "a" / "records.jsonl"
    run, deadline = start(scripts, grid), time.monotonic() + 60
    while not (records.exists() and len(records.read_bytes()) > 20):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    took = study.read_took(scripts.parent / "work")
    assert sorted(took) == {signal.SIGKILL: [], signal.SIGTERM: ["a", "b"]}[number]
    again = start(scripts, grid)
    out, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (0, ""), out
    for name, epochs in (("a", 200), ("b", 201), ("c", 3)):
        rows = (scripts.parent / "work" / "offline" / name / "records.jsonl").read_text().split()
        assert rows == [str(i) for i in range(epochs)]
    assert (scripts.parent / "work" / "logs" / "a.log").read_text().count("$ python") == 2
    assert all(study.read_took(scripts.parent / "work")[name] > took.get(name, 0.0) for name in ("a", "b", "c"))


def test_the_logs_of_a_study_under_way_are_its_own(scripts):
    assert launch.last_lines(scripts / "missing.log") == []
    (scripts / "x.log").write_bytes(b"\xff one\n" + b"x" * 20_000 + b"\ntwo\nthree\n")
    assert launch.last_lines(scripts / "x.log", 2) == ["two", "three"]


def reproduce(*arguments):
    return subprocess.run([sys.executable, str(REPRODUCE), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(("scale", "least"), [("digits", 11), ("cpu", 11), ("long", 4), ("full", 11)])
def test_the_whole_grid_is_planned_without_jax(tmp_path, scale, least):
    code = (
        "import runpy, sys; sys.modules['jax'] = None;"
        f"sys.argv = ['x', '--scale={scale}', '--dry_run', '--workdir={tmp_path}'];"
        f"runpy.run_path({str(REPRODUCE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert re.fullmatch(rf"0 of {len(lines)} jobs are complete; {len(lines)} to run, about .*", first)
    assert len(lines) >= least
    command = r"python .*/experiments/\w+\.py .*--run=\w+.*  # about [\d,]+ steps, \d+"
    assert all(re.match(command, line) for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scale=huge",), "unknown scale 'huge'; available: digits"),
        (("--launcher=pbs",), "unknown launcher 'pbs'; available: local, slurm"),
        (("--only", "figure99"), "unknown figure 'figure99'; available: figure5"),
        (("--seeds=0",), "--seeds must be positive, not 0"),
        (("--partition=gpu",), "--partition has no use without --launcher=slurm; leave it out, or add that"),
        (("--gpus_per_job=2",), "--gpus_per_job has no use without --launcher=slurm"),
        (("--parallel=2",), "--parallel has no use without --launcher=slurm"),
        (("--launcher=slurm", "--jobs=2"), "--jobs has no use without --launcher=local"),
        (("--workdir=",), "--workdir is empty: give a path, or leave it out"),
        (("--jobs=-1",), "--jobs must be positive, not -1"),
        (("--budget=soon",), "a time is written as 90s, 30m, 8h or 2d, not 'soon'"),
        (("--time=0h",), "a time is written as 90s, 30m, 8h or 2d, not '0h'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = reproduce("--workdir", tmp_path, *arguments)
    assert done.returncode == 2
    assert re.match(f"error: {re.escape(message)}.*\n$", done.stderr)


def test_a_job_of_the_tour_runs_and_the_page_shows_it(tmp_path):
    done = reproduce("--only", "table1", "--seeds", 2, "--budget=20s", "--workdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out, for they do not fit into 20s: table1-2, table1-3, table1-4" in done.stdout
    page = (tmp_path / "index.html").read_text()
    assert "Table 1" in page
    assert "table1</td><td>offline" in page.replace("\n", "")
    again = reproduce("--only", "table1", "--seeds", 2, "--status", "--workdir", tmp_path)
    assert re.search(r"table1 +complete", again.stdout)
    assert re.search(r"table1-2 +waiting", again.stdout)


def test_a_run_of_other_settings_is_not_taken_for_the_jobs(scripts):
    (job,) = make(scripts, {"figure5": ["offline --num_train=50 --devices=2"]})["figure5"]
    (folder,) = job.folders
    folder.mkdir(parents=True)
    stored = {"seeds": [0], "data": "x", "gone": 1, **json.loads(json.dumps(dict(job.settings))), "num_test": 60}
    for name in ("bias", "probes"):  # which older versions did not have
        del stored[name]
    (folder / "config.json").write_text(json.dumps({"config": stored | {"devices": 4, "workdir": "other"}}))
    study.check_runs([job])
    (folder / "config.json").write_text(json.dumps({"config": stored | {"epochs": 9, "num_train": 60}}))
    said = (
        r"figure5 is a run of other settings than figure5 here \((epochs 9 there, 5 here|num_train 60 there, 50 here); "
    )
    with pytest.raises(UsageError, match=said):
        study.check_runs([job])


def test_a_run_of_another_scale_is_refused(tmp_path):
    folder = tmp_path / "gradients" / "figure8"
    folder.mkdir(parents=True)
    settings = dataclasses.asdict(runpy.run_path(str(ROOT / "experiments" / "gradients.py"))["DIGITS"])
    stored = {name: value for name, value in settings.items() if not isinstance(value, Path)} | {"seeds": [0]}
    (folder / "config.json").write_text(json.dumps({"config": stored | {"num_train": 600, "num_test": 1197}}))
    (folder / "summary.json").write_text("{}")
    flags = ("--only", "figure8", "--seeds", 1, "--workdir", tmp_path, "--dry_run")
    assert reproduce("--scale=digits", *flags).stdout.startswith("1 of 1 jobs are complete")
    done = reproduce("--scale=cpu", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "figure8 is a run of other settings than figure8 here (dataset digits there, cifar10 here; " in done.stderr


def test_the_known_sizes_are_those_of_the_embedded_sets():
    assert {name: len(datasets.load(name).train_labels) for name in EMBEDDED} == {
        name: plan.SIZES[name] for name in EMBEDDED
    }


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`reproduce` of one job, Slurm's queue, and what was submitted and drawn."""
    own = runpy.run_path(str(REPRODUCE))
    queue, seen = set(), []

    def run_slurm(jobs, *_, **__):
        assert jobs
        seen.append([job.name for job in jobs])
        return {job.name: f"7_{number}" for number, job in enumerate(jobs)}

    monkeypatch.setattr(launch, "run_slurm", run_slurm)
    monkeypatch.setattr(launch, "in_queue", lambda: queue)
    own["main"].__globals__["draw"] = lambda workdir: seen.append("page")
    config = own["Config"](only=("figure8", "figure2"), seeds=1, launcher="slurm", workdir=tmp_path)
    return lambda **more: own["main"](dataclasses.replace(config, **more)), queue, seen


def test_what_waits_in_slurms_queue_is_not_submitted_again(slurm, tmp_path, capsys):
    main, queue, seen = slurm
    main()
    queue.add("7_0")
    main()
    with hold(tmp_path / "online" / "figure2"):
        main()
    assert seen == [["figure8", "figure2"], ["figure2"]]
    assert "1 jobs wait or run already, and are not submitted again: figure8" in capsys.readouterr().out
    (tmp_path / "slurm").mkdir()
    log = tmp_path / "slurm" / "7_0_0_log.out"
    log.touch()
    main(status=True)
    assert re.search(rf"figure8 +queued .*{log}", capsys.readouterr().out)


def test_slurms_queue_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="Slurm does not tell which jobs are in its queue"):
        launch.in_queue()
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 7_0\necho 8\n")
    (tmp_path / "squeue").chmod(0o755)
    assert launch.in_queue() == {"7_0", "8"}


def test_the_page_is_drawn_when_nothing_is_left_to_submit(slurm, tmp_path):
    main, _, seen = slurm
    for folder in (tmp_path / "gradients" / "figure8", tmp_path / "online" / "figure2"):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    main()
    assert seen == ["page"]


def test_two_calls_do_not_work_in_one_folder(tmp_path):
    with hold(tmp_path):
        done = reproduce("--only", "table1", "--seeds", 1, "--budget=1s", "--workdir", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"error: {tmp_path} is in use by pid {os.getpid()} on host" in done.stderr


def test_a_job_that_is_done_has_not_failed(scripts, monkeypatch):
    (job,) = make(scripts, {"figure5": ["offline"]})["figure5"]
    workdir = scripts.parent / "work"
    monkeypatch.setattr(launch, "run_local", lambda *_: [launch.Ended(job, 143, 1.0)])
    assert len(study.run([job], workdir, 1.0, 1)) == 1
    job.folders[0].mkdir(parents=True)
    (job.folders[0] / "summary.json").write_text("{}")
    assert study.run([job], workdir, 1.0, 1) == []


def test_jobs_that_differ_in_seeds_alone_are_one_where_all_have_the_same(scripts):
    grid = {"figure5": ["offline --seeds 0 1", "offline --seeds 2 3"], "figure1": ["offline --seeds=4"]}
    assert [[job.name for job in own] for own in make(scripts, grid).values()] == [
        ["figure5", "figure5-2"],
        ["figure1"],
    ]
    assert [[job.name for job in own] for own in make(scripts, grid, "--seeds 0").values()] == [
        ["figure5"],
        ["figure5"],
    ]


def test_a_run_of_other_seeds_is_not_taken_for_the_jobs(scripts):
    (job,) = make(scripts, {"figure5": ["offline --seeds 0 1"]})["figure5"]
    (folder,) = job.folders
    study.check_runs([job])
    folder.mkdir(parents=True)
    for seeds in ([0, 1], [0, 1, 2]):
        (folder / "config.json").write_text(json.dumps({"config": dict(job.settings) | {"seeds": seeds}}))
        if seeds == [0, 1]:
            study.check_runs([job])
    with pytest.raises(
        UsageError, match=r"figure5 is a run of the seeds 0 1 2, and figure5 here is of 0 1: give anoth"
    ):
        study.check_runs([job])
