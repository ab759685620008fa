"""JSON files that tell whether they were changed, and paths as a user writes them."""

import json
import re
from pathlib import Path

import pytest

from wsjax.errors import RunError, UsageError
from wsjax.storage import checkpoint
from wsjax.storage.files import append_whole, check_writable, read_json, user_path, write_json
from wsjax.storage.records import Records, open_run, read_run

VALUE = {
    "gap": 0.1,
    "rows": [{"seed": 0, "stop": None}],
    "text": 'a "line"\nand é',
    "flag": True,
    "digits": {"digest": 1},
}


@pytest.fixture
def path(tmp_path):
    write_json(tmp_path / "summary.json", VALUE)
    return tmp_path / "summary.json"


def test_a_file_is_read_back_without_its_digest(path):
    assert read_json(path) == VALUE
    assert set(json.loads(path.read_text())) - set(VALUE) == {"digest"}


def test_another_layout_is_no_change(path):
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True), encoding="utf-8-sig")
    assert read_json(path) == VALUE


@pytest.mark.parametrize(
    ("old", "new"),
    [('"gap": 0.1', '"gap": 0.2'), ("null", "false"), ("true", "1"), ('"seed"', '"sead"'), ('"gap": 0.1,', "")],
)
def test_a_changed_value_is_found(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(RunError) as refusal:
        read_json(path)
    assert str(refusal.value) == f"{path} was changed after it was written; undo that, or restore it from a copy"


def test_every_cut_is_found(path):
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=r"summary\.json cannot be read: .*; restore it from a copy$"):
            read_json(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "it gives 'c' twice"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + 5000 * "9" + "}", "Exceeds the limit"),
        ("[1]", r"no JSON object but \[1\]"),
    ],
)
def test_what_no_one_here_writes_is_refused(path, text, reason):
    path.write_text(text)
    with pytest.raises(RunError, match=f"cannot be read: {reason}"):
        read_json(path)


def test_a_file_of_an_earlier_version_has_no_digest(path):
    path.write_text(json.dumps(VALUE))
    assert read_json(path) == VALUE


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(RunError) as refusal:
            read_json(path)
        assert str(refusal.value) == f"{path} cannot be read: {reason}; restore it from a copy"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": -float("inf")}]])
def test_what_could_not_be_read_back_is_not_written(path, value):
    with pytest.raises(RunError, match=r"summary\.json cannot be written: Out of range float values"):
        write_json(path, {"gap": value})
    with pytest.raises(ValueError, match="a field cannot be named 'digest'"):
        write_json(path, {"digest": 1})
    assert read_json(path) == VALUE
    assert list(path.parent.iterdir()) == [path]


def test_bytes_are_appended_to_the_file_that_is_known(tmp_path):
    path = tmp_path / "file"
    assert append_whole(path, b"ab", None) == 2
    assert append_whole(path, b"c", 2) == 3
    for size in (None, 0, 2, 4):
        with pytest.raises(RunError, match="file was changed by another process"):
            append_whole(path, b"d", size)
    assert path.read_bytes() == b"abc"
    path.unlink()
    with pytest.raises(RunError, match="file or its folder was removed"):
        append_whole(path, b"d", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_expanded_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == user_path(Path("~/runs")) == tmp_path / "runs"
    assert user_path("a/~") == Path("a/~")
    with open_run("~/run", {}, {}) as run:
        assert run.path == tmp_path / "run" / "records.jsonl"
    assert read_run("~/run").config == {"config": {}}
    assert read_json("~/run/config.json") == {"config": {}}
    write_json("~/run/other.json", {"a": 1})
    assert Records("~/run/rows.jsonl").path == tmp_path / "run" / "rows.jsonl"
    assert checkpoint.Folder("~/checkpoints").path == tmp_path / "checkpoints"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "lock", "other.json"]


def test_no_such_home_is_one_line():
    for use in (user_path, Records, read_run, read_json, checkpoint.Folder):
        with pytest.raises(UsageError) as refusal:
            use("~no-such-user/run")
        said = "~no-such-user/run: there is no home folder for ~no-such-user; write the folder in full"
        assert str(refusal.value) == said
    assert user_path("./~no-such-user/run") == Path("~no-such-user/run")


def test_what_cannot_be_written_is_told_by_the_folder_that_is_there(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, tmp_path, tmp_path / "a" / "b"):
        check_writable(path)
    with pytest.raises(RunError, match=re.escape(f"cannot write {file / 'a' / 'b'}: {file} is a file, not a folder")):
        check_writable(file / "a" / "b")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(RunError, match=re.escape(f"{tmp_path} is read-only for this user; choose another place")):
        check_writable(tmp_path / "a" / "b")
    check_writable(file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
