"""What the command lines share: errors as one line, a progress bar, an estimate of the time to go, tables.

Every line that a script prints goes through `printable`: names that come from files or other processes cannot forge
one. Imports neither jax nor matplotlib, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import ast
import codecs
import contextlib
import ctypes
import dataclasses
import difflib
import inspect
import io
import itertools
import math
import os
import select
import shutil
import signal
import sys
import textwrap
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from wsjax.errors import ProcessLost, Terminated, UsageError, UserError, printable
from wsjax.scripts import ending, protocols

LINE_EVERY = 15.0  # seconds between lines of progress where the output is no terminal
ESTIMATE_AFTER = 2  # epochs: the first one is still warming up
ESTIMATE_FROM = 60.0  # seconds: shorter runs are not worth a line
PROCESS_LOST = "another process of this run has ended; give the same commands again to continue the run"
PLAIN = str.maketrans({"±": "+-", "─": "-", "━": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "•": "*"})
"""What stands for a character in an encoding that lacks it."""


def run_script(main: Callable[[Any], None], defaults: Callable[[str | None], Any], text: str | None) -> None:
    """Parses the command line into a config, runs main, and turns a user's error into one line and exit code 2.

    Args:
      main: takes the config, a dataclass.
      defaults: the config for a data set, by the value of --dataset, or the first of --datasets or --data; None where
        none is given.
      text: what the help says first.
    """
    # XLA logs an alarming and harmless error for every CPU program that it reads back from the compilation cache.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with user_errors():
        config = parse(default_of(defaults, sys.argv[1:]), sys.argv[1:], text)
        warnings.showwarning = lambda message, *_, **__: _complain(f"warning: {message}")
        main(config)


def parse(default: Any, flags: Sequence[str], text: str | None = None) -> Any:
    """The settings of a command line; the help has a group for every class that the settings' class is made of.

    Args:
      default: the settings where the command line says nothing, a dataclass.
      flags: the command line.
      text: what the help says first.
    """
    made = type(default)
    refuse_empty_paths(made, flags)
    hints = typing.get_type_hints(made, include_extras=True)
    groups: dict[str, Any] = {}
    grouped: set[str] = set()
    for owner in (made, *reversed(made.__mro__[1:])):
        own = [name for name in inspect.get_annotations(owner) if name in hints and name not in grouped]
        said = _said_of_fields(owner)
        fields = [
            (name, Annotated[hints[name], tyro.conf.arg(help=said.get(name))], _defaulting(getattr(default, name)))
            for name in own
        ]
        if fields:
            group = dataclasses.make_dataclass(owner.__name__, fields, frozen=True)
            group.__doc__ = owner.__doc__
            groups["script" if owner is made else owner.__name__.lower()] = group()
        grouped |= set(own)
    parts = [(name, tyro.conf.OmitArgPrefixes[type(group)], group) for name, group in groups.items()]
    parsed = tyro.cli(
        dataclasses.make_dataclass(made.__name__, parts), args=list(flags), description=text, use_underscores=True
    )
    return made(**{k: v for group in vars(parsed).values() for k, v in vars(group).items()})


def refuse_empty_paths(made: type, flags: Sequence[str]) -> None:
    """Raises UsageError where a path is empty, as an unset variable leaves it: it would be the present folder."""
    for name, hint in typing.get_type_hints(made).items():
        takes_path = hint is Path or Path in typing.get_args(hint)
        if takes_path and peeked(name, flags, f"--{name.replace('_', '-')}") == "":
            raise UsageError(f"--{name} is empty: give a path, or leave it out")


def _defaulting(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def _said_of_fields(owner: type) -> dict[str, str]:
    """The fields that a class itself adds, each with the text that stands beneath it, where its source is at hand."""
    try:
        lines = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError):
        return {}
    assert isinstance(lines, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(text.value)).split())
        for field, text in itertools.pairwise(lines.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def default_of(defaults: Callable[[str | None], Any], flags: Sequence[str]) -> Any:
    """The settings where nothing else is said, for the data set and the published protocol that a command line names.

    Raises:
      UsageError: there is no such protocol.
    """
    protocol = peeked("protocol", flags)
    default = defaults(peeked("dataset", flags, "--datasets", "--data") or protocols.dataset_of(protocol))
    return protocols.applied(default, protocol)


def peeked(name: str, flags: Sequence[str], *more: str) -> str | None:
    """What a command line gives a flag, by this name or one of more; None where it is not given."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument(f"--{name}", *more, dest=name)
    try:
        return getattr(peek.parse_known_args(list(flags))[0], name)
    except argparse.ArgumentError:  # a flag without a value: tyro says it better
        return None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line and exit code 2 where an error is the user's to mend.

    Ctrl-C and SIGTERM end it with one line and 130 and 143, a reader of its output that has left quietly with 141.
    """
    with ending.handled():
        try:
            _take_any_text()
            with _noticing_a_broken_pipe():
                yield
        except BaseException as error:
            if number := ending.reason(error):
                ending.leave(number, lambda text: _complain(f"error: {text}", "red"))
            if isinstance(error, UserError | OSError | KeyboardInterrupt) or _is_out_of_memory(error):
                _complain(f"error: {_one_line(error)}", "red")
                _exit(130 if isinstance(error, KeyboardInterrupt) else 2)
            if isinstance(error, SystemExit) or not ending.one_of_several():
                raise
            traceback.print_exc()
            _exit(1)


def explain_abort(why: str = f"JAX ended this process, most likely because {PROCESS_LOST}") -> None:
    """Has a line of ours follow what JAX says when it aborts this process, for another one of the run has ended.

    JAX hears of that on a C++ thread, which aborts without coming back to Python, where a handler of Python's own would
    run. libc calls this one on that very thread. JAX has also taken SIGTERM for itself when processes have joined: the
    script takes it back.
    """
    _why_aborted[:] = [f"error: {printable(why)}\n".encode()]
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    ending.handle()


_why_aborted: list[bytes] = []


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    os.write(2, _why_aborted[-1])
    os._exit(2)


def _exit(code: int) -> NoReturn:
    """Ends the program: one of several processes without JAX's own end, which waits until all others have ended too."""
    if ending.one_of_several():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _take_any_text() -> None:
    """Has the standard streams take text that their encoding lacks: a run does not fail for a sign in its table."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("plain", _plain)


def _encodable(text: str) -> str:
    """The text as standard output will have it, for those who count its characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "plain").decode(encoding)


