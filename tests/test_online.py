"""The online script end to end, tiny."""

import dataclasses
import json
import random
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_offline import kept_arrays

from wsjax.errors import UsageError
from wsjax.scripts import protocols
from wsjax.storage.records import read_run

SCRIPT = Path(__file__).parents[1] / "experiments" / "online.py"
TINY = ("--epochs", "4", "--threshold", "0.5", "--seeds", "0", "1", "--num_train", "60")


KEY = ("method", "seed", "round", "epoch", "samples", "steps")


def run(workdir, *arguments):
    command = [sys.executable, str(SCRIPT), *TINY, "--workdir", str(workdir), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_rounds_grow_by_the_increment_and_the_summary_adds_up(script, tmp_path):
    code, out, error = script("online", *TINY, "--workdir", tmp_path, "--increment", "25", "--evaluate", "round")
    assert code == 0, error
    assert "of RI's steps" in " ".join(out.split())
    config, rows, summary, _ = read_run(tmp_path / "online" / "digits-mlp-adam")
    assert config["experiment"] == "online"
    assert summary is not None
    assert [row["samples"] for row in summary["rounds"] if (row["method"], row["seed"]) == ("WS", 1)] == [25, 50, 60]
    assert all((row["test_accuracy"] is None) == (row["stop"] is None) for row in rows)
    for total in summary["rows"]:
        own = [row for row in rows if row["method"] in ("first", total["method"]) and row["seed"] == total["seed"]]
        assert total["epochs"] == len(own)
        assert total["steps"] == sum(row["steps"] for row in own if row["stop"])
    json.dumps(summary, allow_nan=False)
    assert (tmp_path / "online" / "digits-mlp-adam" / "figure.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pool", "61"), "--pool asks for 61 images; the train split has 60"),
        (("--pool", "1.5"), "--pool is a fraction up to 1, or a whole number of images above that, not 1.5"),
        (("--pool", "0"), "--pool must be positive, not 0"),
        (("--increment", "0"), "--increment must be positive, not 0"),
        (("--max_rounds", "-1"), "--max_rounds must be positive, not -1"),
        (("--devices", "0"), "--devices must be positive, not 0"),
        (("--devices", "5"), r"--devices=5: 5 devices asked for; there are 4 \(cpu\)"),
        (("--replicas", "gpu"), "unknown replicas 'gpu'; available: devices"),
        (("--devices", "2", "--replicas", "devices"), "--devices splits batches and --replicas=devices spreads runs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, tmp_path, arguments, message):
    code, _, error = script("online", *TINY, "--workdir", tmp_path, *arguments)
    assert code == 2
    assert re.fullmatch(f"error: {message}.*\n", error)


def test_a_threshold_that_nobody_gave_is_no_mistake():
    own = runpy.run_path(str(SCRIPT))
    check, defaults = own["check"], own["defaults"]
    for dataset, protocol in (("digits", None), ("cifar10", "dash")):
        settings = protocols.applied(defaults(dataset), protocol)
        check(dataclasses.replace(settings, stop=("epochs",)))
        with pytest.raises(UsageError, match="--threshold has no use"):  # nor is the default of other scripts
            check(dataclasses.replace(settings, stop=("epochs",), threshold=0.99))
        with pytest.raises(UsageError, match="--threshold has no use"):
            check(dataclasses.replace(settings, stop=("epochs",), threshold=0.5))


@pytest.mark.parametrize("kind", ["SP", "SPG"])
def test_shrinking_before_the_first_round_gives_a_method_a_first_round_of_its_own(script, tmp_path, kind):
    factor = {"SP": "--shrink", "SPG": "--gaussian_shrink"}[kind]
    flags = ("--increment", "30", "--at_once", factor, "0.5", "--threshold", "1", "--stack", "False")
    code, _, error = script("online", *TINY, "--workdir", tmp_path, *flags, "--methods", "RI", "WS", kind)
    assert code == 0, error
    _, rows, summary, _ = read_run(tmp_path / "online" / "digits-mlp-adam")
    assert {(row["method"], row["round"]) for row in rows} == {
        ("first", 1), ("RI", 2), ("WS", 2), (kind, 1), (kind, 2),
    }  # fmt: skip
    ends = [(row["method"], row["seed"], row["round"]) for row in summary["rounds"]]
    assert sorted(ends) == sorted((name, seed, n) for name in ("RI", "WS", kind) for seed in (0, 1) for n in (1, 2))
    first, own = (next(row["train_loss"] for row in rows if row["method"] == name) for name in ("first", kind))
    assert first != own


def test_methods_that_do_not_shrink_cannot_do_so_at_once():
    own = runpy.run_path(str(SCRIPT))
    digits, dash = own["defaults"]("digits"), protocols.applied(own["defaults"]("cifar10"), "dash")
    own["check"](dataclasses.replace(digits, methods=("RI", "WS", "SPG@0.01"), at_once=True))
    own["check"](dataclasses.replace(dash, methods=("RI", "WS")))  # the protocol says so, not the user
    with pytest.raises(UsageError, match="--at_once has no use without SP or SPN or SPG in --methods"):
        own["check"](dataclasses.replace(digits, methods=("RI", "WS"), at_once=True))


RESNET = (
    "--increment", "30", "--model", "resnet18", "--width", "2", "--threshold", "1", "--epochs", "2", "--methods", "WS",
)  # fmt: skip


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The rows of a ResNet's run on one device."""
    return rows_of_resnet(tmp_path_factory.mktemp("one"))


def rows_of_resnet(folder, *flags):
    done = run(folder, *RESNET, *flags)
    assert done.returncode == 0, done.stderr
    found = read_run(folder / "online" / "digits-resnet18-adam")
    assert found.config["compiled_kernels"] is True
    return sorted(found.rows, key=lambda row: [row[k] for k in KEY])


@pytest.mark.parametrize("flags", [("--devices", "2"), ("--replicas", "devices")])
def test_several_devices_end_where_one_does(one_device, tmp_path, flags):
    for a, b in zip(one_device, rows_of_resnet(tmp_path, *flags), strict=True):
        assert [a[k] for k in KEY] == [b[k] for k in KEY]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    arguments = (
        "--increment", "15", "--threshold", "1", "--epochs", "60", "--checkpoint_every", "7", "--stack", "False",
        "--hidden", "8",  # learns slowly: the run is long beside its start
    )  # fmt: skip
    begin = time.monotonic()
    assert run(tmp_path / "whole", *arguments).returncode == 0
    longest = 0.5 * (time.monotonic() - begin)  # or what the first kill leaves may end before the second
    seed = random.randrange(1000)
    print(f"moments drawn from seed {seed}")  # shown where the test fails
    draw, kills = random.Random(seed), 0
    command = [sys.executable, str(SCRIPT), *TINY, "--workdir", str(tmp_path / "killed"), *arguments]
    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(draw.uniform(0, longest)) == 0
            break  # it came to its end
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 1
    done = run(tmp_path / "killed", *arguments)
    assert done.returncode == 0, done.stderr
    whole, killed = (tmp_path / name / "online" / "digits-mlp-adam" for name in ("whole", "killed"))
    assert timeless(read_run(killed).rows) == timeless(read_run(whole).rows)
    # A leg killed between its last row and its last checkpoint is not trained again: its rows are all there.
    one, other = kept_arrays(whole), kept_arrays(killed)
    shared = one.keys() & other.keys()
    assert len(shared) > len(one) / 2
    assert all(one[key] == other[key] for key in shared)
    assert re.search(r"its checkpoints take \d+\.\d MB", " ".join(done.stdout.split()))
