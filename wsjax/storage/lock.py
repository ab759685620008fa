"""A folder or a file held against other processes, by a lock that the system frees when its holder ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from wsjax.errors import RunError, printable
from wsjax.storage.files import user_path

LOCK = "lock"

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_LOOK = 0.2  # seconds, much longer than `is_held` takes
_READ = 200  # bytes of a lock that are looked at: another process wrote them
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}

_held: list[Path] = []  # the folders that this process holds


@contextlib.contextmanager
def hold(folder: Path | str) -> Iterator[None]:
    """Holds a folder, made where it is missing, against other processes.

    The system frees it when its holder ends, however it ends. Where the file system has no locks, or Python none for
    this system, that is warned of and the folder is not held.

    Raises:
      RunError: another process, which is named, holds it, it cannot be written, or its lock is none of this program.
    """
    folder = user_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _open(folder / LOCK)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    place = folder.resolve()
    with _taken(lock, folder, "folder"):
        _held.append(place)
        try:
            yield
        finally:
            _held.remove(place)


@contextlib.contextmanager
def hold_outputs(records: Path | None, checkpoints: Path | None) -> Iterator[None]:
    """Holds a file of records, by a lock beside it, and a folder of checkpoints, there or not.

    What lies in a folder that this process holds needs no lock of its own; nor does what it cannot write.

    Raises:
      RunError: another process, which is named, holds one of them, or its lock is none of this program.
    """
    with contextlib.ExitStack() as stack:
        if records is not None:
            records = records.resolve()
            stack.enter_context(_hold_output(records, records.with_name(f"{records.name}.{LOCK}")))
        if checkpoints is not None:
            checkpoints = checkpoints.resolve()
            stack.enter_context(_hold_output(checkpoints, checkpoints / LOCK))
        yield


@contextlib.contextmanager
def _hold_output(path: Path, place: Path) -> Iterator[None]:
    lock = None
    if not any(path.is_relative_to(folder) for folder in _held):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = _open(place)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise RunError(f"cannot write to {path}: {error.strerror}; choose another name") from error
    with contextlib.nullcontext() if lock is None else _taken(lock, path, "name"):
        yield


@contextlib.contextmanager
def _taken(lock: int, what: Path, kind: str) -> Iterator[None]:
    """Takes an open lock, and says in it who did; closes it at the end. `kind` is what else the user may choose."""
    try:
        _take(lock, what, kind)
        with contextlib.suppress(OSError):  # who holds it is for people to read: a full disk may leave it out
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def is_held(folder: Path | str) -> bool:
    """Whether a process holds a folder; False where that cannot be told, or its lock is none of this program."""
    try:
        import fcntl  # not on Windows

        lock = os.open(user_path(folder) / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until it is closed, a moment that `_take` waits out
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(lock)
    return False


def _open(path: Path) -> int:
    """Opens a lock, which is made where it is missing. What this program did not write there is left alone."""
    if path.is_symlink():  # where a system has no O_NOFOLLOW
        raise RunError(f"{path} is a symbolic link, not a lock of this program; remove it")
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")  # O_NONBLOCK: a pipe without another end is no reason to wait
    lock = os.open(path, os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in flags), 0o666)
    if not stat.S_ISREG(os.fstat(lock).st_mode) or not (os.pread(lock, _READ, 0) or b"pid ").startswith(b"pid "):
        os.close(lock)
        raise RunError(f"{path} is not a lock of this program; move it away, or choose another folder")
    return lock


def _take(lock: int, what: Path, kind: str) -> None:
    try:
        import fcntl  # not on Windows

        deadline = time.monotonic() + _LOOK
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK / 10)  # another process may only be looking whether it is held
    except BlockingIOError as error:
        holder = printable(os.pread(lock, _READ, 0).decode(errors="replace").strip()) or "another process"
        raise RunError(f"{what} is in use by {holder}; wait for it, or choose another {kind}") from error
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise RunError(f"cannot lock {what}: {error.strerror}; choose another {kind}") from error
        warnings.warn(f"{what} cannot be locked here: see to it that no other process works in it", stacklevel=6)
