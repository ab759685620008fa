"""What becomes of the kernels where compiling fails, and where what is compiled is kept."""

import os
import shlex
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from wsjax.networks import kernels
from wsjax.networks.conv import conv
from wsjax.storage import cache

SOURCES = len(kernels.LIBRARIES)


def load():
    """The libraries for float32."""
    return kernels.load("float32")


@pytest.fixture(scope="module")
def compiled():
    """The libraries by source, as a real compiler makes them."""
    return {source: library._name for source, library in zip(kernels.LIBRARIES, load(), strict=True)}


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """A cache of its own, and nothing remembered of compilations, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_told", [])
    forget()
    yield tmp_path
    forget()


def forget():
    kernels._compiled.cache_clear()
    kernels._tell.cache_clear()


@pytest.fixture
def compiler(anew, monkeypatch, compiled):
    """Has $CXX be a script of the given lines, which stand for compiling; it notes how often that was done."""

    def make(compiling, version="echo 1.0", name="compiler"):
        choose = "\n".join(
            f'case "$*" in *{source}.cc*) library={shlex.quote(path)};; esac' for source, path in compiled.items()
        )
        script = anew / name
        script.write_text(
            f'#!/bin/sh\ncase "$*" in *--version) {version}; exit;; esac\n'
            f"echo >> {anew}/times\nfor made; do :; done\n{choose}\n{compiling}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make


COPY = 'cp "$library" "$made"'


def times(anew):
    """How often something was compiled."""
    return len((anew / "times").read_text()) if (anew / "times").exists() else 0


def libraries():
    return [path for path in cache.home().rglob("*") if path.is_file()]


def fails(why):
    """Looks for kernels in vain, of which one line tells."""
    forget()
    with pytest.warns(
        UserWarning, match=r"^convolutions will be slow: their kernels could not be compiled \("
    ) as caught:
        assert not kernels.available()
    (warning,) = caught
    assert why in str(warning.message)
    assert "\n" not in str(warning.message)
    assert libraries() == []


def test_without_a_compiler_xla_does_it_and_the_user_is_told(anew, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.warns(UserWarning, match=r"convolutions will be slow: .*no compiler found: no-such-compiler"):
        y = conv(x, kernel, 1, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]])
    assert not list(anew.rglob("*.so"))


def test_a_folder_without_compilers(anew, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(anew))
    fails("no compiler found: c++, g++, clang++")


@pytest.mark.parametrize(
    ("compiling", "why"),
    [
        ("echo kernels.cc:1: bad weather >&2; exit 1", "(kernels.cc:1: bad weather)"),
        ("echo In file included from; echo 'a.h:3: error: bad weather' >&2; exit 1", "(a.h:3: error: bad weather)"),
        (r"printf '\303\050 bad \033[31m weather' >&2; exit 1", r"bad \x1b[31m weather)"),
        ("exit 3", "compiler ended with code 3 and without a library"),
        ("echo; exit 3", "compiler ended with code 3 and without a library"),
        ("exit 0", "compiler ended with code 0 and without a library"),
        ("kill -9 $$", "compiler ended with code -9 and without a library"),
    ],
)
def test_a_compiler_that_fails_is_told_with_its_message(anew, compiler, compiling, why):
    compiler(compiling)
    fails(why)


@pytest.mark.parametrize("content", ["", "garbage"])
def test_a_compiler_that_writes_no_library_is_told_and_nothing_of_it_kept(anew, compiler, content):
    compiler(f'printf "{content}" > "$made"')
    fails("could not be compiled (/")


def test_a_compiler_that_is_no_program(anew, monkeypatch):
    script = anew / "compiler"
    script.write_bytes(b"\x7fELF")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    fails("Exec format error")


@pytest.mark.parametrize("step", ["--version", "compiling"])
def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(anew, compiler, monkeypatch, step):
    monkeypatch.setattr(kernels, "TIMEOUT", 0.5)
    beats = anew / "beats"
    hang = f"(for _ in $(seq 400); do echo >> {beats}; sleep 0.05; done) & wait"
    compiler(hang if step == "compiling" else COPY, hang if step == "--version" else "echo 1.0")
    fails("did not end within 0.5 s")
    size = beats.stat().st_size
    assert size > 0
    time.sleep(0.5)
    assert beats.stat().st_size == size


def test_a_compiler_may_have_arguments_and_a_path_with_spaces(anew, compiler, monkeypatch):
    script = compiler('[ "$1" = -pipe ] || exit 1\nshift\n' + COPY, name="a compiler")
    monkeypatch.setenv("CXX", f"'{script}' -pipe")
    load()
    assert times(anew) == SOURCES
    compiler(COPY, name="a compiler")
    load()
    assert times(anew) == 2 * SOURCES
    monkeypatch.setenv("CXX", "g++ 'of")
    with pytest.raises(OSError, match="No closing quotation"):
        load()


def test_what_a_compiler_prints_need_not_be_text(anew, compiler):
    compiler(rf"printf '\377\303\050'; {COPY}", version=r"printf '\377\303\050'")
    load()
    assert times(anew) == SOURCES


def test_kernels_are_compiled_once_for_each_compiler_and_version(anew, compiler):
    compiler(COPY)
    for _ in range(2):
        load()
    assert (times(anew), len(libraries())) == (SOURCES, SOURCES)
    compiler(COPY, version="echo 2.0")
    for _ in range(2):
        load()
    assert (times(anew), len(libraries())) == (2 * SOURCES, 2 * SOURCES)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_library_is_compiled_again(anew, compiler, content):
    compiler(COPY)
    load()
    kept, *others = libraries()
    whole = kept.read_bytes()
    kept.unlink()  # this process has it open
    kept.write_bytes(whole[: len(whole) // 2] if content is None else content)
    load()
    assert times(anew) == SOURCES + 1
    assert kept.read_bytes() == whole
    assert sorted(libraries()) == sorted([kept, *others])


def test_a_whole_library_that_does_not_load_is_compiled_again(anew, compiler):
    compiler(COPY)
    load()
    kept, *_ = libraries()
    stem = kept.name.rpartition("-")[0]
    kept.unlink()
    foreign = cache.keep(stem, ".so", b"another system's")
    load()
    assert times(anew) == SOURCES + 1
    assert foreign not in libraries()
    assert len(libraries()) == SOURCES


def test_kernels_work_where_nothing_can_be_kept(anew, compiler):
    compiler(COPY)
    (anew / "cache").touch()
    with pytest.warns(UserWarning, match="what is compiled can't be kept") as caught:
        load()
    assert len(caught) == 1
    load()  # and says no more
    assert times(anew) == 2 * SOURCES


def test_processes_that_compile_at_once_do_not_disturb_each_other(anew, compiler):
    compiler(f"sleep 1; {COPY}")
    program = "from wsjax.networks import kernels; assert kernels.available()"
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", program], env=os.environ) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len(libraries()) == SOURCES
    before = times(anew)
    load()
    assert times(anew) == before > 0


def test_a_library_without_the_kernels_is_told(anew, compiler, tmp_path):
    (tmp_path / "empty.cc").write_text("")
    compiler(f'c++ -shared -o "$made" {tmp_path}/empty.cc')
    fails("lacks convolve, images_gradient")


def test_kernels_take_only_what_they_know():
    single, double, half = (jnp.ones(3, dtype) for dtype in (jnp.float32, jnp.int32, jnp.bfloat16))
    assert kernels.support(single, single)
    assert not kernels.support(double)
    assert not kernels.support(half, half)
    assert not kernels.support(single, half)
