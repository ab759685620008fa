"""The package as others install it: a wheel with all that it needs, whose command runs far from the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsjax.storage.files import read_json

ROOT = Path(__file__).parents[1]
pytest.importorskip("pip")


def call(*line, cwd, **environment):
    done = subprocess.run(list(map(str, line)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network, from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "wsjax", folder / "source" / "wsjax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    call(
        sys.executable, "-m", "pip", "--isolated", "wheel", "-q", *options, folder / "source", cwd=folder, **os.environ
    )
    return next(folder.glob("*.whl"))


def test_it_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "wsjax").rglob("*") if path.is_file()}
    assert names == {name for name in wanted if "__pycache__" not in name}
    assert {"wsjax/py.typed", "wsjax/networks/kernels/layers.cc", "wsjax/results/templates/page.html"} <= names


def test_its_command_retrains_in_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    options = ("--no-deps", "--no-index", "--no-compile", "--target", site)
    call(sys.executable, "-m", "pip", "--isolated", "install", "-q", *options, wheel, cwd=tmp_path, **os.environ)

    work = tmp_path / "work"
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (work / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(random.integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)):
            Image.fromarray(image).save(work / "photos" / name / f"{number}.png")
    images = random.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    np.savez(work / "day.npz", images=images, labels=np.arange(40) % 2, class_names=np.array(["cat", "dog"]))
    model = ("--model=mlp", "--hidden", "4", "--epochs=1", "--stop", "epochs")
    # The environment's own packages, but this one from there; an editable install would come after it.
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = call(site / "bin" / "wsjax", "retrain", *model, "--data", "day.npz", "photos", cwd=work, **environment)
    assert "model 1, from scratch: " in said
    assert "model 1 is current: model/models/0001" in said
    lineage = read_json(work / "model" / "models" / "0001" / "lineage.json")
    assert [row["images"] for row in lineage["files"]] == [40, 10]
    about = read_json(work / "model" / "models" / "0001" / "config.json")
    assert (about["versions"]["wsjax"], about["git_commit"]) == (wheel.name.split("-")[1], None)
