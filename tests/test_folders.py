"""What may happen to a run's folder, its data and its surroundings between two calls of a script, as users have it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsjax.storage.records import read_run

TINY = ("--model", "logistic", "--epochs", "3", "--seeds", "0", "1", "--num_test", "40", "--batch_size", "16")
OFFLINE = (*TINY, "--dataset", "digits", "--first_epochs", "2", "--num_train", "40")
RUN = Path("runs/offline/digits-logistic-adam")


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def own_data(path, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    labels = np.arange(30) % 3
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


@pytest.mark.parametrize("arguments", [("--max_rounds", "1"), ("--increment", "60"), ("--methods", "WS")])
def test_one_round_or_one_method_has_a_table_and_a_picture(script, arguments):
    code, out, err = script("online", *TINY, "--num_train", "60", "--increment", "25", "--threshold", "0.3", *arguments)
    assert (code, err) == (0, "")
    rounds = read_run("runs/online/digits-logistic-adam").summary["rounds"]
    assert len(rounds) >= 2
    assert f"{100 * np.mean([end['test_accuracy'] for end in rounds][-2:]):.2f}" in out
    assert Path("runs/online/digits-logistic-adam/figure.png").stat().st_size > 5000


def test_a_finished_run_without_its_checkpoints_trains_nothing_and_keeps_its_rows(script):
    assert script("offline", *OFFLINE)[0] == 0
    before = read_run(RUN).rows
    shutil.rmtree(RUN / "checkpoints")
    code, out, err = script("offline", *OFFLINE)
    assert (code, err) == (0, "")
    assert read_run(RUN).rows == before  # their seconds too
    assert "RI - WS" in out


@pytest.mark.parametrize("name", ["lr[0.1]", "back\\slash", "a b", "50%", "émile"])
def test_a_run_of_any_name_is_continued(script, name):
    assert script("offline", *OFFLINE, "--run", name)[0] == 0
    before = read_run(Path("runs/offline") / name).rows
    code, _, err = script("offline", *OFFLINE, "--run", name)
    assert (code, err) == (0, "")
    assert read_run(Path("runs/offline") / name).rows == before


def test_other_data_under_the_same_name_are_refused(script, tmp_path):
    data = own_data(tmp_path / "own.npz")
    arguments = ("--dataset", data, *TINY[:-4], "--batch_size", "8", "--first_epochs", "2", "--optimizer", "adam")
    assert script("offline", *arguments)[0] == 0
    folder = Path("runs/offline/own-logistic-adam")
    before = (folder / "records.jsonl").read_bytes()
    own_data(data, seed=1)
    code, _, err = script("offline", *arguments)
    assert code == 2
    assert "holds a run on other data: they have changed under the same name" in err
    assert err.count("\n") == 1
    assert (folder / "records.jsonl").read_bytes() == before
    own_data(data)  # as they were
    assert script("offline", *arguments)[0] == 0


def test_a_home_is_found_behind_its_sign(script, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert script("offline", *OFFLINE, "--workdir", "~/results")[0] == 0
    assert (tmp_path / "home" / "results" / "offline").is_dir()
    assert not Path("~").exists()
    code, _, err = script("offline", *OFFLINE, "--workdir", "~nobody-of-that-name/results")
    assert code == 2
    assert "there is no home folder for ~nobody-of-that-name" in err


def test_a_changed_row_is_told_by_its_line(script):
    assert script("offline", *OFFLINE)[0] == 0
    path = RUN / "records.jsonl"
    text = path.read_text()
    for old, new in (
        ('"epoch": 2', '"epoch": "2"'),
        ('"round": 2', '"round": 3'),
        ('"test_accuracy": 0', '"test_accuracy": 1'),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        number = text[: text.index(old)].count("\n") + 1
        code, _, err = script("offline", *OFFLINE)
        assert (code, err.count("\n")) == (2, 1)
        assert f"records.jsonl, line {number}" in err
    path.write_text(text)
    assert script("offline", *OFFLINE)[0] == 0


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_encoding_takes_the_table(tmp_path, environment):
    command = [sys.executable, str(Path(__file__).parents[1] / "experiments" / "offline.py"), *OFFLINE]
    done = subprocess.run(command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "+-" in done.stdout
    assert (tmp_path / RUN / "figure.png").exists()
