"""The command line: a user's error is one line and exit code 2, a bug keeps its traceback."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import pytest
from jax.errors import JaxRuntimeError

from wsjax.errors import DataError, ProcessLost, UsageError
from wsjax.scripts import cli
from wsjax.scripts.cli import check, choose, run_script


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
        UsageError("no such folder: größe ± 1"),
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


def test_a_name_cannot_forge_a_line(script, capsys):
    with pytest.raises(SystemExit):
        script(raising(DataError("cannot read a\nerror: all is well\x1b[2K\u202e.npz")))
    assert capsys.readouterr().err == r"error: cannot read a\nerror: all is well\x1b[2K\u202e.npz" + "\n"


def test_an_error_without_words_has_its_name(script, capsys):
    with pytest.raises(SystemExit):
        script(raising(OSError()))
    assert capsys.readouterr().err == "error: OSError\n"


def test_a_lost_process_is_told_with_what_jax_says(script, capsys):
    with pytest.raises(SystemExit):
        script(raising(ProcessLost("gloo\n  timed out")))
    assert capsys.readouterr().err == f"error: {cli.PROCESS_LOST} (gloo timed out)\n"


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


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 7 TiB"), JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n 7 bytes")]
)
def test_memory_that_ran_out_is_the_users_to_mend(script, capsys, error):
    with pytest.raises(SystemExit) as ended:
        script(raising(error))
    assert ended.value.code == 2
    told = " ".join(str(error).split())
    assert capsys.readouterr().err == f"error: not enough memory ({told}); take a smaller model or --batch_size\n"


def test_what_else_jax_cannot_do_is_a_bug(script):
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        script(raising(JaxRuntimeError("INTERNAL: RESOURCE_EXHAUSTED is no cause")))


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
        warnings.warn("checkpoint [4] of a\nb is damaged, passed over", stacklevel=1)

    script(main)
    assert capsys.readouterr().err == r"warning: checkpoint [4] of a\nb is damaged, passed over" + "\n"


@pytest.mark.parametrize("arguments", [("--nonsense=1",), ("--num_epochs=many",), ("--dataset",)])
def test_arguments_that_cannot_be_parsed_are_exit_code_2(script, capsys, arguments):
    ran = []
    with pytest.raises(SystemExit) as ended:
        script(ran.append, *arguments)
    assert ended.value.code == 2
    assert ran == []
    assert arguments[0].split("=")[0] in capsys.readouterr().err


def test_help_tells_the_settings_of_the_data_set(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script(print, "--dataset=cifar10", "--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "A tiny script." in out
    assert "(default: 200)" in " ".join(out.split())
    assert "How long." in out


# A process of its own: what the user sees, and what the shell gets.

TINY = """
import dataclasses, sys, time
from wsjax.scripts.cli import check, run_script
from wsjax.errors import DataError, ProcessLost, UsageError

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
    if not (tmp_path / "tiny.py").exists():  # a process before may be reading it
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
from wsjax.scripts import cli, console

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


# What a process prints, and how it ends. The program: a few epochs with a bar, lines beside it, a table.

SHOW = """
from wsjax.scripts import cli, console

with cli.user_errors():
    with console.progress(3) as advance:
        for i in range(3):
            advance(1, "[red]x[/] \\x1b[31m")
            console.say("said beside it")
    rows = [["first [/] round", 40, "59.47 ± 0.49"], ["WS", 8, "1 ± 0"]]
    console.print_table("Title", ["way", "seeds", "test %"], rows)
    console.say("RI - WS = 2.5 ± 0.1 \\u753b")
"""


def python(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **options)


def in_terminal(columns, code, **env):
    """What a process writes to a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = {name: "" for name in ("COLUMNS", "LINES", "NO_COLOR")}
    run = python(code, stdin=theirs, stdout=theirs, stderr=theirs, env=unset | {"TERM": "xterm-256color"} | env)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 4096):
            out += part
    os.close(ours)
    assert run.wait(60) == 0, out
    return out.decode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
@pytest.mark.parametrize("force", ["", "1"])
def test_output_takes_any_encoding(encoding, force):
    run = python(SHOW, env={"PYTHONIOENCODING": encoding, "FORCE_COLOR": force}, text=False)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (0, b"")
    text = out.decode(encoding)
    assert "\x1b" not in text
    plus_minus, sign = ("+-" if encoding == "ascii" else "±"), ("画" if encoding == "utf-8" else r"\u753b")
    assert text.splitlines()[-1] == f"RI - WS = 2.5 {plus_minus} 0.1 {sign}"
    rows = [line for line in text.splitlines() if "first" in line or "WS " in line[:5]]
    assert f"59.47 {plus_minus} 0.49" in rows[0]
    assert len({len(row) for row in rows}) == 1, "columns stand below each other"


@pytest.mark.parametrize("closed", ["1", "2", "12"])
def test_closed_streams_do_no_harm(closed, tmp_path):
    """And no file of the program's own takes their place."""
    code = f"import os, sys\n{SHOW}\nwith open(sys.argv[1], 'w') as file:\n    print(file.fileno(), file=file)\n"
    close = "; ".join(f"exec {number}>&-" for number in closed)
    command = ["sh", "-c", f'{close}; exec "$@"', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, timeout=60).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("code", [SHOW, "from wsjax.scripts import cli\nwith cli.user_errors():\n    print(1)"])
