"""How a script ends when it is told to, by Ctrl-C or a signal: one line, exit code 128 + the signal, within seconds.

A signal ends a script at once while it starts or loads a module, and where it is one of several processes, which
cannot agree on an epoch to end at. Later it raises `Terminated`; while a run makes progress it waits for the epoch's
end, where `check` raises it. Python hears of a signal only between two of its own steps, and a compilation is one step:
a thread sees to it that the script ends nevertheless, GRACE seconds after the signal, or at once with a second one.

Standard library only and quick to import: a script calls `begin` ahead of its other imports, which take a second.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from wsjax.errors import Terminated

GRACE = 8.0  # seconds; schedulers kill what has not ended 10 or 30 seconds after the first signal
SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
SIGNALS = {int(getattr(signal, name)): said for name, said in SAID.items() if hasattr(signal, name)}
SHOW_CURSOR = b"\x1b[?25h\n"

_AT_ONCE, _RAISE, _WAIT = "at once", "raise", "wait"
_how = _AT_ONCE
_noted: int | None = None
_begun = False
_line = threading.Lock()  # taken for good by whoever says the one line


def begin() -> Callable[[], None]:
    """Ends the script with one line at the next signal, at once until `handled` says otherwise.

    Returns:
      What undoes it; nothing is done, or undone, where it was called before or on another thread than the main one.
    """
    global _begun
    if _begun or threading.current_thread() is not threading.main_thread():
        return lambda: None
    _begun = True
    _open_standard_streams()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    threading.Thread(target=_watch, args=(woken,), daemon=True).start()
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    handlers, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    sys.unraisablehook = _on_unraisable
    handle()

    def undo() -> None:
        global _begun
        _begun = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        sys.unraisablehook = hook
        os.close(wake)  # which ends the thread

    return undo


def handle() -> None:
    """Takes the signals, again where a library took them; one that the script was started without stays ignored."""
    if _begun:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _on_signal)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Has a signal raise Terminated in the block."""
    undo = begin()
    try:
        with _mode(_RAISE):
            yield
    finally:
        undo()


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Has a signal wait in the block for the next `check`; there is one at the block's end."""
    with _mode(_WAIT):
        yield
        check()


def check() -> None:
    """Raises Terminated if a signal has come."""
    if _noted is not None:
        raise Terminated(_noted)


def reason(error: BaseException) -> int | None:
    """The signal that an error means; once one has come, any error does: imports turn exceptions into others."""
    if _noted is not None:
        return _noted
    return error.number if isinstance(error, Terminated) else None


def leave(number: int, say: Callable[[str], Any]) -> NoReturn:
    """Ends the program by a signal: says the one line, unless another thread does, and leaves without Python's own end.

    Python's end would wait for threads that libraries left, and import what was interrupted.
    """
    if number in SIGNALS and _line.acquire(blocking=False):
        try:
            say(_sentence(number))
        except BaseException:  # an import that the signal cut short, say; the line is owed all the same
            _write_line(number)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + number)


def _sentence(number: int) -> str:
    return f"{SIGNALS[number]}; the same command continues the run"


def one_of_several() -> bool:
    """Whether this is one of the processes of one run."""
    jax = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)  # None while jax is being imported
    return distributed is not None and distributed.is_initialized()


@contextlib.contextmanager
def _mode(how: str) -> Iterator[None]:
    global _how
    before, _how = _how, how
    try:
        yield
    finally:
        _how = before


def _on_signal(number: int, frame: Any) -> None:
    global _noted
    first, _noted = _noted is None, _noted or number
    if first and _how == _RAISE and not one_of_several():
        if _is_importing(frame):
            _end(number)
        raise Terminated(number)


def _is_importing(frame: Any) -> bool:
    """Whether a module is being loaded: compiled ones have crashed where an exception came in the middle of it."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _watch(woken: int) -> None:
    """Ends the program after a signal, if it has not ended itself."""
    number = _next_signal(woken, None)
    if number is None:  # it was undone
        return os.close(woken)
    if _how != _AT_ONCE and not one_of_several():
        _next_signal(woken, GRACE)
    _end(number)


def _on_unraisable(unraisable: Any) -> None:
    """Ends the program where Terminated was raised in a place that cannot pass it on, a collector's callback say."""
    if isinstance(unraisable.exc_value, Terminated):
        _end(unraisable.exc_value.number)
    sys.__unraisablehook__(unraisable)


def _end(number: int) -> NoReturn:
    if _line.acquire(blocking=False):
        with contextlib.suppress(OSError):
            if _how == _WAIT and os.isatty(1):  # a progress bar hides the cursor, and its line has no end
                os.write(1, SHOW_CURSOR)
        _write_line(number)
    else:
        time.sleep(4.0)  # the one who is just saying it leaves by itself, on a busy machine not at once
    os._exit(128 + number)


def _write_line(number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"error: {_sentence(number)}\n".encode())


def _next_signal(woken: int, patience: float | None) -> int | None:
    """The next of our signals; None where none comes in so many seconds, or the pipe is closed."""
    deadline = None if patience is None else time.monotonic() + patience
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([woken], [], [], left)[0]:
            return None
        number = os.read(woken, 1)
        if not number or number[0] in SIGNALS:
            return number[0] if number else None


def _open_standard_streams() -> None:
    """Opens those of the three that are closed: else the next file opened takes the place, and what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
