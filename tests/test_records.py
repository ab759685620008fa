"""A run's folder: whole rows or none, one process at a time, and no run of other settings."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from wsjax.errors import RunError
from wsjax.storage import records
from wsjax.storage.records import Records, about_run, open_run, read_rows, read_run, write_json, write_whole

ABOUT = {"experiment": "offline", "devices": ["cpu"]}
SETTINGS = {"learning_rate": 0.1, "seeds": (0, 1), "dataset": "digits"}


def rows(count, **more):
    return [{"method": "RI", "seed": 0, "epoch": epoch, **more} for epoch in range(1, count + 1)]


@contextmanager
def largest_file(size):
    """The system refuses to let any file grow further, after it has taken what fits: as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def another_process(folder):
    """A process that holds the folder until it is ended."""
    code = f"""
import pathlib, sys
from wsjax.storage.records import open_run
with open_run(pathlib.Path({str(folder)!r}), {SETTINGS!r}, {ABOUT!r}) as run:
    run.append({rows(1)!r})
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "records.jsonl"
    table = Records(path)
    assert table.rows == []
    assert not path.exists()
    table.append(rows(2, stop=None, test_accuracy=0.1 + 0.2))
    table.append(rows(1, text='a "line"\nand é'))
    expected = [*rows(2, stop=None, test_accuracy=0.1 + 0.2), *rows(1, text='a "line"\nand é')]
    assert table.rows == Records(path).rows == read_rows(path) == expected
    assert path.read_bytes().count(b"\n") == 3


def test_rows_in_memory_only():
    table = Records()
    table.append(rows(3))
    table.keep(lambda row: row["epoch"] != 2)
    assert [row["epoch"] for row in table.rows] == [1, 3]


def test_no_rows_touch_no_file(tmp_path):
    Records(tmp_path / "records.jsonl").append([])
    assert list(tmp_path.iterdir()) == []


def test_keep_drops_rows_from_the_file(tmp_path):
    table = Records(tmp_path / "records.jsonl")
    table.append(rows(4))
    table.keep(lambda row: row["epoch"] <= 2)
    assert table.rows == read_rows(tmp_path / "records.jsonl") == rows(2)
    table.append(rows(1))
    assert read_rows(tmp_path / "records.jsonl") == rows(2) + rows(1)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_keep_leaves_a_right_file_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    table = Records(path)
    table.append(rows(2))
    before = path.stat().st_ino
    table.keep(lambda row: True)
    assert path.stat().st_ino == before


@pytest.mark.parametrize("tail", [b'{"epoch": 3, "te', b"{", b"\0\0\0\0", b"\xff\xfe", b'{"epoch": 3}', b" "])
def test_a_last_line_cut_short_is_no_row_and_is_mended(tmp_path, tail):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    with path.open("ab") as file:
        file.write(tail)
    assert read_rows(path) == rows(2)
    table = Records(path)
    table.append(rows(1))
    assert read_rows(path) == rows(2) + rows(1)


def test_every_cut_of_a_file_leaves_its_whole_rows(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(3))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert read_rows(path) == rows(whole[:size].count(b"\n"))


@pytest.mark.parametrize("line", [b'{"epoch": 2, "te', b"", b"7", b"null", b"\xff\xfe", b'{"epoch": 2} {}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 3}\n')
    with pytest.raises(RunError, match=r"records\.jsonl, line 2, is damaged: .*; mend or remove the line"):
        read_rows(path)
    with pytest.raises(RunError, match=r"line 2, is damaged"):
        Records(path)


def test_a_full_disk_takes_no_half_row(tmp_path):
    path = tmp_path / "records.jsonl"
    table = Records(path)
    table.append(rows(2))
    before = path.read_bytes()
    with largest_file(len(before) + 10), pytest.raises(OSError, match=r"File too large"):
        table.append(rows(3))
    assert path.read_bytes() == before
    assert table.rows == rows(2)
    table.append(rows(1))  # the disk has room again
    assert read_rows(path) == table.rows == rows(2) + rows(1)


def test_a_disk_that_fails_at_the_last_moment_takes_no_row(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "records.jsonl"
    table = Records(path)
    table.append(rows(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            table.append(rows(1))
        with pytest.raises(OSError, match="No space left on device"):
            table.keep(lambda row: False)
    assert read_rows(path) == rows(2)
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


def test_replacing_a_file_is_whole_or_nothing(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"gap": 0.1})
    with largest_file(20), pytest.raises(OSError, match="File too large"):
        write_json(path, {"gap": "x" * 100})
    assert json.loads(path.read_text()) == {"gap": 0.1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_rows_are_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    table = Records(tmp_path / "records.jsonl")
    table.append(rows(2))
    assert synced == [(tmp_path / "records.jsonl").stat().st_size]


def test_open_run_writes_its_config_once(tmp_path):
    folder = tmp_path / "a" / "b"
    with open_run(folder, SETTINGS, ABOUT) as run:
        run.append(rows(2))
    config = json.loads((folder / "config.json").read_text())
    assert config == {**ABOUT, "config": {"learning_rate": 0.1, "seeds": [0, 1], "dataset": "digits"}}
    with open_run(folder, SETTINGS, {"experiment": "another start"}) as run:
        assert run.rows == rows(2)
    found = read_run(folder)
    assert (found.config, found.rows, found.summary) == (config, rows(2), None)
    write_json(folder / "summary.json", {"gap": None})
    assert read_run(str(folder)).summary == {"gap": None}


def test_other_settings_are_refused_by_their_names(tmp_path):
    with open_run(tmp_path, SETTINGS, ABOUT) as run:
        run.append(rows(1))
    other = {**SETTINGS, "learning_rate": 0.2, "batch_size": 8}
    with pytest.raises(RunError) as refusal, open_run(tmp_path, other, ABOUT):
        pass
    assert str(refusal.value) == (
        f"{tmp_path} holds a run of other settings (learning_rate 0.1 there, 0.2 here; batch_size None there, 8 here); "
        "name a new one with --run=NAME"
    )
    assert read_run(tmp_path).rows == rows(1)
    with open_run(tmp_path, SETTINGS, ABOUT) as run:  # the refusal gave the lock back
        assert run.rows == rows(1)


def test_a_run_from_before_there_was_a_choice_of_precision_goes_on_in_float32(tmp_path):
    with open_run(tmp_path, SETTINGS, ABOUT):
        pass
    with open_run(tmp_path, {**SETTINGS, "precision": "float32"}, ABOUT):
        pass
    refused = pytest.raises(RunError, match="precision float32 there, bfloat16 here")
    with refused, open_run(tmp_path, {**SETTINGS, "precision": "bfloat16"}, ABOUT):
        pass


@pytest.mark.parametrize("text", [b"", b'{"config": {"lea', b"\xff\xff", b"[]", b"null"])
def test_a_damaged_config_is_named(tmp_path, text):
    with open_run(tmp_path, SETTINGS, ABOUT):
        pass
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(RunError, match=r"config\.json cannot be read: "), open_run(tmp_path, SETTINGS, ABOUT):
        pass
    with pytest.raises(RunError, match=r"config\.json cannot be read: "):
        read_run(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == text


def test_rows_without_a_config_are_no_run(tmp_path):
    (tmp_path / "records.jsonl").write_text("{}\n")
    message = r"has records\.jsonl but no config\.json: not a run of this program; choose another --run"
    with pytest.raises(RunError, match=message), open_run(tmp_path, SETTINGS, ABOUT):
        pass
    with pytest.raises(RunError, match=r"is not a run's folder: it has no config\.json"):
        read_run(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=r"cannot write to .*/file.*; choose another folder"):
            open_run(folder, SETTINGS, ABOUT).__enter__()


def test_a_second_process_is_refused_and_a_killed_one_keeps_nothing(tmp_path):
    with another_process(tmp_path) as process:
        holder = f"pid {process.pid} on host {socket.gethostname()}"
        for _ in range(2):  # a refusal does not disturb the lock
            with pytest.raises(RunError) as refusal, open_run(tmp_path, SETTINGS, ABOUT):
                pass
            assert str(refusal.value) == f"{tmp_path} is in use by {holder}; wait for it, or choose another folder"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / "lock").exists()
        with open_run(tmp_path, SETTINGS, ABOUT) as run:
            assert run.rows == rows(1)
            assert (tmp_path / "lock").read_text() == f"pid {os.getpid()} on host {socket.gethostname()}\n"


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    with (
        open_run(tmp_path, SETTINGS, ABOUT),
        pytest.raises(RunError, match=f"in use by pid {os.getpid()} on host"),
        open_run(tmp_path, SETTINGS, ABOUT),
    ):
        pass


def test_the_lock_is_given_back_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, SETTINGS, ABOUT):
        1 / 0  # noqa: B018
    with open_run(tmp_path, SETTINGS, ABOUT) as run:
        assert run.rows == []


def test_about_run_tells_what_ran(monkeypatch):
    about = about_run("offline", ["cpu:0"])
    assert about["experiment"] == "offline"
    assert about["devices"] == ["cpu:0"]
    assert about["host"] == socket.gethostname()
    assert about["versions"]["jax"]
    assert json.loads(json.dumps(about)) == about
    monkeypatch.setattr(records, "PACKAGES", ("no-such-package",))
    monkeypatch.setenv("PATH", "")
    about = about_run("offline", [])
    assert about["versions"] == {"no-such-package": None}
    assert about["git_commit"] is None
