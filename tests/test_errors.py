"""Errors that a user can mend, and text that cannot leave its line."""

import pytest

from wsjax import errors
from wsjax.errors import LONGEST, Terminated, UserError, printable


@pytest.mark.parametrize(
    ("name", "base"),
    [("DataError", ValueError), ("NonFiniteLoss", ArithmeticError), ("ProcessLost", RuntimeError)],
)
def test_a_users_error_is_what_a_caller_of_the_library_expects(name, base):
    assert issubclass(getattr(errors, name), UserError)
    assert issubclass(getattr(errors, name), base)


def test_terminated_passes_those_who_catch_exceptions():
    assert not isinstance(Terminated(15), Exception)
    assert Terminated(15).number == 15


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("images ± 3 µm, größe, 画像, [red]", "images ± 3 µm, größe, 画像, [red]"),
        ("a\nb\r\tc\x0b\x0c\x85", r"a\nb\r\tc\x0b\x0c\x85"),
        ("\x1b[31m\x9b2J\x7f\x00", r"\x1b[31m\x9b2J\x7f\x00"),
        ("\u202eexe\u2066\u200f\u061c", r"\u202eexe\u2066\u200f\u061c"),  # changes of direction
        ("a\u200b\u200d\ufeff\u2060\xad\xa0b", r"a\u200b\u200d\ufeff\u2060\xad\xa0b"),  # without width, or like a space
        ("a\u2028b\u2029", r"a\u2028b\u2029"),  # ends of lines
        ("\udcff\ue000\U000e0041", r"\udcff\ue000\U000e0041"),  # half of a pair, private, a tag
        (None, "None"),
    ],
)
def test_printable_text_stays_on_its_line(text, line):
    assert printable(text) == line


def test_a_long_text_loses_its_middle():
    assert printable("x" * LONGEST) == "x" * LONGEST
    assert printable("a" * 9 + "b" * 9, longest=10) == "aaaaa ... bbbbb"
    assert len(printable("\x00" * LONGEST)) == LONGEST + len(" ... ")