@contextlib.contextmanager
def _noticing_a_broken_pipe() -> Iterator[None]:
    """Raises Terminated where the reader of what a block prints has left, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # Python itself would see it after all else
    except BrokenPipeError:
        if not _reader_left():
            raise
        raise Terminated(signal.SIGPIPE) from None


def _reader_left() -> bool:
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class _Console(Console):
    # What rich does by itself is exit code 1, without a word.
    def on_broken_pipe(self) -> NoReturn:
        raise Terminated(signal.SIGPIPE)


def _console(stderr: bool = False, **options: Any) -> Console:
    """A console that takes text as it is: one with a bar where there is one, for lines to come above it."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    if terminal and _with_bar:
        return _with_bar[-1]
    if "COLUMNS" in os.environ or "LINES" in os.environ:  # which may hold anything
        width, height = shutil.get_terminal_size()
        options = {"width": width, "height": height, **options}
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    return _Console(stderr=stderr, force_terminal=terminal, soft_wrap=not terminal, **plain, **options)


_with_bar: list[Console] = []


def _complain(text: str, style: str | None = None) -> None:
    """Prints a line on stderr, whole."""
    with contextlib.suppress(OSError, ValueError, Terminated):  # there may be nobody to read it
        _console(stderr=True).print(printable(text), style=style, soft_wrap=True)


