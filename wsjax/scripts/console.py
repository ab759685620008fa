"""What the scripts print: lines, tables, a progress bar with an estimate of the time to go.

Every line goes through `printable`: names that come from files or other processes cannot forge one. Imports neither jax
nor matplotlib.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from wsjax.errors import Terminated, printable
from wsjax.scripts import ending

LINE_EVERY = 15.0  # seconds between lines of progress where the output is no terminal
ESTIMATE_AFTER = 2  # epochs: the first one is still warming up
ESTIMATE_FROM = 60.0  # seconds: shorter runs are not worth a line
PLAIN = str.maketrans({"±": "+-", "─": "-", "━": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "•": "*"})
"""What stands for a character in an encoding that lacks it."""


def say(text: str, shown: bool = True) -> None:
    """Prints one line of result, wrapped at the terminal's width, whole where there is none."""
    if shown:
        _console().print(printable(text))


def complain(text: str, style: str | None = None) -> None:
    """Prints a line on stderr, whole."""
    with contextlib.suppress(OSError, ValueError, Terminated):  # there may be nobody to read it
        _console(stderr=True).print(printable(text), style=style, soft_wrap=True)


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


def duration(seconds: float) -> str:
    """Writes seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


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
      `advance(work, text, skipped=0)`: work done since the last call, what to show, and work that fell away because a
      stop rule held. It raises Terminated where the program has been told to end.
    """
    console = _console(quiet=not shown)
    live = console.is_terminal and not console.is_dumb_terminal
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console, disable=not live,
    )  # fmt: skip
    with ending.patient(), bar, _above(console if live else None):
        meter = bar.add_task("compiling", total=total)
        begin: float | None = None
        calls, done, past, over, last_line = 0, 0.0, 0.0, 0.0, time.monotonic()
        deadline = last_line + within

        def advance(work: float, text: str, skipped: float = 0.0) -> None:
            nonlocal begin, calls, done, past, over, last_line
            now, text = time.monotonic(), printable(text)
            calls, over = calls + 1, over + work + skipped
            bar.update(meter, completed=over, description=text)
            ending.check()
            if begin is None:  # the first call's time is compilation too: it is no measure
                begin = now
                return
            # Of what is left as much will fall away as of what is behind; as long as nothing has, this is the most.
            done, past = done + work, past + work + skipped
            remaining = (now - begin) / past * max(total - over, 0) if past else 0.0
            remaining = min(remaining, max(deadline - now, 0))
            if calls == 1 + ESTIMATE_AFTER and remaining > ESTIMATE_FROM:
                console.print(f"estimate: {duration(remaining)} to go{printable(proviso)}")
            if not live and now - last_line > LINE_EVERY:
                last_line = now
                bound = "about " if past > done else "at most " if proviso else ""
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


def take_any_text() -> None:
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
