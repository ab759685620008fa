"""The retraining script as a scheduled job runs it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from wsjax.commands import retrain
from wsjax.errors import NonFiniteLoss
from wsjax.storage.files import read_json, write_json
from wsjax.storage.records import read_rows


def command(folder, *arguments):
    model = ("--model", "mlp", "--hidden", "32", "--activation", "relu", "--batch_size", "32")
    wsjax = [sys.executable, "-c", "from wsjax.commands.main import main; main()"]
    return [*wsjax, "retrain", "--model_dir", str(folder / "model"), *model, *arguments]


def call(folder, *arguments):
    line = command(folder, "--data", str(folder / "*.npz"), *arguments)
    done = subprocess.run(line, capture_output=True, text=True)
    return done.returncode, " ".join(done.stdout.split()), done.stderr


# The job, which is told to end as soon as a model's place is decided.
TOLD_AT_THE_END = """
import os, signal
from wsjax.retraining import shelf
finish = shelf.finish
def finish_and_tell(*arguments):
    finish(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
shelf.finish = finish_and_tell
from wsjax.commands.main import main
main()
"""


def add(folder, name, part):
    digits = load_digits()
    images = (digits.images[part] * 15).astype(np.uint8)[..., None]
    np.savez(folder / f"{name}.npz", images=images, labels=digits.target[part])


def test_a_jobs_life(tmp_path):
    add(tmp_path, "monday", slice(0, 500))
    code, said, _ = call(tmp_path)
    assert code == 0
    assert "model 1, from scratch: " in said
    assert call(tmp_path) == (0, "no new data: nothing changed", "")

    add(tmp_path, "tuesday", slice(500, 1000))
    code, said, _ = call(tmp_path, "--compare_scratch", "--precision=bfloat16", "--devices=2")
    assert code == 0
    assert read_json(tmp_path / "model/models/0002/lineage.json")["settings"]["devices"] == 2
    for part in ("model 2, from model 1, shrunk and perturbed: ", "(measured with model 2, on "):
        assert part in said
    assert re.search(r"held-out accuracy: before 9\d\.\d\d%, now 9\d\.\d\d% \(", said)

    add(tmp_path, "wednesday", slice(1000, 1500))
    code, said, _ = call(
        tmp_path, "--shrink=-1", "--perturb=0", "--stop", "epochs", "--epochs=1", "--learning_rate=1e-9"
    )
    assert code == 3
    assert "KEPT ASIDE, model 2 stays current: worse by more than --tolerance=0.02" in said
    assert (
        f"to take model 3 all the same: wsjax retrain --model_dir={tmp_path / 'model'} --rollback_to=3 to try" in said
    )
    assert said.endswith(
        "to try another way on the same data: this command with --again and, say, --method=scratch for its method"
    )
    assert "the cap" not in said  # which --stop epochs asks for
    (tmp_path / "thursday.npz").write_bytes(b"half an upload")
    code, said, _ = call(tmp_path)
    assert (code, said.count("left out: "), "no new data, unless in what could not be used (" in said) == (4, 1, True)

    code, said, _ = call(tmp_path, "--rollback")
    assert (code, "model 1 is current, not 2" in said) == (0, True)
    code, _, errors = call(tmp_path, "--rollback")
    assert (code, errors) == (2, f"error: {tmp_path / 'model'}: model 1 has no parent to roll back to\n")
    code, said, _ = call(tmp_path, "--rollback_to=3")
    assert (code, "model 3 is current, not 1" in said) == (0, True)


def test_a_signal_after_the_last_epoch_leaves_the_report(tmp_path):
    add(tmp_path, "monday", slice(0, 500))
    python, _, _, *arguments = command(tmp_path, "--data", str(tmp_path / "monday.npz"))
    done = subprocess.run([python, "-c", TOLD_AT_THE_END, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "error: terminated; the same command continues the run\n")
    assert "model 1, from scratch: " in done.stdout
    assert "model 1 is current" in " ".join(done.stdout.split())


def capped(lines):
    return [line for line in lines if "the cap" in line]


def test_whether_the_cap_ended_a_training_is_for_the_call_that_trained_it():
    lineage = read_json(Path(__file__).parent / "fixtures/model_folder/models/0002/lineage.json")
    for cost in ("metrics", "scratch"):
        lineage[cost] |= {"stop": "epochs", "epochs": 9}
    by_accuracy, by_epochs = (retrain.Config(stop=(stop,)) for stop in ("accuracy", "epochs"))
    assert len(capped(retrain.report(by_accuracy, lineage))) == 2  # of before: it does not tell
    assert capped(retrain.report(by_epochs, lineage)) == []
    lineage["scratch"]["capped"], lineage["metrics"]["capped"] = True, False
    for config in (by_accuracy, by_epochs):
        (line,) = capped(retrain.report(config, lineage))
        assert line.startswith("from scratch: ")
    lineage["metrics"]["capped"] = True
    said = {stop: capped(retrain.report(retrain.Config(stop=(stop,)), lineage))[0] for stop in ("accuracy", "plateau")}
    assert said == {
        "accuracy": "it ended at the cap of 9 epochs; raise --epochs or lower --threshold",
        "plateau": "it ended at the cap of 9 epochs; raise --epochs",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data is missing"),
        (("--data", ""), "--data has an empty name"),
        (("--data", "none.npz"), "no such data file: none.npz"),
        (("--data", "x", "--holdout", "1"), "--holdout must lie between 0 and 1, not 1.0"),
        (("--data", "x", "--tolerance", "2"), "--tolerance must lie in [0, 1], not 2.0"),
        (("--data", "x", "--shrink", "nan"), "--shrink must be finite, not nan"),
        (("--data", "x", "--devices", "0"), "--devices must be positive, not 0"),
        (("--data", "x", "--devices", "5"), "--devices=5: 5 devices asked for; there are 4 (cpu)"),
        (("--rollback",), "there is no folder {folder}/model; name one that wsjax retrain has made"),
        (
            ("--rollback", "--rollback_to", "2"),
            "--rollback goes to the parent, --rollback_to to the model that it names",
        ),
        (
            ("--data", "x", "--stop", "epochs", "--threshold=0.9"),
            "--threshold has no use without --stop accuracy: leave",
        ),
        (
            ("--data", "x", "--method=continue", "--fire_steps=1"),
            "--fire_steps has no use without --method=fire; leave it out, or give that",
        ),
        (("--data", "x", "--method=dash", "--shrink=0.1"), "--shrink has no use without --method=shrink-perturb; "),
        (("--data", "x", "--width=8"), "--width has no use for mlp; leave it out: it is for resnet18"),
        (("--data", "x", "--model_dir="), "--model_dir is empty: give a path, or leave it out"),
        (("--data", "x", "--model-dir", ""), "--model_dir is empty"),
        (("--rollback_to", "2"), "there is no folder {folder}/model; name one that"),
        (("--data", "x", "--model_dir", "~nobody-of-this-name/m"), "~nobody-of-this-name/m: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = subprocess.run(command(tmp_path, *arguments), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message.format(folder=tmp_path)}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was made


def test_progress_counts_a_training_for_comparison_too():
    most = {
        (method, rate, compare): retrain._most_epochs(
            retrain.Config(epochs=5, method=method, later_rate=rate, compare_scratch=compare)
        )
        for method in ("fire", "scratch")
        for rate in (None, 1.0)
        for compare in (True, False)
    }
    assert [key for key, epochs in most.items() if epochs == 10] == [
        ("fire", None, True), ("fire", 1.0, True), ("scratch", 1.0, True),
    ]  # fmt: skip
    assert set(most.values()) == {5, 10}


def test_what_must_stay_is_the_folders_where_it_is_not_given(tmp_path, monkeypatch):
    folder = Path(__file__).parent / "fixtures" / "model_folder"
    monkeypatch.setattr(sys, "argv", ["wsjax retrain", "--model-dir", str(folder)])
    kept = retrain.defaults(None)
    assert (kept.model, kept.hidden, kept.activation, kept.holdout) == ("mlp", (4,), "relu", 0.1)
    assert (kept.learning_rate, kept.batch_size) == (retrain.DEFAULTS.learning_rate, retrain.DEFAULTS.batch_size)
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "models" / "0002" / "lineage.json"
    lineage = read_json(path)
    settings = lineage["settings"]
    settings |= {"holdout": 0.25, "architecture": settings["architecture"] | {"width": 8}}
    write_json(path, lineage | {"settings": settings})
    kept = retrain.with_kept(retrain.DEFAULTS, copy)
    assert (kept.holdout, kept.width) == (0.25, 8)
    retrain.check(kept, kept)  # a width that an MLP has no use for is no flag of this call's


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {},
        {"holdout": "0.1"},
        {"holdout": 0.1, "architecture": "mlp"},
        {"holdout": 0.1, "architecture": {"model": 5}},
        {"holdout": 0.1, "architecture": {"model": "transformer"}},
        {"holdout": 0.1, "architecture": {"hidden": ["4"]}},
        {"holdout": 0.1, "architecture": {"hidden": [[4]]}},
    ],
)
def test_a_folder_that_cannot_be_keeps_no_setting(tmp_path, settings):
    model = tmp_path / "models" / "0001"
    model.mkdir(parents=True)
    write_json(tmp_path / "current.json", {"current": 1, "decided": 1})
    assert retrain.with_kept(retrain.DEFAULTS, tmp_path) == retrain.DEFAULTS
    write_json(model / "lineage.json", {"settings": settings})
    assert retrain.with_kept(retrain.DEFAULTS, tmp_path) == retrain.DEFAULTS
    (tmp_path / "current.json").write_text("{")
    assert retrain.with_kept(retrain.DEFAULTS, tmp_path) == retrain.DEFAULTS


def test_a_later_rate_that_diverges_is_named():
    with pytest.raises(NonFiniteLoss, match="lower --later_rate"), retrain.advice(retrain.Config(later_rate=1e30)):
        raise NonFiniteLoss("loss")


def test_a_killed_job_goes_on_where_it_was(tmp_path):
    add(tmp_path, "data", slice(0, 1000))
    slow = ("--stop", "epochs", "--epochs", "400", "--checkpoint_every", "5")
    line = command(tmp_path, "--data", str(tmp_path / "data.npz"), *slow)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    records = tmp_path / "model" / "models" / "0001.part" / "records.jsonl"
    deadline = time.monotonic() + 120
    while not (records.exists() and len(records.read_bytes().splitlines()) >= 20):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model" / "current.json").exists()
    before = read_rows(records)
    assert call(tmp_path, *slow)[0] == 0
    rows = read_rows(tmp_path / "model/models/0001/records.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, 401))
    assert rows[:15] == before[:15]  # with the seconds they took: they were not trained again
