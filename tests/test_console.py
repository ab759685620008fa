"""What the scripts print."""

from types import SimpleNamespace

import pytest

from wsjax.scripts import console


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
    assert console.duration(seconds) == text


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    # The bar starts at 0; the first call, at 50, ends compilation; then a unit takes 10 seconds.
    times = iter([0, 50, 60, 70, 80, 100])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with console.progress(100, ", at most") as advance:
        for epoch in range(1, 5):
            advance(1, f"epoch {epoch}")
        advance(1, "epoch 5", skipped=45)
    assert capsys.readouterr().out.splitlines() == [
        "  2%  epoch 2  (at most 16 min to go)",  # 98 units of 10 seconds
        "estimate: 16 min to go, at most",  # after two epochs that were no compilation
        "  4%  epoch 4  (at most 16 min to go)",
        " 50%  epoch 5  (about 51 s to go)",  # 50 units are left, and 4 done with 45 skipped took 50 seconds
    ]


def test_progress_estimates_no_more_than_there_is(monkeypatch, capsys):
    times = iter([0, 50, 60, 70])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with console.progress(100, within=90) as advance:
        for epoch in range(1, 4):
            advance(1, f"epoch {epoch}")
    assert capsys.readouterr().out.splitlines() == ["  2%  epoch 2  (30 s to go)"]


def test_progress_of_a_short_run_says_nothing(monkeypatch, capsys):
    times = iter(range(10))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with console.progress(5) as advance:
        for _ in range(5):
            advance(1, "epoch")
    assert capsys.readouterr().out == ""


ROWS = [["first [/] round", 40, "59.47 ± 0.49"], ["R\nI", 8, "100.00 ± 0.00"]]


def test_print_table(capsys, monkeypatch):
    """Whole in a pipe, however wide the terminal is said to be."""
    for columns in ("80", "10", "1", "0", "-3", "²", "wide", "", None):
        monkeypatch.delenv("COLUMNS") if columns is None else monkeypatch.setenv("COLUMNS", columns)
        console.print_table("All of the\n[red]data", ["way", "seeds [red]", "test %" + 90 * "x"], ROWS)
        title, _, head, _, first, second, *_ = capsys.readouterr().out.splitlines()
        assert title == r"All of the\n[red]data"
        assert head.split() == ["way", "seeds", "[red]", "test", "%" + 90 * "x"]
        assert first.split() == ["first", "[/]", "round", "40", "59.47", "±", "0.49"]
        assert second.split() == [r"R\nI", "8", "100.00", "±", "0.00"]


def test_say_takes_text_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    console.say("the run [bold] is in /runs/a:fire:b " + 30 * "± ")
    assert capsys.readouterr().out == "the run [bold] is in /runs/a:fire:b " + 30 * "± " + "\n"
    console.say("a\nRecords: \x1b[31m")
    assert capsys.readouterr().out == r"a\nRecords: \x1b[31m" + "\n"
    console.say("nothing", shown=False)
    assert capsys.readouterr().out == ""
