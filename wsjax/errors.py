"""Errors that a user can mend: one line that says what was given, what is possible and what to do.

Standard library only, so that everything may raise them.
"""

from __future__ import annotations


class UserError(Exception):
    """What one line can mend; a script ends with that line and exit code 2."""


class UsageError(UserError):
    """A setting that cannot work."""


class DataError(UserError, ValueError):
    """Data that cannot be used or found."""


class TaskError(UserError, ValueError):
    """A task, a method or data that training cannot take; raised when it is traced, or before."""


class RunError(UserError):
    """A folder of a run or of models that cannot be used."""


class NonFiniteLoss(UserError, ArithmeticError):
    """Training left the finite numbers; the message says where."""


class ProcessLost(UserError, RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


def printable(text: object) -> str:
    """Writes a text on one line without control characters: what comes from a file cannot move the cursor.

    Every character that is not printable, a line's end and a change of direction too, becomes its escape as Python
    writes it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
