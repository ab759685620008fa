"""What the command lines share: flags from a dataclass, errors as one line.

Imports neither jax nor matplotlib, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import dataclasses
import difflib
import functools
import inspect
import itertools
import os
import re
import select
import signal
import sys
import textwrap
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from wsjax.errors import ProcessLost, Terminated, UsageError, UserError, is_out_of_memory, printable
from wsjax.scripts import console, ending, protocols

PROCESS_LOST = "another process of this run has ended; give the same commands again to continue the run"


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
        warnings.showwarning = lambda message, *_, **__: console.complain(f"warning: {message}")
        main(config)


def run_program(main: Callable[[Any], Any], made: type, text: str | None) -> Any:
    """The same for a program whose defaults go by no data set; returns what main returns.

    Args:
      main: takes the settings.
      made: their class, a dataclass.
      text: what the help says first.
    """
    with user_errors():
        refuse_empty_paths(made, sys.argv[1:])
        return main(tyro.cli(made, description=text, use_underscores=True))


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


@functools.cache  # a study reads the flags of dozens of jobs
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
            console.take_any_text()
            with _noticing_a_broken_pipe():
                yield
        except BaseException as error:
            if number := ending.reason(error):
                ending.leave(number, lambda text: console.complain(f"error: {text}", "red"))
            if isinstance(error, UserError | OSError | KeyboardInterrupt) or is_out_of_memory(error):
                console.complain(f"error: {_one_line(error)}", "red")
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


def _one_line(error: BaseException) -> str:
    """What an error says; one that others wrote, in several lines or none, as one."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues the run"
    if is_out_of_memory(error):
        return f"not enough memory ({_joined(error)}); take a smaller model or --batch_size"
    if isinstance(error, ProcessLost):
        return f"{PROCESS_LOST} ({_joined(error)})"
    return str(error) if isinstance(error, UserError) else _joined(error)


def _joined(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__


def seconds_of(budget: str) -> float:
    """A time as "90s", "30m" ("30min"), "8h" or "2d" in seconds; raises UsageError where it is none."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]|min)", budget)) or float(match[1]) == 0:
        raise UsageError(f"a time is written as 90s, 30m, 8h or 2d, not '{budget}'")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2]]


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
