"""What config.json tells: packages, the commit of this very package, and the data."""

import json
import os
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest

from wsjax.storage import about
from wsjax.storage.about import about_run, data_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a folder of its own, and git with a user of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    package = tmp_path / "checkout" / "wsjax"
    package.mkdir(parents=True)
    (package / "errors.py").write_text("")
    return package


def git(folder, *arguments):
    user = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *user, *arguments], check=True, capture_output=True, text=True).stdout


def commit_all(folder):
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "--allow-empty", "-m", "all")
    return git(folder, "rev-parse", "HEAD").strip()


def test_about_run_tells_what_ran(monkeypatch):
    found = about_run("offline", ["cpu:0"])
    assert found["experiment"] == "offline"
    assert found["devices"] == ["cpu:0"]
    assert found["host"] == socket.gethostname()
    assert found["versions"]["jax"].count(".") >= 1
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setattr(about, "PACKAGES", ("no-such-package",))
    monkeypatch.setenv("PATH", "")
    found = about_run("offline", [])
    assert found["versions"] == {"no-such-package": None}
    assert found["git_commit"] is None


def test_the_commit_of_the_packages_own_checkout(package):
    commit = commit_all(package.parent)
    assert about._git_commit(package) == commit
    (package / "errors.py").write_text("changed")
    assert about._git_commit(package) == commit + "+"


def test_no_repository_has_no_commit(package):
    assert about._git_commit(package) is None


def test_a_repository_around_the_package_is_not_its_own(package):
    """A virtual environment in a user's repository: not tracked, or tracked as something else's part."""
    user = package.parent.parent
    (user / ".gitignore").write_text("checkout\n")
    commit_all(user)
    assert about._git_commit(package) is None
    (user / ".gitignore").unlink()
    commit_all(user)
    assert about._git_commit(package) is None


def test_a_checkout_that_does_not_track_the_package_is_not_its_own(package):
    (package.parent / ".gitignore").write_text("wsjax\n")
    commit_all(package.parent)
    assert about._git_commit(package) is None


def test_another_repository_in_the_environment_is_not_asked(package, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "errors.py").write_text("")
    other = commit_all(tmp_path / "other")
    own = commit_all(package.parent)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert about._git_commit(package) == own != other


def test_a_git_that_hangs_is_not_waited_for(package, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(about, "GIT_TIMEOUT", 0.2)
    begin = time.monotonic()
    assert about._git_commit(package) is None
    assert time.monotonic() - begin < 20


def test_data_digest_tells_shapes_dtypes_bits_and_order_apart():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    sets = [
        [images],
        [images.reshape(4, 6)],
        [images.view(np.int8)],
        [images + 1],
        [images[::-1]],
        [images, images[:0]],
        [zero, one],
        [one, zero],
        [np.concatenate([zero, one])],
        [-zero, one],
        [np.array(["a", "b"])],
        [np.float32(0)],
        [],
    ]
    assert len({data_digest(arrays) for arrays in sets}) == len(sets)
    assert data_digest([images[:, ::2]]) == data_digest([images[:, ::2].copy()])
    assert data_digest([zero]) == "e7ebc6268e4a8fd7fc805a698851a3e3"  # another would refuse every run that is under way
