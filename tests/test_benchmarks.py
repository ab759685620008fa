"""The benchmarks, tiny: they run and answer with numbers. How fast they are is not a test's business."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import __main__ as benchmarks  # noqa: E402
from benchmarks import (  # noqa: E402
    beside,
    communication,
    gpu_subjects,
    jax_side,
    lowering,
    roofline,
    subjects,
    table1,
    torch_side,
)
from wsjax.errors import UsageError  # noqa: E402


@pytest.mark.parametrize("name", [name for name in benchmarks.names(True) if name not in ("startup", "resnet_epoch")])
def test_every_subject_runs_both_sides(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "ceilings", partial(roofline.ceilings, repeats=1, size=64, floats=2**16))
    monkeypatch.setattr(gpu_subjects, "NAMES", {"bfloat16": "bfloat16"})  # one compilation of two
    config = benchmarks.Config(only=(name,), out=tmp_path / "rows.json", repeats=1)
    result = benchmarks.main(config, subjects.TINY)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == result["rows"]
    assert (tmp_path / "rows.png").stat().st_size > 0
    assert all(row["ratio"] > 0 and row["group"] == name for row in result["rows"])
    assert all(row["over_floor"] > 0 for row in result["rows"])
    assert {row["precision"] for row in result["rows"]} == {"bfloat16" if name == "resnet_gpu" else "float32"}
    assert "ratio" in capsys.readouterr().out


def test_the_number_of_pytorchs_threads_is_the_users(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    benchmarks.set_up()
    assert chosen == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    benchmarks.set_up()
    assert chosen == [os.cpu_count()]


def test_the_subjects_are_those_that_the_help_names():
    here = subjects.SUBJECTS | beside.SUBJECTS
    assert tuple(here) == benchmarks.names(has_cuda=False)
    assert tuple(here | gpu_subjects.SUBJECTS) == benchmarks.names(has_cuda=True)
    with pytest.raises(UsageError, match=r"unknown subject 'mlp'; available: .*; did you mean 'mlp_epoch'"):
        benchmarks.main(benchmarks.Config(only=("mlp",)))


def test_a_row_by_hand():
    runs = itertools.count()
    case = subjects.Case("x", lambda: next(runs), None, flops=8e9, bytes=4e9, notes={"a": 1})
    row = benchmarks.measure(case, 3, {"flops": 4e9, "bytes": 1e9})
    assert row["floor_seconds"] == 4  # of the copy, longer than the product's 2
    assert row["of_peak"] == pytest.approx(2 / row["seconds"])
    assert row["notes"] == {"a": 1}
    assert "ratio" not in row


def test_costs_by_hand():
    flops, traffic = roofline.mlp_costs((), samples=10, batch=5)
    assert flops == 2 * 2 * 30720 * 10  # forward and the kernel's gradient
    assert traffic == 3072 * 10 + 4 * 5 * 30720 * 2
    flops, _ = roofline.resnet18_costs(64, True, 1, train=False)
    assert flops / 2 == pytest.approx(140e6, rel=0.01)  # the published count of multiply-adds
    (_, whole), (_, half) = (roofline.resnet18_costs(64, True, 128, precision=name) for name in roofline.VALUE)
    assert whole - half == pytest.approx(half - 4 * 5 * 11.16e6, rel=0.01)  # all but the parameters is halved


def test_both_sides_have_the_same_networks():
    for ours, theirs in (
        (subjects.models.resnet18(10, 4), torch_side.resnet18(4, True)),
        (subjects.models.mlp(10, (5, 6)), torch_side.mlp((5, 6))),
    ):
        params = subjects.jax.eval_shape(jax_side.task_of(ours).init, subjects.jax.random.key(0))[0]
        count = sum(leaf.size for leaf in subjects.jax.tree.leaves(params))
        assert count == sum(p.numel() for p in theirs.parameters())


def test_autocast_computes_in_bfloat16_and_keeps_float32():
    net, (images, labels) = torch_side.mlp((5,)), jax_side.random_images(4)
    seen = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    inputs, targets = torch_side.tensors(images, labels)
    still = torch.optim.SGD(net.parameters(), lr=0)
    losses = [torch_side.step(net, still, inputs, targets, name) for name in ("float32", "bfloat16")]
    assert seen == [torch.float32, torch.bfloat16]
    assert {loss.dtype for loss in losses} == {p.grad.dtype for p in net.parameters()} == {torch.float32}
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_our_side_computes_in_the_precision_that_it_is_asked_for(precision, dtype):
    task, (images, _) = jax_side.task_of(subjects.models.mlp(10, ()), precision), jax_side.random_images(4)
    params, _ = task.init(subjects.jax.random.key(0))
    program = subjects.jax.make_jaxpr(lambda params: task.apply(params, {}, images, None, True))(params)
    assert f"{dtype}[4,10] = dot_general" in str(program)


def test_both_sides_are_told_to_multiply_in_tf32():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        torch_side.use_tensor_cores()
        jax_side.use_tensor_cores()
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert subjects.jax.config.jax_default_matmul_precision == "tensorfloat32"
    finally:
        subjects.jax.config.update("jax_default_matmul_precision", None)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags


COMPILED = """
import numpy as np, torch
from benchmarks import torch_side
random = np.random.default_rng(0)
images, labels = random.integers(0, 256, (3, 32, 32, 3), np.uint8), random.integers(0, 10, 3)
net, (inputs, targets) = torch_side.mlp(()), torch_side.tensors(images, labels)
before = net[-1].weight.detach().clone()
fast, seconds = torch_side.compiled(net, torch_side.sgd(net), [(inputs, targets)])
assert seconds > 0
assert isinstance(fast, torch._dynamo.OptimizedModule)
assert not torch.equal(net[-1].weight, before)  # it was trained for a step
torch.testing.assert_close(fast(inputs), net(inputs))
"""


def test_a_compiled_network_is_the_same_one_and_says_what_compiling_took():
    # A process of its own, without the pool of processes that torch.compile would start beside JAX's threads.
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_what_a_gpu_would_be_timed_on_lowers_for_it(monkeypatch):
    small = partial(subjects.models.ResNet, 10, (1, 1), width=2)
    monkeypatch.setattr(subjects.models, "resnet18", lambda *_: small())
    monkeypatch.setattr(gpu_subjects, "NAMES", {"bfloat16": "bfloat16"})  # two traces of four
    with lowering.tracing() as traces:
        cases = list(gpu_subjects.resnet_gpu(subjects.TINY))
    assert len(cases) == len(traces) == 2  # a step and an epoch
    for traced in traces:
        found = lowering.contents(traced, "cuda")
        assert lowering.problems(found) == []
        assert found.operations["convolution"] == 3 * 6 - 1  # all but the gradient for the first one's images
        assert sum(found.donated) == lowering.state_bytes(small())


def test_the_gpu_script_leaves_out_flags_that_xla_does_not_know(tmp_path):
    known, unknown = "--xla_gpu_autotune_level=4", "--xla_gpu_no_such_flag=1"
    environment = {"PARTS": "", "PYTHON": sys.executable, "XLA_FLAGS": "", "FLAGS": f"{unknown} {known}"}
    script = Path(benchmarks.__file__).parent / "gpu.sh"
    done = subprocess.run(
        [script, tmp_path / "out"], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"left out, since it does not work here: {unknown}", f"XLA_FLAGS= {known}"]


def test_a_loader_gives_the_images_that_lie_in_memory():
    images, labels = jax_side.random_images(5)
    found = list(torch_side.loader(images, labels, batch_size=3))
    assert [len(targets) for _, targets in found] == [3, 2]
    inputs, targets = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
    expected, expected_targets = torch_side.tensors(images, labels)
    order = [int(((expected - x).abs().amax((1, 2, 3))).argmin()) for x in inputs]
    assert sorted(order) == list(range(5))
    torch.testing.assert_close(inputs, expected[order].contiguous(), atol=1e-6, rtol=0)
    assert targets.tolist() == expected_targets[order].tolist()


def test_a_steps_communication_is_its_gradients_and_its_batchnorm_moments():
    config = communication.Config(width=2, batch_size=8, devices=2)
    found = communication.main(config)
    shapes = subjects.jax.eval_shape(jax_side.task_of(subjects.models.resnet18(10, 2)).init, subjects.jax.random.key(0))
    gradients, moments = (4 * sum(leaf.size for leaf in subjects.jax.tree.leaves(part)) for part in shapes)
    # Forward a mean and a variance of every BatchNorm; backward two sums, some of which are gradients as well.
    assert gradients + moments < found["bytes"] < gradients + 2 * moments


def test_all_reduces_by_hand():
    program = """
      a = f32[2,3]{1,0} all-reduce(f32[2,3] x), to_apply=sum
      b = (f32[4], s32[]) all-reduce-start(f32[4] x, s32[] y), to_apply=sum
      c = f32[5] add(f32[5] x, f32[5] y)
    """
    assert communication.all_reduces(program) == [24, 20]


def test_a_cell_of_table_1_in_pytorch_stops_by_the_reports_rules(capsys, monkeypatch):
    seen = iter([0.2, 0.4, 0.6, 0.5, 0.5, 0.501, 0.7, 0.1, 0.99, 0.8])
    monkeypatch.setattr(torch_side, "accuracy", lambda *_, **__: next(seen))
    config = table1.Config("digits", optimizer="sgd", hidden=(), fraction=0.1, seeds=(0, 1))
    assert table1.main(config) == [0.7, 0.8]  # after a plateau of three epochs, and after 99 %
    seed, other, mean = capsys.readouterr().out.splitlines()
    assert seed == "seed 0: 6 epochs, train 50.10%, test 70.00%"
    assert other == "seed 1: 2 epochs, train 99.00%, test 80.00%"
    assert mean == "test accuracy 75.00% ± 63.53%"
    with pytest.raises(UsageError, match="unknown optimizer 'rmsprop'"):
        table1.main(table1.Config("digits", optimizer="rmsprop"))
