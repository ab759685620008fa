"""What the command lines share: errors as one line, a progress bar, an estimate of the time to go, tables.

Imports neither jax nor matplotlib, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import difflib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from wsjax.errors import ProcessLost, UsageError, UserError

LINE_EVERY = 15.0  # seconds between lines of progress where the output is no terminal
ESTIMATE_AFTER = 2  # epochs: the first one is still warming up
ESTIMATE_FROM = 60.0  # seconds: shorter runs are not worth a line
PROCESS_LOST = "another process of this run has ended; give the same commands again to continue the run"


def run_script(main: Callable[[Any], None], defaults: Callable[[str | None], Any], text: str | None) -> None:
    """Parses the command line into a config, runs main, and turns a user's error into one line and exit code 2.

    Args:
      main: takes the config, a dataclass.
      defaults: the config for a data set, by the value of --dataset; None where it is not given.
      text: what the help says first.
    """
    # XLA logs an alarming and harmless error for every CPU program that it reads back from the compilation cache.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--dataset")
    try:
        default = defaults(peek.parse_known_args()[0].dataset)
    except argparse.ArgumentError:  # --dataset without a value: tyro says it better
        default = defaults(None)
    config = tyro.cli(type(default), default=default, description=text, use_underscores=True)
    console = _error_console()
    warnings.showwarning = lambda message, *_, **__: console.print(f"warning: {message}", markup=False)
    with user_errors():
        main(config)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line and exit code 2 (130 for Ctrl-C) where an error is the user's to mend."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, UserError | OSError | KeyboardInterrupt):
            _error_console().print(f"error: {_one_line(error)}", style="red", markup=False, highlight=False)
            _exit(130 if isinstance(error, KeyboardInterrupt) else 2)
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        _exit(1)


def explain_abort() -> None:
    """Has a line of ours follow what JAX says when it aborts this process because another one of the run has ended.

    JAX hears of that on a C++ thread, which aborts without coming back to Python, where a handler of Python's own would
    run. libc calls this one on that very thread.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    os.write(2, f"error: JAX ended this process, most likely because {PROCESS_LOST}\n".encode())
    os._exit(2)


def _exit(code: int) -> NoReturn:
    """Ends the program: one of several processes without JAX's own end, which waits until all others have ended too."""
    if _is_one_of_several():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _error_console() -> Console:
    return Console(stderr=True, soft_wrap=True, emoji=False)


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues the run"
    line = " ".join(line.strip() for line in str(error).splitlines())
    return f"{PROCESS_LOST} ({line})" if isinstance(error, ProcessLost) else line


def choose(what: str, value: str, options: Sequence[str]) -> str:
    """Returns the value if it is one of the options; else raises a UsageError that lists them and names the nearest."""
    if value in options:
        return value
    near = difflib.get_close_matches(value.lower(), [option.lower() for option in options], n=1, cutoff=0.4)
    hint = next((f"; did you mean '{option}'?" for option in options if near == [option.lower()]), "")
    raise UsageError(f"unknown {what} '{value}'; available: {', '.join(options)}{hint}")


def check(condition: bool, message: str) -> None:
    """Raises a UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


@contextlib.contextmanager
def progress(total: float, proviso: str = "", shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows how far a run is: a bar in a terminal, else a line now and then.

    Args:
      total: the work of the whole run, at most, in any unit.
      proviso: what the estimate of the time to go adds, such as ", if no round ends early".
      shown: whether anything is shown at all.

    Yields:
      `advance(done, text, skipped=0)`: work done since the last call, what to show, and work that fell away because a
      stop rule held.
    """
    console = Console(quiet=not shown)
    bound = "at most " if proviso else ""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        meter = bar.add_task("compiling", total=total)
        begin: float | None = None
        calls, done, over, last_line = 0, 0.0, 0.0, time.monotonic()

        def advance(work: float, text: str, skipped: float = 0.0) -> None:
            nonlocal begin, calls, done, over, last_line
            now = time.monotonic()
            calls, over = calls + 1, over + work + skipped
            bar.update(meter, completed=over, description=text)
            if begin is None:  # the first call's time is compilation too: it is no measure
                begin = now
                return
            done += work
            remaining = (now - begin) / done * max(total - over, 0)
            if calls == 1 + ESTIMATE_AFTER and remaining > ESTIMATE_FROM:
                console.print(f"estimate: {duration(remaining)} to go{proviso}", highlight=False)
            if not console.is_terminal and now - last_line > LINE_EVERY:
                last_line = now
                console.print(f"{over / total:4.0%}  {text}  ({bound}{duration(remaining)} to go)", highlight=False)

        yield advance


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; the first column is left-aligned, the others right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    console.print(title, style="bold", markup=False, highlight=False)
    console.print(table)


def say(text: str, shown: bool = True) -> None:
    """Prints a line of result, wrapped at the terminal's width, whole where there is none."""
    console = Console(emoji=False, quiet=not shown)
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def duration(seconds: float) -> str:
    """Writes seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
