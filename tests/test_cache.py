"""What is compiled is kept where only the user can write it, whole or not at all, and trouble is one line."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wsjax.storage import cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty place for the cache, and nothing told yet."""
    monkeypatch.setattr(cache, "_told", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(why, name=""):
    """Asks for the folder twice: the first time is told why there is none, in a line."""
    with pytest.warns(UserWarning, match="what is compiled can't be kept") as caught:
        assert cache.folder(name) is None
    assert cache.folder(name) is None
    (warning,) = caught
    assert why in str(warning.message)
    assert "\n" not in str(warning.message)


def test_the_folder_is_made_for_the_user_alone(root):
    old = os.umask(0)
    try:
        place = cache.folder("xla")
    finally:
        os.umask(old)
    assert place is not None
    assert place.parents[2] == root
    for part in (root, root / "wsjax", place.parent, place):
        assert stat.S_IMODE(part.stat().st_mode) == 0o700


def test_a_folder_that_others_may_read_is_closed_to_them(root):
    cache.home().mkdir(parents=True)
    cache.home().chmod(0o755)
    assert cache.folder() == cache.home()
    assert stat.S_IMODE(cache.home().stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o757, 0o777])
@pytest.mark.parametrize("depth", range(4))  # the folder for XLA, those above it that are ours, and the user's
def test_a_folder_that_others_can_write_is_not_used(root, depth, mode):
    place = cache.folder("xla")
    assert place is not None
    part = [place, *place.parents][depth]
    part.chmod(mode)
    refused(str(part), "xla")


def test_a_group_of_the_user_alone_is_no_other(root, monkeypatch):
    place = cache.folder()
    assert place is not None
    place.parent.chmod(0o770)
    monkeypatch.setattr(cache, "_is_own_group", lambda number: True)
    assert cache.folder() == place
    monkeypatch.setattr(cache, "_is_own_group", lambda number: False)
    refused(f"others can write {place.parent}")


def test_a_group_is_the_users_own_by_its_name_and_members(monkeypatch):
    import grp
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda number: pwd.struct_passwd(("me", "x", number, 7, "", "/", "/bin/sh")))
    groups = {7: ("me", []), 8: ("me", ["me"]), 9: ("me", ["you"]), 10: ("us", [])}
    monkeypatch.setattr(
        grp, "getgrgid", lambda number: grp.struct_group((groups[number][0], "x", number, groups[number][1]))
    )
    assert [cache._is_own_group(number) for number in (7, 8, 9, 10, 11)] == [True, True, False, False, False]


