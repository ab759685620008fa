"""Shrinking trained networks: its two exact invariances, the script end to end, its summary by hand, Figure 7."""

import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_figures import CONFIG, command, draw, write_folder
from test_offline import timeless
from test_train import KEY, images, small_resnet_task

from wsjax import parallel
from wsjax.data.datasets import load, take
from wsjax.errors import RunError, UsageError
from wsjax.networks import models
from wsjax.results import shrinking
from wsjax.scripts import build
from wsjax.scripts import run as running
from wsjax.scripts.config import Common
from wsjax.storage.records import read_run
from wsjax.training.shrinking import shrink_curves
from wsjax.training.statistics import reestimated
from wsjax.training.task import image_task, with_batch_statistics
from wsjax.training.train import Setup, all_samples, evaluate, init_state, make_optimizer

SCRIPT = Path(__file__).parents[1] / "experiments" / "shrink_only.py"
SGD = make_optimizer("sgd", 0.1)


def task_of(model):
    return image_task(model, (8, 8, 1), (0.5,), (0.25,))


def state_and_setup(task, **options):
    data = images(40)
    return init_state(task, SGD, KEY), Setup(task, SGD, data, data, batch_size=16, **options)


def shrunk(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


RELU = task_of(models.mlp(3, (5, 4), activation="relu", bias=False))


@given(st.floats(0.01, 4.0), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=20)
def test_relu_without_bias_predicts_the_same_at_any_shrink(shrink, seed):
    params, _ = RELU.init(jax.random.key(seed))
    pixels, _ = images(20, seed=seed)
    logits, there = (
        RELU.apply(own, {}, pixels, jnp.ones(20), False, None)[0] for own in (params, shrunk(params, shrink))
    )
    np.testing.assert_allclose(there / shrink**3, logits, rtol=1e-4, atol=1e-5)  # three layers
    exact = 2.0 ** np.floor(np.log2(shrink))  # powers of two round nothing, so that not even a near tie can turn
    same = RELU.apply(shrunk(params, exact), {}, pixels, jnp.ones(20), False, None)[0]
    assert jnp.array_equal(jnp.argmax(same, 1), jnp.argmax(logits, 1))


@pytest.mark.parametrize("shrink", [0.25, 0.6, 3.0])
def test_batch_norm_on_batch_statistics_computes_the_same_but_for_the_last_layer(shrink):
    task = small_resnet_task()
    params, stats = task.init(KEY)
    # Variances so large that eps does not count, and no last bias, which would not shrink as the rest does.
    params = jax.tree_util.tree_map_with_path(lambda path, x: 1e3 * x if "conv" in str(path) else x, params)
    params["head"]["bias"] = jnp.zeros_like(params["head"]["bias"])
    pixels, _ = images(16)
    logits, there = (
        task.apply(own, stats, pixels, jnp.ones(16), True, None)[0] for own in (params, shrunk(params, shrink))
    )
    np.testing.assert_allclose(there / shrink**2, logits, rtol=1e-3, atol=1e-4)  # the last scale and bias, and the head
    assert jnp.array_equal(jnp.argmax(there, 1), jnp.argmax(logits, 1))


SHRINKS = np.array([0.0, 0.5, 1.0], np.float32)


@pytest.mark.parametrize("evaluation", ["running", "reestimated", "batch"])
def test_a_curve_is_the_evaluation_of_each_shrunk_network(evaluation):
    task = small_resnet_task()
    task = with_batch_statistics(task) if evaluation == "batch" else task
    state, setup = state_and_setup(task, judged=reestimated if evaluation == "reestimated" else None)
    state = reestimated(setup, state, all_samples(setup.train))
    expected = [
        float(evaluate(setup, state._replace(params=shrunk(state.params, x)), all_samples(setup.train))["accuracy"])
        for x in SHRINKS
    ]
    found = shrink_curves(setup, {"a": state}, SHRINKS)
    np.testing.assert_allclose(found["a"], expected, atol=1e-6)


TINY = ("--epochs", "2", "--seeds", "0", "1", "--hidden", "4", "--num_train", "30", "--num_test", "20")
RUN = "runs/shrink_only/digits-mlp-sgd"
MLPS = ("--networks", "tanh", "relu_no_bias")


def test_a_run_leaves_its_curves_and_measures_them_once(script, tmp_path, monkeypatch):
    code, out, _ = script("shrink_only", *TINY, *MLPS)
    assert code == 0
    assert "MLP, tanh: from shrink" in out
    folder = tmp_path / RUN
    _, rows, summary, _ = read_run(folder)
    curves = summary["measured"]
    assert [(one["network"], one["seed"], one["evaluation"]) for one in curves] == [
        (network, seed, "running") for network in ("tanh", "relu_no_bias") for seed in (0, 1)
    ]
    for one in curves:
        (end,) = [row for row in rows if row["stop"] and (row["method"], row["seed"]) == (one["network"], one["seed"])]
        assert (len(one["shrinks"]), one["shrinks"][0], one["shrinks"][-1]) == (81, 0.0, 1.0)
        assert one["accuracies"][-1] == pytest.approx(end["test_accuracy"], abs=1e-6)
    for one in curves[2:]:
        assert one["accuracies"][1:] == [one["accuracies"][-1]] * 80  # ReLU without biases
    assert (folder / "figure.png").exists()

    # Neither trained nor measured again, even where no checkpoint is left.
    shutil.rmtree(folder / "checkpoints")
    monkeypatch.setattr("wsjax.training.shrinking.shrink_curves", None)
    assert script("shrink_only", *TINY, *MLPS)[0] == 0
    assert read_run(folder)[1:3] == (rows, summary)


@pytest.mark.filterwarnings("default")
def test_a_run_without_its_summary_is_measured_again_from_its_checkpoints(script, tmp_path):
    folder = tmp_path / RUN
    assert script("shrink_only", *TINY, "--networks", "tanh")[0] == 0
    _, rows, summary, _ = read_run(folder)

    def errors_of_another_call():
        (folder / "summary.json").unlink()
        code, _, errors = script("shrink_only", *TINY, "--networks", "tanh")
        assert code == 0
        assert read_run(folder).summary["measured"] == summary["measured"]
        assert timeless(read_run(folder).rows) == timeless(rows)
        return errors

    assert "trained again" not in errors_of_another_call()
    shutil.rmtree(folder / "checkpoints")
    assert "2 epochs are set aside and trained again" in errors_of_another_call()


def test_a_run_that_was_stopped_ends_with_the_same_rows_and_curves(script, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    assert script("shrink_only", *TINY, *MLPS, "--workdir", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(running, "_observe", stop)
        for _ in range(2):
            assert script("shrink_only", *TINY, *MLPS, "--workdir", tmp_path / "cut")[0] == 130
    with monkeypatch.context() as patched:
        patched.setattr("wsjax.training.shrinking.shrink_curves", stop)  # all is trained, nothing is measured
        assert script("shrink_only", *TINY, *MLPS, "--workdir", tmp_path / "cut")[0] == 130
    assert script("shrink_only", *TINY, *MLPS, "--workdir", tmp_path / "cut")[0] == 0
    whole, cut = (read_run(tmp_path / name / "shrink_only" / "digits-mlp-sgd") for name in ("whole", "cut"))
    assert timeless(cut.rows) == timeless(whole.rows)
    assert cut.summary["measured"] == whole.summary["measured"]


def test_a_resnet_has_a_curve_for_each_evaluation(script, tmp_path, monkeypatch):
    # One block: the whole network takes long to compile.
    monkeypatch.setattr(models, "resnet18", lambda classes, **more: models.ResNet(classes, stage_sizes=(1,), **more))
    small = ("--networks", "resnet18", "--width", "2", "--epochs", "1", "--num_train", "16", "--num_test", "8")
    assert script("shrink_only", *small, "--seeds", "0")[0] == 0
    config, _, summary, _ = read_run(tmp_path / RUN)
    assert [one["evaluation"] for one in summary["measured"]] == ["running", "reestimated", "batch"]
    assert config["compiled_kernels"] in (True, False)
    assert config["config"]["stack"] is False


@pytest.mark.parametrize("main", [True, False])
def test_one_of_several_processes_measures_by_itself(monkeypatch, capfd, main):
    monkeypatch.setattr(models, "resnet18", lambda classes, **more: models.ResNet(classes, stage_sizes=(1,), **more))
    dataset = take(KEY, load("digits"), 16, 8)
    config = Common(model="resnet18", width=2)
    setup = build.build_setup(config, dataset)
    state = init_state(setup.task, setup.optimizer, KEY)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setattr(parallel, "is_main", lambda: main)
    measure = runpy.run_path(str(SCRIPT))["measure"]
    found = measure({"resnet18": config}, dataset, {("resnet18", 0): state})
    assert [one["evaluation"] for one in found] == ["running", "reestimated", "batch"]
    assert capfd.readouterr().out.count("Shrinking") == 3 * main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "Relu"), "unknown networks 'Relu'; available: tanh, .*did you mean 'relu'?"),
        (("--networks", "tanh", "tanh"), "--networks must not repeat a value: tanh tanh"),
        (("--activation", "relu"), "--activation has no use here: networks are those of --networks"),
        (("--shrink", "0.5"), "--shrink has no use here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, arguments, message):
    code, _, error = script("shrink_only", *arguments)
    assert code == 2
    assert re.match(f"error: {message}", error)
    assert error.count("\n") == 1


def test_the_kernels_of_a_network_that_is_asked_for_are_made_ready(script, monkeypatch):
    def prepare(dtype):
        raise UsageError(f"asked for {dtype}")

    monkeypatch.setattr("wsjax.networks.kernels.prepare", prepare)
    assert script("shrink_only", *TINY, "--networks", "tanh", "resnet18")[2] == "error: asked for float32\n"


def curve(network="tanh", seed=0, evaluation="running", accuracies=(0.1, 0.5, 0.795, 0.79, 0.8)):
    shrinks = np.linspace(0, 1, len(accuracies)).tolist()
    return {
        "network": network,
        "seed": seed,
        "evaluation": evaluation,
        "shrinks": shrinks,
        "accuracies": list(accuracies),
    }


def test_where_accuracy_holds_by_hand():
    assert shrinking.holds_from(curve()) == 0.5
    assert shrinking.holds_from(curve(accuracies=(0.8, 0.8, 0.8, 0.7, 0.8))) == 1.0  # not from where it dips
    assert shrinking.holds_from(curve(accuracies=(0.8, 0.8))) == 0.0
    assert shrinking.holds_from(curve(accuracies=(0.1, 0.83, 0.8))) == 0.5  # what rises loses nothing


def test_summary_and_sentences_by_hand():
    other = curve(seed=1, accuracies=(0.1, 0.895, 0.9, 0.9, 0.9))
    summary = shrinking.summarize([], {}, [curve(), other])
    (own,) = summary["curves"]
    assert own["holds_from"]["mean"] == 0.375  # 0.5 and 0.25
    assert own["holds_from"]["low"] == pytest.approx(0.375 - 12.7062 * 0.125, abs=1e-4)
    assert shrinking.verdict(summary) == [
        "MLP, tanh: from shrink 0.38 (0.00 to 1.00) on, at most a point is lost of the unshrunk network's 85.0%."
    ]
    assert shrinking.table(summary)[1] == [["MLP, tanh", "2", "85.00%", "0.38 (0.00 to 1.00)"]]
    json.dumps(summary, allow_nan=False)


OWN = {name: value for name, value in CONFIG.items() if name not in ("fraction", "evaluation")} | {
    "model": "mlp", "hidden": [100, 100, 100], "learning_rate": 0.1, "epochs": 50, "num_train": 50000,
    "networks": ["tanh"], "seeds": [0],
}  # fmt: skip


def write(folder, curves=(), finished=True, **changes):
    config = OWN | changes
    row = {
        "method": config["networks"][0], "seed": 0, "round": 1, "epoch": 1, "samples": 50000, "train_accuracy": 0.5,
        "test_accuracy": 0.5, "stop": None,
    }  # fmt: skip
    methods = {name: {"network": name} for name in config["networks"]}
    write_folder(folder, "shrink_only", config, [row], False, methods)
    if finished:
        (folder / "summary.json").write_text(json.dumps({"measured": list(curves)}))
    return folder


def test_figure7_draws_published_curves_behind_networks_trained_as_published(tmp_path):
    resnet = [curve("resnet18", evaluation=name) for name in ("running", "batch")]
    narrow = write(tmp_path / "a", [curve(), *resnet], networks=["tanh", "resnet18"], width=8)
    text = draw(7, narrow)
    assert "Dashed: the report's curves" in text
    assert "width 8 instead of 64" in text
    assert (
        "The smallest shrink down to which at most a point is lost: tanh 0.50; ResNet-18 running 0.50; ResNet-18 each "
        "batch's 0.50" in text
    )
    assert "Not run: MLP, ReLU; MLP, ReLU without bias; MLP, tanh without bias." in text
    assert "Dashed" not in draw(7, write(tmp_path / "b", resnet, networks=["resnet18"], width=8))
    assert "Dashed" not in draw(7, write(tmp_path / "c", [curve()], epochs=10))
    assert "Dashed" not in draw(7, write(tmp_path / "d", [curve()], dataset="digits"))


def test_figure7_joins_runs_of_several_networks(tmp_path):
    runs = [write(tmp_path / name, [curve(name)], networks=[name]) for name in ("tanh", "relu")]
    assert "tanh 0.50; ReLU 0.50" in draw(7, *runs)
    with pytest.raises(
        RunError, match=r"^runs of different settings cannot share a figure: learning_rate 0\.1 and 0\.2$"
    ):
        draw(7, runs[0], write(tmp_path / "other", [curve()], learning_rate=0.2))


def test_figure7_tells_of_each_network_how_it_was_trained(tmp_path):
    mlps = write(tmp_path / "mlps", [curve(), curve("relu")], networks=["tanh", "relu"])
    narrow = write(tmp_path / "narrow", [curve("resnet18")], networks=["resnet18"], width=8, num_train=1000)
    text = draw(7, mlps, narrow)
    assert "MLPs: hidden layers 100/100/100, 50,000 training images" in text
    assert "ResNet-18: width 8, 1,000 training images" in text
    assert "CIFAR-10" in text.splitlines()[1].split(". ")[0]  # of both
    assert "MLPs: Settings as published. ResNet-18: Not as published: width 8 instead of 64; 1,000 training" in text
    assert "Dashed: the report's curves" in text


def test_figure7_as_a_user_draws_it(tmp_path):
    result = command(7, write(tmp_path / "run", [curve()]), "--out", tmp_path / "figure")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.txt").read_text() == result.stdout
    with pytest.raises(RunError, match=r"^there are no curves to draw yet: networks are shrunk when all have been"):
        draw(7, write(tmp_path / "begun", finished=False))
    assert "UNFINISHED RUN" in draw(7, tmp_path / "begun", tmp_path / "run")
    with pytest.raises(RunError, match=r"^not a run of the shrink_only experiment but of 'offline'$"):
        draw(7, write_folder(tmp_path / "offline", "offline", OWN, [], True))
    with pytest.raises(RunError, match=r"^nothing to draw"):
        draw(7)
