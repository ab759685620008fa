"""A folder is held by one process, and what a lock's place holds else is left alone."""

import errno
import os
import sys
import threading

import pytest

from wsjax.errors import RunError
from wsjax.storage.lock import hold, hold_outputs, is_held

fcntl = pytest.importorskip("fcntl")


def refused(folder):
    with pytest.raises(RunError) as refusal, hold(folder):
        pass
    text = str(refusal.value)
    assert text.isprintable()
    return text


def test_a_symbolic_link_is_not_followed(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("pid of the thesis")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "lock"
    for target in (thesis, tmp_path / "none"):
        lock.symlink_to(target)
        assert refused(lock.parent) == f"{lock} is a symbolic link, not a lock of this program; remove it"
        lock.unlink()
    assert thesis.read_text() == "pid of the thesis"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.write_text("my notes")])
def test_what_is_no_lock_is_left_alone(tmp_path, make):
    lock = tmp_path / "lock"
    make(lock)
    before = lock.stat()
    assert str(tmp_path) in refused(tmp_path)
    assert refused(tmp_path).endswith("choose another folder")
    after = lock.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_it_goes_on_with_a_warning(tmp_path, monkeypatch, number):
    def flock(descriptor, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked here: see to it") as told, hold(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"pid {os.getpid()} on host ")
    assert len(told) == 1


def test_a_system_without_fcntl_goes_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.warns(UserWarning, match="cannot be locked here"), hold(tmp_path):
        assert (tmp_path / "lock").exists()


def test_another_error_is_no_lock_in_use(tmp_path, monkeypatch):
    def flock(descriptor, flags):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refused(tmp_path) == f"cannot lock {tmp_path}: Input/output error; choose another folder"


def test_the_holders_text_is_short_and_printable(tmp_path):
    with hold(tmp_path):
        (tmp_path / "lock").write_bytes(b"pid \x1b[2J\xff\n" + 10**6 * b"x")
        text = refused(tmp_path)
    assert text.startswith(f"{tmp_path} is in use by pid \\x1b[2J\ufffd\\nxxx")
    assert len(text) < len(str(tmp_path)) + 400


def test_a_full_disk_leaves_only_the_text_out(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with hold(tmp_path):
        assert (tmp_path / "lock").read_bytes() == b""
        assert refused(tmp_path).startswith(f"{tmp_path} is in use by another process;")


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    def read_only(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    assert refused(tmp_path) == f"cannot write to {tmp_path}: Read-only file system; choose another folder"


def test_who_looks_whether_a_folder_is_held_keeps_nobody_from_it(tmp_path):
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
        written = (tmp_path / "lock").read_text()
        assert written.startswith(f"pid {os.getpid()} ")
    assert not is_held(tmp_path)
    assert (tmp_path / "lock").read_text() == written
    for make in (os.mkfifo, os.mkdir, lambda path: path.write_text("my notes")):
        folder = tmp_path / getattr(make, "__name__", "notes").strip("<>")
        folder.mkdir()
        make(folder / "lock")
        assert not is_held(folder)  # it is for the run to refuse
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, [looking]).start()
    with hold(tmp_path):
        assert is_held(tmp_path)


def outputs_refused(records, checkpoints):
    with pytest.raises(RunError) as refusal, hold_outputs(records, checkpoints):
        pass
    return str(refusal.value)


def test_records_and_checkpoints_are_held_each_for_itself(tmp_path):
    one, two, c, d = (tmp_path / name for name in ("a/one.jsonl", "a/two.jsonl", "c", "d"))
    own = f"is in use by pid {os.getpid()} on host "
    with hold_outputs(one, c), hold_outputs(two, d), hold_outputs(None, None):
        assert outputs_refused(one, None).startswith(f"{one} {own}")
        assert outputs_refused(None, c).startswith(f"{c} {own}")
        assert outputs_refused(None, c).endswith("; wait for it, or choose another name")
        assert outputs_refused(tmp_path / "three.jsonl", d).startswith(f"{d} {own}")
        (tmp_path / "link").symlink_to(one)
        assert outputs_refused(tmp_path / "link", None).startswith(f"{one} {own}")
    with hold_outputs(one, c):
        pass


def test_a_folder_that_is_held_holds_what_lies_in_it(tmp_path):
    with hold(tmp_path), hold_outputs(tmp_path / "records.jsonl", tmp_path / "checkpoints"):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with hold_outputs(tmp_path / "records.jsonl", tmp_path / "checkpoints"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "lock", "records.jsonl.lock"]


def test_what_cannot_be_written_needs_no_lock_and_what_is_no_lock_is_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with hold_outputs(file / "records.jsonl", file):
        pass
    (tmp_path / "file.lock").write_text("my notes")
    assert outputs_refused(file, None).startswith(f"{tmp_path / 'file.lock'} is not a lock of this program; move it")
    assert (file.read_text(), (tmp_path / "file.lock").read_text()) == ("mine", "my notes")

    def read_only(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with hold_outputs(tmp_path / "records.jsonl", tmp_path):
        pass