def _one_line(error: BaseException) -> str:
    """What an error says; one that others wrote, in several lines or none, as one."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues the run"
    if _is_out_of_memory(error):
        return f"not enough memory ({_joined(error)}); take a smaller model or --batch_size"
    if isinstance(error, ProcessLost):
        return f"{PROCESS_LOST} ({_joined(error)})"
    return str(error) if isinstance(error, UserError) else _joined(error)


def _is_out_of_memory(error: BaseException) -> bool:
    errors = getattr(sys.modules.get("jax"), "errors", None)  # an error of JAX's comes from a JAX that is loaded
    of_jax = isinstance(error, getattr(errors, "JaxRuntimeError", ()))
    return isinstance(error, MemoryError) or (of_jax and str(error).startswith("RESOURCE_EXHAUSTED"))


def _joined(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__


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
def progress(
    total: float, proviso: str = "", shown: bool = True, within: float = math.inf
) -> Iterator[Callable[..., None]]:
    """Shows how far a run is: a bar in a terminal, else a line now and then.

    Args:
      total: the work of the whole run, at most, in any unit.
      proviso: what the estimate of the time to go adds, such as ", if no round ends early".
      shown: whether anything is shown at all.
      within: the seconds after which it ends in any case.

    Yields:
      `advance(done, text, skipped=0)`: work done since the last call, what to show, and work that fell away because a
      stop rule held. It raises Terminated where the program has been told to end.
    """
    console = _console(quiet=not shown)
    live = console.is_terminal and not console.is_dumb_terminal
    bound = "at most " if proviso else ""
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console, disable=not live,
    )  # fmt: skip
    with ending.patient(), bar, _above(console if live else None):
        meter = bar.add_task("compiling", total=total)
        begin: float | None = None
        calls, done, over, last_line = 0, 0.0, 0.0, time.monotonic()
        deadline = last_line + within

        def advance(work: float, text: str, skipped: float = 0.0) -> None:
            nonlocal begin, calls, done, over, last_line
            now, text = time.monotonic(), printable(text)
            calls, over = calls + 1, over + work + skipped
            bar.update(meter, completed=over, description=text)
            ending.check()
            if begin is None:  # the first call's time is compilation too: it is no measure
                begin = now
                return
            done += work
            remaining = (now - begin) / done * max(total - over, 0) if done else 0.0
            remaining = min(remaining, max(deadline - now, 0))
            if calls == 1 + ESTIMATE_AFTER and remaining > ESTIMATE_FROM:
                console.print(f"estimate: {duration(remaining)} to go{printable(proviso)}")
            if not live and now - last_line > LINE_EVERY:
                last_line = now
                console.print(f"{over / total:4.0%}  {text}  ({bound}{duration(remaining)} to go)")

        yield advance


@contextlib.contextmanager
def _above(console: Console | None) -> Iterator[None]:
    """Has what is printed in a block go to this console, if there is one."""
    before, _with_bar[:] = list(_with_bar), [console] if console else []
    try:
        yield
    finally:
        _with_bar[:] = before


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; the first column is left-aligned, the others right.

    No cell is ever cut: a terminal that is too narrow gets a line a row.
    """
    names, *cells = [[_encodable(printable(cell)) for cell in row] for row in (columns, *rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(names):
        table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    console = _console()
    console.print(printable(title), style="bold")
    wide = console.measure(table, options=console.options.update(width=sys.maxsize)).maximum
    if not console.is_terminal or wide <= console.width:
        _console(width=wide).print(table)
    else:
        for first, *others in cells:
            say(f"{first}: " + ", ".join(f"{name} {cell}" for name, cell in zip(names[1:], others, strict=True)))


def say(text: str, shown: bool = True) -> None:
    """Prints one line of result, wrapped at the terminal's width, whole where there is none."""
    if shown:
        _console().print(printable(text))


def duration(seconds: float) -> str:
    """Writes seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
