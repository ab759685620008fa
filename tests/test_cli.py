"""The command line: a user's error is one line and exit code 2, a bug keeps its traceback."""

import dataclasses
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsjax.errors import UsageError
from wsjax.scripts import cli
from wsjax.scripts.cli import check, choose, duration, run_script


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a tiny script."""

    dataset: str = "digits"
    """Which data."""
    num_epochs: int = 3
    """How long."""
    seeds: tuple[int, ...] = (0,)
    verbose: bool = False


def defaults(dataset):
    return Config() if dataset in (None, "digits") else Config(dataset=dataset, num_epochs=200)


@pytest.fixture
def script(monkeypatch):
    """Runs a main function with a command line, and puts back what the script sets for its process."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")

    def run(main, *arguments, defaults=defaults):
        monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
        with warnings.catch_warnings():
            run_script(main, defaults, "A tiny script.")

    return run


class DataError(Exception):
    """By its name, one of the errors that are the user's."""


def raising(error):
    def main(config):
        raise error

    return main


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Config()),
        (("--num-epochs=5",), Config(num_epochs=5)),
        (("--num_epochs", "5"), Config(num_epochs=5)),
        (("--dataset=cifar10",), Config("cifar10", 200)),
        (("--dataset", "cifar10", "--num_epochs=7"), Config("cifar10", 7)),
        (("--seeds", "3", "5", "--verbose"), Config(seeds=(3, 5), verbose=True)),
    ],
)
def test_arguments_become_a_config(script, arguments, expected):
    seen = []
    script(seen.append, *arguments)
    assert seen == [expected]


