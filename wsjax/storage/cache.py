"""The user's cache folder, for what is compiled. Standard library only.

What lies there is run. So it is used only where nobody but this user, and root, can have put it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
import warnings
from pathlib import Path

from wsjax.errors import printable

_told: list[str] = []  # what was said, once in a process


def folder(name: str = "") -> Path | None:
    """The user's folder for what is compiled for this kind of processor, or one within it.

    It is made where it is missing, and nobody but the user can look into it.

    Returns:
        The folder, or None, with a warning, where it can't be made or others can write it or a folder above it.
    """
    try:
        place = home() / name
        for part in [*reversed(place.parents), place]:
            if not part.exists():
                part.mkdir(0o700, exist_ok=True)  # another process may make it at this moment
            _check(part)
        status = place.stat()
        if _is_posix() and (status.st_uid != os.geteuid() or _is_open(status)):  # root's and sticky ones pass above
            raise PermissionError(f"{place} is not yours alone")
        with contextlib.suppress(OSError):  # a read-only disk
            place.chmod(0o700)  # JAX's files may be for all to write
        return place
    except OSError as error:
        tell(error)
        return None


def home() -> Path:
    """The name of the folder for this kind of processor; a home may be shared by several kinds.

    Raises:
        OSError: if there is no home folder.
    """
    flags = []
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
        flags = [line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))]
    kind = hashlib.sha256("".join([platform.machine(), *flags[:1]]).encode()).hexdigest()[:8]
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise OSError("there is no home folder") from error
    return root.absolute() / "wsjax" / kind


def tell(reason: object, variable: str = "XDG_CACHE_HOME") -> None:
    """Warns that nothing is kept, and why; once in a process, since one cause shows in many places.

    Args:
        reason: what went wrong.
        variable: the one of the environment that names the folder.
    """
    if not _told:
        _told.append(printable(reason))
        warnings.warn(
            f"what is compiled can't be kept, so the next start is slow too ({_told[0]}); "
            f"set ${variable} to a folder, with room, that only you can write",
            stacklevel=3,
        )


def find(stem: str) -> list[Path]:
    """The files that `keep` wrote under that stem and that are whole; others of that stem are removed."""
    place, whole = folder(), []
    for path in sorted(place.glob(f"{stem}-*")) if place else ():
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_mine = not _is_posix() or (status.st_uid == os.geteuid() and not _is_open(status))
            if stat.S_ISREG(status.st_mode) and is_mine and path.name == _name(stem, path.read_bytes(), path.suffix):
                whole.append(path)
            else:
                path.unlink()
    return whole


def keep(stem: str, suffix: str, content: bytes) -> Path | None:
    """Writes a file whose name holds its digest: other processes, and a start after a crash, see all of it or nothing.

    Returns:
        The file, or None, with a warning, where it can't be written.
    """
    place = folder()
    if place is None:
        return None
    path = place / _name(stem, content, suffix)
    try:
        handle, temporary = tempfile.mkstemp(dir=place)  # of mode 0600
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        tell(error)
        return None
    with contextlib.suppress(OSError):  # not every system can do this to a folder
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return path


def _name(stem: str, content: bytes, suffix: str) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"


def _is_posix() -> bool:
    return os.name == "posix"  # elsewhere a mode says nothing, and a user's folders are closed to others anyway


def _check(part: Path) -> None:
    """Raises an OSError if anyone but this user and root can put something else in the place of what is in a folder.

    The folders above it are checked already, from the root on, so nobody can swap it after the check. A link is as safe
    as the link itself and all that it leads through.
    """
    if not part.is_dir():
        raise NotADirectoryError(f"{part} is no folder")
    if not _is_posix():
        return
    status = part.lstat()
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{part} is another user's")
    if stat.S_ISLNK(status.st_mode):
        target = part.parent / os.readlink(part)
        for above in [*reversed(target.parents), target]:
            _check(above)
    elif _is_open(status) and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"others can write {part}")


def _is_open(status: os.stat_result) -> bool:
    """Whether others than the owner can write."""
    by_group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    return bool(status.st_mode & stat.S_IWOTH or by_group)


def _is_own_group(number: int) -> bool:
    """Whether a group is this user's alone, as many systems make one for each user: of the same name, with no other."""
    import grp
    import pwd

    try:
        name, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(number)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