def test_a_reader_that_has_left_ends_it_quietly(code, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    run = python(code, stdout=writer, env={"PYTHONUNBUFFERED": unbuffered})
    os.close(writer)
    assert (run.communicate(timeout=60)[1], run.returncode) == ("", 128 + signal.SIGPIPE)


def test_another_broken_pipe_is_told(script, capsys):
    with pytest.raises(SystemExit):
        script(raising(BrokenPipeError(32, "Broken pipe")))
    assert capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"


@pytest.mark.parametrize("columns", [100, 30, 12])
def test_a_terminal_of_any_width_shows_every_number(columns):
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_terminal(columns, SHOW))
    assert "…" not in text.partition("Title")[2]
    words = text.partition("Title")[2].split()
    for word in ("40", "59.47", "0.49", "8", "2.5"):
        assert word in [word.strip(",") for word in words]
    assert ("way" in words) == (columns == 100), "a table where there is room, else a line a row"


def test_lines_beside_a_bar_stand_on_their_own():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_terminal(100, SHOW)).replace("\r", "\n")
    assert text.splitlines().count("said beside it") == 3
    assert r"[red]x[/] \x1b[31m" in text


def test_colours_only_where_they_are_wanted():
    assert "\x1b[35m" in in_terminal(100, SHOW)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", in_terminal(100, SHOW, NO_COLOR="1"))
    assert "\x1b[" not in in_terminal(100, SHOW, TERM="dumb")


# Signals. `where` says what the program does when they come.

SIGNALLED = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run without a terminal it may be ignored
import sys
from wsjax.scripts import ending
ending.begin()
where = sys.argv[1]

def ready():
    print("ready", flush=True)

def block():  # in C, where Python hears of nothing
    import ctypes
    ctypes.CDLL(None).sleep(60)

import time
if where == "import":
    ready()
    time.sleep(60)
if where == "import in C":
    ready()
    block()
from wsjax.errors import Terminated
from wsjax.scripts import cli, console
ending.GRACE = float(sys.argv[2])
with cli.user_errors():
    if where == "main":
        try:
            ready()
            time.sleep(60)
        finally:
            print("tidied", flush=True)
    if where == "main in C":
        ready()
        block()
    if where == "collector":
        class Odd:
            def __del__(self):
                ready()
                time.sleep(60)
        Odd()
    if where == "another error":
        try:
            ready()
            time.sleep(60)
        except BaseException:
            raise ImportError("cannot import name 'x' from partially initialized module")
    with console.progress(3) as advance:
        advance(1, "first")
        ready()
        if where == "epoch":
            try:
                time.sleep(1)
                print("the epoch ends", flush=True)
                advance(1, "second")
            except Terminated:
                print("checkpoint written", flush=True)
                raise
        if where == "epoch in C":
            block()
        if where == "last epoch":
            time.sleep(1)
    print("never seen")
"""
LINES = {
    signal.SIGINT: "error: interrupted; the same command continues the run\n",
    signal.SIGTERM: "error: terminated; the same command continues the run\n",
    signal.SIGHUP: "error: the terminal was closed; the same command continues the run\n",
}


@pytest.mark.parametrize("number", LINES, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("where", "out"),
    [
        ("import", ""),
        ("import in C", ""),
        ("main", "tidied\n"),
        ("main in C", ""),
        ("collector", ""),
        ("another error", ""),
        ("epoch", "the epoch ends\ncheckpoint written\n"),
        ("epoch in C", ""),
        ("last epoch", ""),
    ],
)
def test_a_signal_is_one_line_and_its_code(number, where, out):
    run = python(SIGNALLED, where, "0.5" if "C" in where else "20")
    assert run.stdout.readline() == "ready\n"
    begin = time.monotonic()
    run.send_signal(number)
    assert (*run.communicate(timeout=60), run.returncode) == (out, LINES[number], 128 + number)
    assert time.monotonic() - begin < 10


def test_a_second_signal_ends_at_once_and_quietly():
    run = python(SIGNALLED, "epoch in C", "20")
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGINT)
    time.sleep(0.2)
    begin = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert (*run.communicate(timeout=60), run.returncode) == ("", LINES[signal.SIGINT], 130)
    assert time.monotonic() - begin < 10


def test_a_signal_that_is_ignored_stays_ignored():
    code = "from wsjax.scripts import ending; ending.begin(); print('ready', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-c", code]
    run = subprocess.Popen(command, env=environment, **pipes)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert (*run.communicate("\n", timeout=60), run.returncode) == ("", "", 0)


def test_signals_are_given_back(script):
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in names]
    seen = []
    script(lambda config: seen.extend(signal.getsignal(name) for name in names))
    assert all(handler not in (*before, signal.SIG_DFL) for handler in seen)
    assert [signal.getsignal(name) for name in names] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_script_takes_back_what_jax_took(tmp_path):
    code = """
import signal
from wsjax.scripts import cli, console
with cli.user_errors():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cli.explain_abort()
    signal.raise_signal(signal.SIGTERM)
"""
    run = python(code)
    assert (*run.communicate(timeout=60), run.returncode) == ("", LINES[signal.SIGTERM], 143)


def test_a_signal_within_an_import_ends_the_program_at_once(tmp_path):
    """An exception there would leave half a module, or crash a compiled one."""
    lines = (
        "import time",
        "print('within', flush=True)",
        "try: time.sleep(30)",
        "except BaseException: print('raised')",
    )
    (tmp_path / "slow.py").write_text("\n".join(lines))
    code = "from wsjax.scripts import ending, cli\nending.begin()\nwith cli.user_errors():\n    import slow\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "within\n"
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate(timeout=30)
    assert (said, process.returncode) == ("", 143)
    assert error == "error: terminated; the same command continues the run\n"


def test_an_end_that_is_undone_leaves_no_descriptor():
    code = """
import os, threading
from wsjax.scripts import ending

def lowest():  # of the descriptors that are free
    number = os.dup(0)
    os.close(number)
    return number

before = lowest()
for _ in range(3):
    ending.begin()()
for thread in threading.enumerate()[1:]:
    thread.join(30)
print(lowest() - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ended.stdout == "0\n", ended.stderr