@pytest.mark.parametrize(
    "error",
    [
        UsageError("num_epochs must be at least 1, not 0"),
        DataError("no such file: [bold]data[/bold].npz"),
        OSError("No space left on device, " * 20 + "no more"),
        UsageError("run a:fire:b holds other settings"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(script, capsys, error):
    with pytest.raises(SystemExit) as ended:
        script(raising(error))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {error}\n"


def test_an_error_that_names_itself_over_two_lines_stays_one(script, capsys):
    with pytest.raises(SystemExit):
        script(raising(OSError("cannot write checkpoint 3\n  because of this\n")))
    assert capsys.readouterr().err == "error: cannot write checkpoint 3 because of this\n"


def test_a_file_that_is_missing_is_the_users_to_mend(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script(lambda config: Path("no such file").read_text())
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 2] No such file or directory: 'no such file'\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), ValueError("bug"), AssertionError("bug")])
def test_a_bug_is_raised_as_it_is(script, capsys, error):
    with pytest.raises(type(error), match="bug") as raised:
        script(raising(error))
    assert raised.value is error
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_exit_code_130(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script(raising(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; the same command continues the run\n"


def test_an_exit_of_the_scripts_own_passes(script):
    with pytest.raises(SystemExit) as ended:
        script(raising(SystemExit(5)))
    assert ended.value.code == 5


def test_warnings_are_one_line_each(script, capsys):
    def main(config):
        warnings.simplefilter("always")
        warnings.warn("checkpoint [4] is damaged, passed over", stacklevel=1)

    script(main)
    assert capsys.readouterr().err == "warning: checkpoint [4] is damaged, passed over\n"


@pytest.mark.parametrize("arguments", [("--nonsense=1",), ("--num_epochs=many",), ("--dataset",)])
def test_arguments_that_cannot_be_parsed_are_exit_code_2(script, capsys, arguments):
    ran = []
    with pytest.raises(SystemExit) as ended:
        script(ran.append, *arguments)
    assert ended.value.code == 2
    assert ran == []
    assert arguments[0].split("=")[0] in "".join(capsys.readouterr()).replace("-epochs", "_epochs")


def test_help_tells_the_settings_of_the_data_set(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script(print, "--dataset=cifar10", "--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "A tiny script." in out
    assert "200" in out
    assert "How long." in out


# A process of its own: what the user sees, and what the shell gets.

TINY = """
import dataclasses, sys, time
from wsjax.scripts.cli import check, run_script
from wsjax.errors import UsageError

@dataclasses.dataclass(frozen=True)
class Config:
    num_epochs: int = 3

def main(config):
    check(config.num_epochs > 0, f"num_epochs must be at least 1, not {config.num_epochs}")
    if config.num_epochs == 7:
        1 / 0
    print("running", flush=True)
    time.sleep(30 if config.num_epochs == 9 else 0)

run_script(main, lambda dataset: Config(), None)
assert not {"jax", "matplotlib"} & set(sys.modules), "slow to start"
"""


def start(tmp_path, *arguments):
    (tmp_path / "tiny.py").write_text(TINY)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(tmp_path / "tiny.py"), *arguments], env=environment, **pipes)


def test_a_real_process(tmp_path):
    runs = [start(tmp_path, f"--num_epochs={number}") for number in (1, 0, 7)]
    (fine, usage, bug) = [(*run.communicate(timeout=60), run.returncode) for run in runs]
    assert fine == ("running\n", "", 0)
    assert usage == ("", "error: num_epochs must be at least 1, not 0\n", 2)
    out, err, code = bug
    assert (out, code) == ("", 1)
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("ZeroDivisionError: division by zero\n")
    assert "in main" in err


def test_a_real_ctrl_c(tmp_path):
    run = start(tmp_path, "--num_epochs=9")
    assert run.stdout.readline() == "running\n"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (out, err, run.returncode) == ("", "error: interrupted; the same command continues the run\n", 130)


ONE_OF_SEVERAL = """
import atexit, ctypes, sys, threading, time, types
from wsjax.scripts import cli

def main(config):
    cli.explain_abort()
    if sys.argv[1] == "usage":
        raise cli.UsageError("no such file")
    if sys.argv[1] == "bug":
        1 / 0
    threading.Thread(target=ctypes.CDLL(None).abort).start()  # in C, on a thread of its own
    time.sleep(30)

atexit.register(print, "waited for the others")
sys.modules["jax"] = types.SimpleNamespace(distributed=types.SimpleNamespace(is_initialized=lambda: True))
with cli.user_errors():
    main(None)
"""


@pytest.mark.parametrize(
    ("how", "code", "last_line"),
    [
        ("usage", 2, "error: no such file"),
        ("bug", 1, "ZeroDivisionError: division by zero"),
        ("abort", 2, f"error: JAX ended this process, most likely because {cli.PROCESS_LOST}"),
    ],
)
def test_one_of_several_processes_ends_at_once(how, code, last_line):
    done = subprocess.run([sys.executable, "-c", ONE_OF_SEVERAL, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (code, "", last_line)


def test_choose():
    assert choose("model", "mlp", ["mlp", "ResNet18"]) == "mlp"


@pytest.mark.parametrize(
    ("value", "hint"),
    [("resnet", "; did you mean 'ResNet18'?"), ("RESNET18", "; did you mean 'ResNet18'?"), ("xyz", ""), ("", "")],
)
def test_an_unknown_choice_lists_the_options_and_names_the_nearest(value, hint):
    with pytest.raises(UsageError) as refusal:
        choose("model", value, ("mlp", "ResNet18"))
    assert str(refusal.value) == f"unknown model '{value}'; available: mlp, ResNet18{hint}"


def test_check():
    check(True, "never seen")
    with pytest.raises(UsageError, match=r"^batch_size must be at least 1, not 0$"):
        check(False, "batch_size must be at least 1, not 0")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45.4, "45 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (12 * 60 + 20, "12 min"),
        (99 * 60 + 29, "99 min"),
        (99 * 60 + 31, "1 h 40 min"),
        (3 * 3600 + 5 * 60, "3 h 05 min"),
        (30 * 3600, "30 h 00 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    # The bar starts at 0; the first call, at 50, ends compilation; then a unit takes 10 seconds.
    times = iter([0, 50, 60, 70, 80, 100])
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with cli.progress(100, ", at most") as advance:
        for epoch in range(1, 5):
            advance(1, f"epoch {epoch}")
        advance(1, "epoch 5", skipped=45)
    assert capsys.readouterr().out.splitlines() == [
        "  2%  epoch 2  (at most 16 min to go)",  # 98 units of 10 seconds
        "estimate: 16 min to go, at most",  # after two epochs that were no compilation
        "  4%  epoch 4  (at most 16 min to go)",
        " 50%  epoch 5  (at most 10 min to go)",  # 50 units are left, at 4 in 50 seconds
    ]


def test_progress_of_a_short_run_says_nothing(monkeypatch, capsys):
    times = iter(range(10))
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with cli.progress(5) as advance:
        for _ in range(5):
            advance(1, "epoch")
    assert capsys.readouterr().out == ""


def test_print_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cli.print_table("All of the data", ["way", "seeds"], [["RI", 3], ["WS", 10]])
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "All of the data"
    assert [line.split() for line in out.splitlines() if "RI" in line or "WS" in line] == [
        ["RI", "3"],
        ["WS", "10"],
    ]


def test_say_takes_text_as_it_is(capsys):
    cli.say("the run [bold] is in /runs/a:fire:b")
    assert capsys.readouterr().out == "the run [bold] is in /runs/a:fire:b\n"
