"""The package's face: public names that load at first use."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import wsjax


def test_every_public_name_loads():
    for name in dir(wsjax):
        assert getattr(wsjax, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'wsjax' has no attribute 'nothing'"):
        wsjax.nothing  # noqa: B018


def test_a_star_import_gives_every_public_name():
    names = {}
    exec("from wsjax import *", names)
    assert set(dir(wsjax)) == set(names) - {"__builtins__"}
    assert {"shrink_perturb", "Batch", "load_model", "DataError", "RunError", "UserError", "NonFiniteLoss"} < set(names)


def test_type_checkers_see_the_same_names():
    text = Path(str(wsjax.__file__)).read_text()
    assert sorted(re.findall(r"import (\w+) as \1$", text, re.MULTILINE)) == dir(wsjax)


def test_import_loads_no_jax():
    code = "import sys, wsjax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_says_its_version():
    assert wsjax.__version__ == metadata.version("wsjax")
