"""A run's folder: whole rows or none, one process at a time, and no run of other settings."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsjax.errors import RunError
from wsjax.storage.files import read_json, write_json, write_whole
from wsjax.storage.records import BEFORE, Records, differing, follow_run, open_run, read_rows, read_run

ROOT = Path(__file__).parents[1]

ABOUT = {"experiment": "offline", "devices": ["cpu"]}
SETTINGS = {"learning_rate": 0.1, "seeds": (0, 1), "dataset": "digits"}


def rows(count, begin=1, **more):
    """Rows of epochs from `begin`."""
    same = {"method": "RI", "seed": 0, "round": 2, "samples": 600, "stop": None}
    same |= {"train_accuracy": 0.1 + 0.2, "train_loss": 1e-7, "test_accuracy": None, "test_loss": None}
    same |= {"train_seconds": 0.25, "eval_seconds": 0.0}
    epochs = range(begin, begin + count)
    return [{**same, "epoch": n, "steps": 10 * n, "samples_seen": 600 * n, **more} for n in epochs]


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


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
    table.append(rows(2, gradient_norm=1e300))
    table.append(rows(1, method='a "line"\nand é'))
    expected = [*rows(2, gradient_norm=1e300), *rows(1, method='a "line"\nand é')]
    assert table.rows == Records(path).rows == read_rows(path) == expected
    assert path.read_bytes().count(b"\n") == 3


def test_rows_in_memory_only():
    table = Records()
    table.append(rows(3))
    assert table.keep(lambda row: row["epoch"] != 2) == rows(1, 2)
    assert [row["epoch"] for row in table.rows] == [1, 3]


def test_no_rows_touch_no_file(tmp_path):
    Records(tmp_path / "records.jsonl").append([])
    assert list(tmp_path.iterdir()) == []


def test_keep_sets_dropped_rows_aside(tmp_path):
    path, aside = tmp_path / "records.jsonl", tmp_path / "records.jsonl.dropped"
    table = Records(path)
    table.append(rows(4))
    assert table.keep(lambda row: row["epoch"] <= 2) == rows(2, 3)
    assert table.rows == read_rows(path) == rows(2)
    assert read_rows(aside) == rows(2, 3)
    table.append(rows(1, 3))
    assert read_rows(path) == rows(3)
    Records(path).keep(lambda row: row["epoch"] <= 2)  # the next start drops the same row again
    assert [json.loads(line)["epoch"] for line in lines(aside)] == [3, 4, 3]
    assert sorted(tmp_path.iterdir()) == [path, aside]


def test_keep_leaves_a_right_file_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    table = Records(path)
    table.append(rows(2))
    before = path.stat()
    assert table.keep(lambda row: True) == []
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tail", [b'{"epoch": 3, "te', b"{", b"\0\0\0\0", b"\xff\xfe", b'{"epoch": 3}', b" "])
def test_a_last_line_cut_short_is_no_row_and_is_mended(tmp_path, tail):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    with path.open("ab") as file:
        file.write(tail)
    assert read_rows(path) == rows(2)
    table = Records(path)
    table.append(rows(1, 3))
    assert read_rows(path) == rows(3)


def test_every_cut_of_a_file_leaves_its_whole_rows(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(3))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert read_rows(path) == rows(whole[:size].count(b"\n"))


FOREIGN = {
    b'{"lr": 0.1, "seeds": [0, 1]}': "its only line is none that this program began",
    b'{"method": "SP", "rate": 0.1}': "its only line is none that this program began",
    b"my notes": "its only line is none that this program began",
    b"\0\0\0\0": "its only line is none that this program began",
    b'{\n "lr": 0.1,\n "seeds": [0, 1]\n}': "in line 1, Expecting property name",
    b"method,seed\nRI,0\n": "in line 1, Expecting value",
    b'{"lr": 0.1}\n': "in line 1, it has no field 'method'",
    b"\n": "in line 1, Expecting value",
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    for read in (read_rows, Records):
        with pytest.raises(RunError) as refusal:
            read(path)
        text = str(refusal.value)
        assert text.startswith(f"{path} is no file of records ({FOREIGN[content]}")
        assert text.endswith("): give another name, or restore it from a copy where it was one")
        assert "\n" not in text
    assert path.read_bytes() == content


@pytest.mark.parametrize("count", [0, 2])
def test_a_cut_row_is_in_its_file_until_another_takes_its_place(tmp_path, count):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(3))
    cut = b"".join(lines(path)[:count]) + lines(path)[count][:40]
    path.write_bytes(cut)
    path.chmod(0o444)
    table = Records(path)
    table.append([])
    assert (table.rows, path.read_bytes()) == (rows(count), cut)
    path.chmod(0o644)
    table.append(rows(1, count + 1))
    assert table.rows == Records(path).rows == rows(count + 1)


def test_a_cut_row_that_another_process_finished_is_not_cut(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    table = Records(path)
    path.write_bytes(whole)
    for change in (lambda: table.append(rows(1, 3)), lambda: table.keep(lambda row: False)):
        with pytest.raises(RunError, match="was removed or changed while this process was working with it"):
            change()
    assert path.read_bytes() == whole


def test_rows_behind_which_one_was_cut_are_dropped_as_others_are(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(3))
    path.write_bytes(path.read_bytes()[:-9])
    table = Records(path)
    assert table.keep(lambda row: row["epoch"] == 1) == rows(1, 2)
    table.append(rows(1, 2))
    assert Records(path).rows == rows(2)


BROKEN = {
    b'{"epoch": 2, "te': "Unterminated string",
    b"": "Expecting value",
    b"7": "no JSON object but 7",
    b"null": "no JSON object but None",
    b"\xff\xfe": "can't decode byte",
    b'{"epoch": 2} {}': "Extra data",
    b'{"a": 1}': "it has no field 'method'",
    b'{"epoch": NaN}': "NaN is no JSON number",
    b'{"epoch": 2, "epoch": 3}': "it gives 'epoch' twice",
    b'{"epoch": ' + 5000 * b"9" + b"}": "Exceeds the limit",
    100_000 * b"[": "it is nested too deeply",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    first, last = lines(path)
    path.write_bytes(first + line + b"\n" + last)
    advice = "restore the file from a copy, or remove this line and all after it, which are then trained again"
    for read in (read_rows, Records):
        with pytest.raises(RunError) as refusal:
            read(path)
        text = str(refusal.value)
        assert text.startswith(f"{path}, line 2, is damaged: ")
        assert BROKEN[line] in text
        assert text.endswith(f"; {advice}")
        assert "\n" not in text


def test_a_row_that_is_there_twice_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    path.write_bytes(path.read_bytes() + lines(path)[0])
    with pytest.raises(RunError, match="line 3, is damaged: line 1 has RI, seed 0, round 2, epoch 1 already;"):
        read_rows(path)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(1, gradient_norm=0.5))
    whole = path.read_bytes()
    passed = 0
    for bit in range(8 * (len(whole) - 1)):  # without its end of line, a line is one cut short
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read_rows(path)
        except RunError:
            continue
        assert found == rows(1, gradient_norm=0.5)
        passed += 1
    assert passed < len(whole)  # blanks between fields


def test_a_changed_value_is_found_and_another_layout_is_not_one(tmp_path):
    path = tmp_path / "records.jsonl"
    Records(path).append(rows(2))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"train_loss": 1e-07', b'"train_loss": 2e-07', 1))
    with pytest.raises(RunError, match="line 1, is damaged: it was changed after it was written;"):
        read_rows(path)
    compact = [json.dumps(json.loads(line), separators=(",", ":")) + "\r\n" for line in whole.splitlines()]
    path.write_bytes("".join(compact).encode())
    assert read_rows(path) == rows(2)


def test_rows_of_earlier_versions_have_no_checksum(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(2)))
    table = Records(path)
    table.append(rows(1, 3))
    assert read_rows(path) == table.rows == rows(3)
    assert [b"crc" in line for line in lines(path)] == [False, False, True]


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("figures/results/**/records.jsonl")))
def test_the_runs_of_the_figures_are_read(folder):
    run = read_run(folder)
    assert len(run.rows) == len(lines(folder / "records.jsonl")) > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_loss": float("nan")}, "train_loss is nan; it must be a finite number"),
        ({"norm": float("inf")}, "norm is inf; a further field must be a finite number or null"),
        ({"crc": 1.0}, "crc is 1.0"),
        ({"epoch": 1}, "there is one already"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, wrong, message):
    for table in (Records(tmp_path / "records.jsonl"), Records()):
        table.append(rows(1))
        with pytest.raises(RunError, match=rf"^a row cannot be recorded: {message}.*seed 0, round 2, epoch"):
            table.append(rows(1, 2) + rows(1, 3, **wrong))
        assert table.rows == rows(1)
    assert read_rows(tmp_path / "records.jsonl") == rows(1)


def test_a_full_disk_takes_no_half_row(tmp_path):
    path = tmp_path / "records.jsonl"
    table = Records(path)
    with largest_file(10), pytest.raises(OSError, match=r"File too large: '.*records\.jsonl'"):
        table.append(rows(1))
    assert not path.exists()
    table.append(rows(2))
    before = path.read_bytes()
    with largest_file(len(before) + 10), pytest.raises(OSError, match=r"File too large: '.*records\.jsonl'"):
        table.append(rows(3, 3))
    assert path.read_bytes() == before
    assert table.rows == rows(2)
    table.append(rows(1, 3))  # the disk has room again
    assert read_rows(path) == table.rows == rows(3)


def test_a_disk_that_fails_at_the_last_moment_takes_no_row(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "records.jsonl"
    table = Records(path)
    table.append(rows(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            table.append(rows(1, 3))
        with pytest.raises(OSError, match="No space left on device"):
            table.keep(lambda row: False)
    assert read_rows(path) == table.rows == rows(2)
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_vanishes_is_not_made_anew(tmp_path, begun):
    folder = tmp_path / "runs" / "run"
    with open_run(folder, SETTINGS, ABOUT) as run:
        run.append(rows(int(begun)))
        shutil.rmtree(tmp_path / "runs")
        with pytest.raises(RunError, match=r"records\.jsonl or its folder was removed while this process was writing"):
            run.append(rows(1, 2))
        assert list(tmp_path.iterdir()) == []
        assert run.rows == rows(int(begun))


def test_rows_of_another_process_are_not_mixed_with(tmp_path):
    path = tmp_path / "records.jsonl"
    one, other = Records(path), Records(path)
    one.append(rows(1))
    before = path.read_bytes()
    for change in (lambda: other.append(rows(1)), lambda: Records(path).append(rows(1, 2)) or one.append(rows(1, 3))):
        with pytest.raises(RunError, match=r"records\.jsonl was changed by another process while this one was writing"):
            change()
    with pytest.raises(RunError, match="was removed or changed while this process was working with it"):
        one.keep(lambda row: False)
    assert path.read_bytes().startswith(before)
    assert read_rows(path) == rows(2)


def test_replacing_a_file_is_whole_or_nothing(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"gap": 0.1})
    with largest_file(20), pytest.raises(OSError, match="File too large"):
        write_json(path, {"gap": "x" * 100})
    assert read_json(path) == {"gap": 0.1}
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
    config = read_json(folder / "config.json")
    assert config == {**ABOUT, "config": {"learning_rate": 0.1, "seeds": [0, 1], "dataset": "digits"}}
    with open_run(folder, SETTINGS, {"experiment": "another start"}) as run:
        assert run.rows == rows(2)
    assert follow_run(folder).rows == rows(2)
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


def test_a_setting_that_an_older_run_lacks_means_what_it_was_then(tmp_path, monkeypatch):
    monkeypatch.setitem(BEFORE, "augment", [])
    with open_run(tmp_path, SETTINGS, ABOUT):
        pass
    with open_run(tmp_path, {**SETTINGS, "augment": ()}, ABOUT) as run:
        assert run.rows == []
    other = pytest.raises(RunError, match=re.escape("(augment [] there, ['flip'] here)"))
    with other, open_run(tmp_path, {**SETTINGS, "augment": ("flip",)}, ABOUT):
        pass
    unknown = pytest.raises(RunError, match=re.escape("(another None there, 1 here)"))
    with unknown, open_run(tmp_path, {**SETTINGS, "another": 1}, ABOUT):
        pass


def test_other_data_under_the_same_name_are_refused(tmp_path):
    with open_run(tmp_path / "old", SETTINGS, ABOUT), open_run(tmp_path / "new", SETTINGS | {"data": "a1"}, ABOUT):
        pass
    for folder, data in (("old", "b2"), ("new", "a1")):  # an older run does not tell its data: it goes on
        with open_run(tmp_path / folder, SETTINGS | {"data": data}, ABOUT) as run:
            assert run.rows == []
    with pytest.raises(RunError) as refusal, open_run(tmp_path / "new", SETTINGS | {"data": "b2"}, ABOUT):
        pass
    assert str(refusal.value) == (
        f"{tmp_path / 'new'} holds a run on other data: they have changed under the same name since it began; bring "
        "the old ones back to continue it, or name a new run with --run=NAME"
    )
    other = pytest.raises(RunError, match=r"of other settings \(dataset digits there, svhn here\)")
    with other, open_run(tmp_path / "new", SETTINGS | {"data": "b2", "dataset": "svhn"}, ABOUT):
        pass
    assert differing({"data": "a1"}, {}) == differing({}, {"data": "a1"}) == {}
    assert differing({"data": "a1"}, {"data": "b2"}) == {"data": ("a1", "b2")}


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config is None, not a dict"),
        ({"config": []}, r"config is \[\], not a dict"),
        ({"config": {}, "experiment": 3}, "experiment is 3, not a str"),
        ({"config": {}, "versions": ["jax"]}, r"versions is \['jax'\], not a dict"),
        ({"config": {}, "devices": "cpu"}, "devices is 'cpu', not a list"),
        ({"config": {}, "git_commit": {}}, r"git_commit is \{\}, not a str"),
    ],
)
def test_a_config_of_other_kinds_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=rf"config\.json is damaged: {message}"):
        read_run(tmp_path)
    with pytest.raises(RunError, match=rf"config\.json is damaged: {message}"), open_run(tmp_path, {}, ABOUT):
        pass


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