@pytest.mark.parametrize("depth", range(4))
def test_another_users_folder_is_not_used_whoever_can_write_it(root, monkeypatch, depth):
    place = cache.folder("xla")
    assert place is not None
    part, lstat = [place, *place.parents][depth], Path.lstat

    def of_another(path):
        status = list(lstat(path))
        if path == part:
            status[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", of_another)
    refused(f"{part} is another user's", "xla")


def test_a_sticky_folder_for_all_may_hold_it_but_not_be_it(root):
    root.mkdir()
    root.chmod(0o1777)  # as /tmp
    place = cache.folder()
    assert place is not None
    place.chmod(0o1777)
    refused(f"{place} is not yours alone")


def test_a_link_is_as_safe_as_what_it_leads_through(root, tmp_path):
    for name, mode in (("mine", 0o700), ("everyones", 0o777)):
        (tmp_path / name / "cache").mkdir(parents=True)
        (tmp_path / name).chmod(mode)
    root.symlink_to("mine/cache")
    assert cache.folder() == cache.home()
    assert (tmp_path / "mine" / "cache" / "wsjax").is_dir()
    root.unlink()
    root.symlink_to(tmp_path / "everyones" / "cache")
    refused(f"others can write {tmp_path / 'everyones'}")
    assert not list((tmp_path / "everyones" / "cache").iterdir())


def test_a_link_to_itself_and_a_link_to_nothing(root, monkeypatch):
    root.symlink_to(root)
    refused(str(root))
    root.unlink()
    root.symlink_to("nothing")
    monkeypatch.setattr(cache, "_told", [])
    refused(str(root))


@pytest.mark.parametrize("where", ["", "wsjax"])
def test_a_file_where_the_folder_should_be(root, where):
    root.joinpath(where).parent.mkdir(parents=True, exist_ok=True)
    root.joinpath(where).write_text("mine")
    refused(str(root / where))
    assert root.joinpath(where).read_text() == "mine"


def test_without_a_home(root, monkeypatch):
    import pwd

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    refused("there is no home folder")


def test_what_is_kept_is_found_whole_or_not_at_all(root):
    kept = cache.keep("stem", ".so", b"content")
    assert kept is not None
    assert cache.find("stem") == [kept]
    assert kept.read_bytes() == b"content"
    assert cache.find("other") == []
    for damaged in (b"", b"conten", b"another"):
        kept.write_bytes(damaged)
        assert cache.find("stem") == []
        assert not kept.exists()
        assert cache.keep("stem", ".so", b"content") == kept
    assert cache.find("stem") == [kept]
    assert os.listdir(kept.parent) == [kept.name]


def test_a_file_that_others_could_write_or_a_link_is_not_found(root, tmp_path):
    kept = cache.keep("stem", "", b"content")
    assert kept is not None
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.chmod(0o602)
    assert cache.find("stem") == []
    (tmp_path / "elsewhere").write_bytes(b"content")
    kept.symlink_to(tmp_path / "elsewhere")
    assert cache.find("stem") == []
    assert (tmp_path / "elsewhere").exists()


def test_another_users_file_is_not_found(root, monkeypatch):
    kept = cache.keep("stem", "", b"content")
    assert kept is not None
    lstat = Path.lstat

    def of_another(path):
        status = list(lstat(path))
        if path == kept:
            status[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", of_another)
    assert cache.find("stem") == []


def test_nothing_is_left_of_what_could_not_be_written(root, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    assert cache.folder() is not None
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert cache.keep("stem", "", b"content") is None
    assert os.listdir(cache.home()) == []


# --- JAX's compilation cache, in processes of their own ---

START = """
import resource, sys, warnings
from wsjax.scripts import process
warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
process.set_up()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if len(sys.argv) > 1:  # a full disk: what is longer is cut
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
for f in (jax.numpy.sin, jax.numpy.cos):
    print(jax.jit(lambda x: f(x) + 1)(0.5))
"""


def start(*arguments, told=0, chosen=None):
    """Runs a program that has JAX compile, which tells in so many lines, and returns them."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if chosen is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(chosen)
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1.4794255", "1.8775826"]
    lines = done.stderr.splitlines()
    assert len(lines) == told
    assert all(line.startswith("warning: what is compiled can't be kept") for line in lines)
    return done.stderr


def entries():
    return {path.name: path.read_bytes() for path in (cache.home() / "xla").glob("*-cache")}


def test_damaged_programs_are_compiled_again(root):
    start()
    whole = entries()
    assert len(whole) == 2
    for name in whole:
        (cache.home() / "xla" / name).write_bytes(b"garbage")
    start()
    assert set(entries()) == set(whole)
    assert b"garbage" not in entries().values()


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing_cut(root):
    assert "File too large" in start("100", told=1)
    assert entries() == {}
    start()
    assert len(entries()) == 2


def test_a_file_for_a_folder_is_told_in_a_line(root):
    cache.home().mkdir(parents=True)
    (cache.home() / "xla").touch()
    assert "is no folder" in start(told=1)


def test_a_folder_of_the_users_choice_is_left_as_it_is_and_told_of_in_a_line(root, tmp_path):
    start(chosen=tmp_path)
    assert not root.exists()
    damaged = [path for path in tmp_path.iterdir() if path.write_bytes(b"garbage")]
    assert len(damaged) == 2
    assert "$JAX_COMPILATION_CACHE_DIR" in start(chosen=tmp_path, told=1)
    assert [path.read_bytes() for path in damaged] == [b"garbage"] * 2
