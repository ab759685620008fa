"""Folders that an earlier version made are read, gone on with, and not trained again.

Commit ecfd91c made those of tests/fixtures, the models from the digits in tests/fixtures/incoming:

    wsjax retrain --model_dir=model_folder --data 'incoming/*.npz' --model=mlp --hidden 4 --activation relu
        --batch_size=32 --epochs=20 --learning_rate=0.02
    experiments/offline.py --model=logistic --methods RI SP --num_train=40 --num_test=20 --seeds 0 --epochs=2
        --first_epochs=2
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from wsjax.scripts import build
from wsjax.storage.records import read_run

FIXTURES = Path(__file__).parent / "fixtures"
AS_BEFORE = {
    "model": "mlp",
    "hidden": 4,
    "activation": "relu",
    "batch_size": 32,
    "epochs": 20,
    "learning_rate": 0.02,
    "tolerance": 1,
}
RUN = {"model": "logistic", "num_train": 40, "num_test": 20, "seeds": 0, "epochs": 2, "first_epochs": 2}


@pytest.fixture
def folder(tmp_path):
    """A copy, which may be written to, and is where scripts run."""
    return shutil.copytree(FIXTURES, tmp_path / "old")


@pytest.fixture
def call(script, folder, monkeypatch):
    """Runs a script or a command in the folder: (exit code, stdout on one line, stderr)."""
    monkeypatch.chdir(folder)

    def run(name, *arguments, **settings):
        code, said, errors = script(name, *arguments, *(f"--{field}={value}" for field, value in settings.items()))
        return code, " ".join(said.split()), errors

    return run


def retrain(call, *arguments):
    return call("retrain", "--model_dir=model_folder", *arguments, **AS_BEFORE)


@pytest.mark.parametrize("number", [1, 2])
def test_old_models_give_the_outputs_that_they_gave(number):
    images = np.load(FIXTURES / "incoming" / "a.npz")["images"][:5]
    model = build.load_model(FIXTURES / "model_folder", number)
    expected = np.load(FIXTURES / "model_folder_logits.npy")[number - 1]
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-5)
    assert model.lineage["model"] == number


def test_an_old_model_folder_is_gone_on_with(folder, call):
    code, said, errors = retrain(call, "--data", "incoming/*.npz")
    assert (code, errors) == (0, "")
    assert said.endswith("no new data: nothing changed")

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[200:300, ..., None]
    np.savez(folder / "incoming" / "c.npz", images=images, labels=digits.target[200:300])
    code, said, errors = retrain(call, "--data", "incoming/*.npz")
    assert (code, errors) == (0, "")
    assert "model 3, from model 2, shrunk and perturbed" in said
    assert "held-out accuracy: before " in said
    assert "(measured with model 1, on 92 images and another held-out set)" in said
    assert build.load_model("model_folder").lineage["parent"] == 2

    # The architecture is the folder's where no flag gives one; one that does is compared.
    given = ("retrain", "--model_dir", "model_folder", "--data", "incoming/*.npz")
    assert call(*given)[::2] == (0, "")
    code, _, errors = call(*given, "--hidden", "5", "--width=16")
    assert (code, errors) == (
        2, "error: model_folder holds a model of another architecture (hidden [4] there, [5] here); give the same, or "
        "leave its flags out, or name a new folder\n",
    )  # fmt: skip

    assert retrain(call, "--rollback")[:2] == (
        0, "rolled back: model 2 is current, not 3, which stays in model_folder/models",
    )  # fmt: skip
    assert build.load_model("model_folder").lineage["model"] == 2


@pytest.mark.filterwarnings("default")  # as in a script
def test_what_an_old_version_left_unfinished_is_not_cleared(folder, call):
    (folder / "model_folder" / "current.json").write_text('{"current": 1, "decided": 1}')
    part = (folder / "model_folder/models/0002").rename(folder / "model_folder/models/0002.part")
    config = (part / "config.json").read_bytes()
    for name in ("lineage.json", "samples.npy"):
        (part / name).unlink()
    code, said, errors = retrain(call, "--data", "incoming/*.npz")
    assert code == 0
    told = "warning: first-seeds-2: no checkpoint reaches as far as its rows do; 20 epochs are set aside"
    assert (errors.startswith(told), errors.count("\n")) == (True, 1)
    assert "it starts anew" not in said
    assert "model 2, from model 1, shrunk and perturbed" in said
    assert (folder / "model_folder/models/0002/config.json").read_bytes() == config


def test_a_finished_old_run_trains_nothing_and_keeps_its_rows(folder, call):
    place = folder / "runs" / "offline" / "digits-logistic-adam"
    place.parent.mkdir(parents=True)
    (folder / "run_folder").rename(place)
    before = read_run(place)
    code, said, errors = call("offline", "--methods", "RI", "SP", **RUN)
    assert (code, errors) == (0, "")
    assert "RI" in said
    after = read_run(place)
    assert after.rows == before.rows  # with the seconds that each epoch took: none was trained again
    assert len(after.rows) == 6
    for part in ("rows", "first_round"):  # an end has more fields now
        old, new = (summary.pop(part) for summary in (before.summary, after.summary))
        assert [{name: end.get(name) for name in was} for end, was in zip(new, old, strict=True)] == old
    assert {name: after.summary[name] for name in before.summary} == before.summary  # later ones tell more
