"""The offline script end to end, tiny: what it writes, a kill and a resume, and every bad input as one line."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from wsjax.storage.checkpoint import KEPT
from wsjax.storage.records import read_rows, read_run

SCRIPT = Path(__file__).parents[1] / "experiments" / "offline.py"
TINY = (
    "--dataset=digits", "--epochs=3", "--first_epochs=2", "--seeds", "0", "1", "--hidden=8", "--checkpoint_every=2",
)  # fmt: skip
SECONDS = ("train_seconds", "eval_seconds")


@pytest.fixture
def offline(script):
    """Runs the script in this process: (exit code, stdout, stderr)."""
    return partial(script, "offline")


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def save(path, count=20, **changes):
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8),
        "train_labels": np.arange(count) % 3,
        "test_images": random.integers(0, 256, (9, 4, 4, 3)).astype(np.uint8),
        "test_labels": np.arange(9) % 3,
    }
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_a_run_leaves_what_a_reader_needs(offline, tmp_path):
    code, out, _ = offline(*TINY)
    assert code == 0
    for text in ("RI", "WS", "SP", "95 % interval", "Picture:"):
        assert text in out
    folder = tmp_path / "runs" / "offline" / "digits-mlp-adam"
    config, rows, summary, _ = read_run(folder)
    assert config["config"]["epochs"] == 3
    assert config["config"]["num_train"] == 600
    assert config["versions"]["jax"]
    assert config["devices"]
    assert len(rows) == 2 * (2 + 3 * 3)
    assert [(row["method"], row["seed"]) for row in summary["rows"]] == [
        (method, seed) for method in ("RI", "WS", "SP") for seed in (0, 1)
    ]
    last = {(row["method"], row["seed"]): row for row in rows}
    for end in summary["rows"]:
        row = last[end["method"], end["seed"]]
        assert (end["epochs"], end["steps"], end["test_accuracy"]) == (3, row["steps"], row["test_accuracy"])
        assert end["steps"] == 3 * 10  # 600 images in batches of 64
    differences = [last["RI", seed]["test_accuracy"] - last["WS", seed]["test_accuracy"] for seed in (0, 1)]
    assert summary["gap"]["mean"] == pytest.approx(np.mean(differences))
    assert summary["gap"]["low"] < summary["gap"]["mean"] < summary["gap"]["high"]
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"

    before = (folder / "records.jsonl").read_bytes()
    assert offline(*TINY)[0] == 0, "the same command again finds the run finished"
    assert (folder / "records.jsonl").read_bytes() == before

    code, _, error = offline(*TINY, "--learning_rate", "0.5", "--epochs", "4")
    assert code == 2
    assert re.search(r"holds a run of other settings \(.*learning_rate 0.001 there, 0.5 here.*--run=NAME", error)
    assert (folder / "records.jsonl").read_bytes() == before
    assert offline(*TINY, "--learning_rate", "0.5", "--run", "other")[0] == 0


def test_a_users_own_images_a_resnet_and_several_shrinks(offline, tmp_path):
    own = save(tmp_path / "own.npz")
    arguments = ("--dataset", own, "--epochs", 1, "--batch_size", 8, "--learning_rate", 0.01)
    resnet = ("--width", 2, "--methods", "WS", "--evaluation", "reestimated", "--precision", "bfloat16")
    code, _, error = offline(*arguments, *resnet, "--run", "resnet")
    assert code == 0, error
    found = read_run(tmp_path / "runs" / "offline" / "resnet")
    assert found.config["config"]["model"] == "resnet18"
    assert found.config["compiled_kernels"] is False  # they are for float32
    shrinks = ("--model", "logistic", "--shrink", 0.1, 0.3, "--perturb", 0.01, 0.1)
    code, out, error = offline(*arguments, *shrinks)
    assert code == 0, error
    summary = read_run(tmp_path / "runs" / "offline" / "own-logistic-sgd").summary
    names = [row["method"] for row in summary["rows"]]
    assert names == ["RI", "WS", "SP 0.1/0.01", "SP 0.1/0.1", "SP 0.3/0.01", "SP 0.3/0.1"]
    assert (summary["rows"][2]["shrink"], summary["rows"][2]["perturb"]) == (0.1, 0.01)
    assert "one seed gives no interval" in " ".join(out.split())


def start(workdir, *arguments):
    command = [sys.executable, str(SCRIPT), *TINY, "--checkpoint_every", "3", "--workdir", str(workdir), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kept_arrays(run):
    """Every checkpoint's digest, by leg and epoch: a hash of the bits of parameters, statistics and optimiser state."""
    found = {}
    for leg in sorted((run / "checkpoints").iterdir()):
        kept = [path for path in leg.iterdir() if path.name.isdecimal()]
        assert len(kept) <= KEPT
        for path in kept:
            file = path / "state" / "state.safetensors"
            found[leg.name, int(path.name)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    """A real kill -9, twice, against a run that was left alone."""
    arguments = ("--epochs", "40", "--run", "killed")
    records = tmp_path / "a" / "offline" / "killed" / "records.jsonl"
    for lines in (5, 60):
        process = start(tmp_path / "a", *arguments)
        deadline = time.monotonic() + 120
        while not records.exists() or len(records.read_bytes().splitlines()) < lines:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for workdir in (tmp_path / "a", tmp_path / "b"):
        process = start(workdir, *arguments)
        out = process.communicate()[0]
        assert process.returncode == 0, out
    whole = tmp_path / "b" / "offline" / "killed" / "records.jsonl"
    assert timeless(read_rows(records)) == timeless(read_rows(whole))
    one, other = (tmp_path / name / "offline" / "killed" for name in ("a", "b"))
    assert kept_arrays(one) == kept_arrays(other)


def test_a_signal_at_any_moment_is_one_line_and_the_run_goes_on(tmp_path):
    """From the script's first line on: while it imports, compiles, trains."""
    listen = "import runpy, sys; from wsjax.scripts import ending; ending.begin(); print('up', flush=True)"
    code = f"{listen}; sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    # So many that the run has not ended when the last signal comes.
    arguments = (*TINY, "--epochs", "1500", "--methods", "WS", "--workdir", str(tmp_path))
    lines = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    for i, moment in enumerate((0, 0.2, 0.4, 0.7, 1, 1.5, 2, 2.5, 3.5)):
        number = list(lines)[i % 2]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "up\n"
        time.sleep(moment)
        process.send_signal(number)
        begin = time.monotonic()
        error = process.communicate(timeout=60)[1]
        assert time.monotonic() - begin < 15
        assert error == f"error: {lines[number]}; the same command continues the run\n", (moment, process.returncode)
        assert process.returncode == 128 + number
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_run(tmp_path / "offline" / "digits-mlp-adam").rows
    assert len({(row["method"], row["seed"], row["epoch"]) for row in rows}) == len(rows) == 2 * (2 + 1500)


def test_the_settings_that_the_report_ran_with(offline, tmp_path):
    """Each has its effect: methods at rates of their own, no biases, the pass after the epoch, one initial network."""
    flags = (*TINY, "--methods", "RI", "WS", "WS@0.1", "SP@0.1", "--workdir", tmp_path)

    def rows_of(name, *more):
        code, _, err = offline(*flags, "--run", name, *more)
        assert code == 0, err
        return timeless(read_run(tmp_path / "offline" / name).rows)

    plain = rows_of("plain")
    last = {row["method"]: row["train_loss"] for row in plain if row["seed"] == 1}
    assert list(last) == ["first", "RI", "WS", "WS@0.1", "SP@0.1"]
    assert last["WS"] != last["WS@0.1"]
    assert read_run(tmp_path / "offline" / "plain").config["methods"]["WS@0.1"] == {
        "reinit": "warm_start", "learning_rate": 0.1,
    }  # fmt: skip

    def differing(name, *more):
        pairs = zip(plain, rows_of(name, *more), strict=True)
        return {row["method"] for row, other in pairs if row != other}

    assert differing("fresh", "--fresh", "first") == {"RI", "SP@0.1"}
    assert differing("after", "--train_accuracy", "after") == set(last)
    for name, *more in (("bias", "--bias", "False"), ("warm", "--warmup", 3)):
        assert differing(name, *more) == set(last)


def test_help_loads_no_jax():
    code = (
        f"import runpy, sys; sys.argv = ['offline.py', '--dataset=cifar10', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"except SystemExit: pass\n"
        f"sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'matplotlib', 'sklearn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("--learning_rate", "default: 0.001", "Step size", "resnet18"):
        assert text in done.stdout
    groups = ("script", "data", "model", "training", "methods", "running")
    assert tuple(re.findall(r"─ (\w+) options ─", done.stdout)) == groups
    of = {name: done.stdout.split(f"─ {name} options ─")[1].split("╰─")[0] for name in groups}
    flags = ("fraction", "dataset", "width", "learning_rate", "shrink", "workdir")
    for name, flag in zip(groups, flags, strict=True):
        assert [other for other in groups if f"--{flag} " in of[other]] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "cifar"), r"unknown data set 'cifar'; possible: .*cifar10.*did you mean 'cifar10'"),
        (("--model", "resnet"), r"unknown model 'resnet'; available: resnet18, mlp, logistic; did you mean 'resnet18'"),
        (("--methods", "RI", "SPP"), r"unknown method 'SPP'; available: RI, WS, SP"),
        (("--optimizer", "adams"), r"unknown optimizer 'adams'; available: sgd, msgd, adam, adamw; did you mean"),
        (("--stop", "never"), r"unknown stop 'never'; available: epochs, accuracy, plateau"),
        (("--precision", "float16"), r"unknown precision 'float16'; available: float32, bfloat16"),
        (("--epochs", 0), r"--epochs must be positive, not 0"),
        (("--first_epochs", -3), r"--first_epochs must be positive, not -3"),
        (("--batch_size", -1), r"--batch_size must be positive, not -1"),
        (("--width", 0), r"--width must be positive, not 0"),
        (("--learning_rate", "-0.1"), r"--learning_rate must be positive, not -0.1"),
        (("--learning_rate", "nan"), r"--learning_rate must be positive, not nan"),
        (("--weight_decay", "-1"), r"--weight_decay must be 0 or more, not -1"),
        (("--threshold", 1.5), r"--threshold must lie in \(0, 1\], not 1.5"),
        (("--shrink", "inf"), r"--shrink must be finite, not inf"),
        (("--seeds", 1, 1), r"--seeds must not repeat a value: 1 1"),
        (("--fraction", 2), r"--fraction must lie in \(0, 1\], not 2.0"),
        (("--stop", "epochs", "--threshold", 0.9), r"--threshold has no use without --stop accuracy: leave it out"),
        (("--plateau_window", 5), r"--plateau_window has no use without --stop plateau: leave it out, or add plateau"),
        (("--methods", "RI@1e38", "WS"), r"loss is not finite: RI@1e\+?38, .*; lower the learning rate \(1e\+38\)"),
        (("--workdir", ""), r"--workdir is empty: give a path, or leave it out"),
        (("--data_dir=",), r"--data_dir is empty: give a path, or leave it out"),
        (("--num_train", 601), r"cannot take 601 train images; possible: 2 to 600"),
        (("--run", "../up"), r"--run must be a plain name, not '../up'"),
        (("--run", ".."), r"--run must be a plain name, not '..'"),
        (("--dataset", "missing.npz"), r"cannot read missing.npz"),
        (("--dataset", "cifar10", "--data_dir", "file.npz"), r"the data folder file.npz is a file"),
        (("--dataset", "no_labels.npz"), r"no_labels.npz.*train_labels"),
        (("--dataset", "float.npz"), r"float.npz.*float64"),
        (("--dataset", "rank.npz"), r"rank.npz.*\(20, 48\)"),
        (("--dataset", "range.npz"), r"range.npz.* -1"),
        (("--dataset", "lengths.npz"), r"lengths.npz.*19.*20"),
        (("--dataset", "empty.npz"), r"empty.npz.* 0;"),
        (("--dataset", "one.npz"), r"one.npz.* 1;"),
        (("--dataset", "cut.npz"), r"cut.npz .*archive"),
        (("--workdir", "file.npz"), r"cannot write to file.npz/offline/.*choose another folder"),
        (
            ("--learning_rate", 1e30),
            r"loss is not finite: first, seed 0, round 1, epoch 1, step \d+; lower the learning rate",
        ),
        (("--methods", "RI@"), r"--methods RI@: a learning rate is written as in RI@0.01"),
        (("--methods", "RI@fast"), r"--methods RI@fast: a learning rate is written as in RI@0.01"),
        (("--methods", "WS@-1"), r"--methods WS@-1 must be positive, not -1"),
        (("--methods", "XX@0.1"), r"unknown method 'XX'; available: RI, WS, SP"),
        (("--warmup", -1), r"--warmup must lie in \[0, 2\^31\), not -1"),
        (("--conv_init", "he"), r"unknown conv_init 'he'; available: report, paper"),
        (("--train_accuracy", "before"), r"unknown train_accuracy 'before'; available: running, after"),
        (("--fresh", "old"), r"unknown fresh 'old'; available: new, first"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(offline, tmp_path, arguments, message):
    save(tmp_path / "file.npz")
    save(tmp_path / "no_labels.npz", train_labels=None)
    save(tmp_path / "float.npz", train_images=np.zeros((20, 4, 4, 3)))
    save(tmp_path / "rank.npz", train_images=np.zeros((20, 48), np.uint8))
    save(tmp_path / "range.npz", test_labels=np.array([-1] * 9))
    save(tmp_path / "lengths.npz", train_labels=np.zeros(19, int))
    save(tmp_path / "empty.npz", 0)
    save(tmp_path / "one.npz", 1)
    whole = save(tmp_path / "file.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert zipfile.is_zipfile(tmp_path / "file.npz")

    code, out, error = offline(*(flag for flag in TINY if flag != "--hidden=8"), *arguments)  # some are of a ResNet
    assert code == 2
    assert len(error.strip().splitlines()) == 1, error
    assert re.search(message, error), error
    assert "Traceback" not in out + error


def test_an_unknown_flag_suggests_the_nearest(offline):
    code, _, error = offline("--epoch", 3)
    assert code == 2
    assert "--epochs" in error


def test_a_full_disk_keeps_what_is_written(offline, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    code, _, error = offline(*TINY)
    assert code == 2
    assert "No space left on device" in error
    kept = read_run(tmp_path / "runs" / "offline" / "digits-mlp-adam").rows
    monkeypatch.setattr(os, "fsync", real)
    assert 0 < len(kept) < 22
    assert offline(*TINY)[0] == 0
    assert len(read_run(tmp_path / "runs" / "offline" / "digits-mlp-adam").rows) == 22


def test_no_network_ends_at_once(offline, tmp_path):
    begin = time.monotonic()
    code, _, error = offline("--dataset", "cifar10", "--data_dir", tmp_path / "none")
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert "cifar10.npz" in error
    assert time.monotonic() - begin < 10
