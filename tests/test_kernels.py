"""What becomes of the kernels where compiling fails, and where what is compiled is kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsjax.networks import kernels
from wsjax.networks.conv import conv


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """A cache of its own, and nothing remembered of compilations, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.available.cache_clear()
    yield tmp_path
    kernels.available.cache_clear()


def test_without_a_compiler_xla_does_it_and_the_user_is_told(anew, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.warns(UserWarning, match=r"convolutions will be slow: .*no compiler found: no-such-compiler"):
        y = conv(x, kernel, 1, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]])
    assert not list(anew.rglob("*.so"))


def test_a_compiler_that_fails_is_told_with_its_message(anew, monkeypatch):
    compiler = anew / "compiler"
    compiler.write_text("#!/bin/sh\necho kernels.cc:1: bad weather >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match=r"could not be compiled \(kernels.cc:1: bad weather\)"):
        assert not kernels.available()
    assert not list(anew.rglob("*.so"))


def test_kernels_are_compiled_once(anew):
    library = kernels.build()
    written = library.stat().st_mtime_ns
    assert kernels.build() == library
    assert library.stat().st_mtime_ns == written
    assert [path for path in anew.rglob("*") if path.is_file()] == [library]


def test_kernels_take_only_what_they_know():
    single, double, half = (jnp.ones(3, dtype) for dtype in (jnp.float32, jnp.int32, jnp.bfloat16))
    assert kernels.support(single, single)
    assert not kernels.support(double)
    assert not kernels.support(half, half)
    assert not kernels.support(single, half)
