"""Errors that a user can mend: one line that says what was given, what is possible and what to do.

Standard library only, so that everything may raise them.
"""

from __future__ import annotations

import sys


class UserError(Exception):
    """What one line can mend; a script ends with that line and exit code 2."""


class UsageError(UserError):
    """A setting that cannot work."""


class DataError(UserError, ValueError):
    """Data that cannot be used or found."""


class LeftOut(DataError):
    """Nothing new was found, but of what was given something could not be used, and that may be new."""


class TaskError(UserError, ValueError):
    """A task, a method or data that training cannot take; raised when it is traced, or before."""


class RunError(UserError):
    """A folder of a run or of models that cannot be used."""


class NonFiniteLoss(UserError, ArithmeticError):
    """Training left the finite numbers; the message says where, and `method` is whose training, where that is known."""

    def __init__(self, message: str, method: str | None = None):
        super().__init__(message)
        self.method = method


class ProcessLost(UserError, RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class Terminated(BaseException):
    """The program was told to end by the signal `number`: catch it to save what there is, and raise it again."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory, or a device's, did not suffice: no fault of whatever was being read then."""
    errors = getattr(sys.modules.get("jax"), "errors", None)  # an error of JAX's comes from a JAX that is loaded
    of_jax = isinstance(error, getattr(errors, "JaxRuntimeError", ()))
    return isinstance(error, MemoryError) or (of_jax and str(error).startswith("RESOURCE_EXHAUSTED"))


LONGEST = 2000  # characters: an error of XLA can have pages


def printable(text: object, longest: int = LONGEST) -> str:
    """Writes a text on one line without control characters: what comes from a file cannot move the cursor.

    Every character that is not printable (a line's end, a change of direction, one without width, half of a pair)
    becomes its escape as Python writes it. A text of more than `longest` characters loses its middle.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} ... {line[-half:]}"
