"""The house: imports run down only, and what is read without training loads no jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {"errors", "checks", "kept", "trees", "parallel", "data", "storage"}
BELOW = {"errors": set(), "checks": {"errors"}, "kept": set(), "trees": set(), "storage": {"errors"}}
BELOW["data"] = {"errors", "storage"}
BELOW["parallel"] = GROUND - {"kept"}
for _room, *_rooms in (
    ("networks",),
    ("training", "networks"),
    ("methods", "training", "networks"),
    ("rounds", "methods", "training", "networks"),
    ("retraining", "rounds", "methods", "training", "networks"),
    ("results",),
    ("scripts", "results", "retraining", "rounds", "methods", "training", "networks"),
    ("commands", "scripts", "results", "retraining", "rounds", "methods", "training", "networks"),
):
    BELOW[_room] = GROUND | set(_rooms)
BELOW["results"] -= {"checks", "parallel", "trees", "data"}


def imported(path):
    """The rooms that a file imports anything from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("wsjax."))


MODULES = [path for path in sorted((ROOT / "wsjax").rglob("*.py")) if path != ROOT / "wsjax" / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down_only(path):
    room = path.relative_to(ROOT / "wsjax").parts[0].removesuffix(".py")
    assert set(imported(path)) <= BELOW[room] | {room}


def test_every_room_has_its_place():
    assert {path.relative_to(ROOT / "wsjax").parts[0].removesuffix(".py") for path in MODULES} == set(BELOW)


def test_nobody_imports_a_program():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else [module]
            assert not any(name.split(".")[0] in ("experiments", "figures", "benchmarks", "tests") for name in names)


LIGHT = [path for path in MODULES if path.parent.name == "results" or path.parts[-2:] in {
    ("storage", "records.py"), ("storage", "rows.py"), ("scripts", "cli.py"), ("scripts", "console.py"),
    ("scripts", "ending.py"), ("scripts", "config.py"), ("wsjax", "errors.py"),
}]  # fmt: skip


def test_what_is_read_without_training_loads_no_jax():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in LIGHT]
    assert len(names) >= 10
    assert loaded(f"import {', '.join(names)}", "jax", "flax") == []


def test_a_script_starts_to_listen_before_its_imports():
    for start in ("from wsjax.scripts import ending", "from wsjax.commands import main"):
        assert loaded(start, "jax", "tyro", "rich", "numpy", "asyncio") == []


def loaded(code, *modules):
    """Those of the modules that a new process has after it ran the code."""
    code += f"; import sys; print(*[name for name in {modules} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
