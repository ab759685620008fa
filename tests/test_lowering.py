"""What a GPU or a TPU would run, read from programs that are lowered for it on a CPU: nothing is compiled for one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import lowering
from benchmarks.jax_side import SHAPE, task_of
from wsjax import parallel
from wsjax.networks import kernels, models
from wsjax.networks.conv import conv
from wsjax.training.train import Batch, init_state, make_optimizer, make_train_step

DEVICES = 4
RESNET18, SMALL = (2, 2, 2, 2), (1, 1)
"""Blocks of each stage. What a program holds grows with them alone, so the small one does where kinds of run differ."""


def resnet(stages, mesh=None):
    return models.ResNet(10, stages, width=4, axis_name=parallel.axis_of(mesh))


def forward(stages):
    """Convolutions: the stem, two a block, and a shortcut at every stage but the first, where the shape changes."""
    return 1 + 2 * sum(stages) + len(stages) - 1


def trained(stages):
    """Those of a step: each, its gradient for the kernel and, but for the stem, that for the images."""
    return 3 * forward(stages) - 1


def communicated(model, stages=None):
    """The bytes that devices sum in a step.

    Of every gradient; of the loss, the score and the number of samples; of every BatchNorm the number of values, and
    forward a mean and a variance, backward two sums.
    """
    params, stats = jax.eval_shape(task_of(model).init, jax.random.key(0))
    params, moments = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (params, stats))
    return 4 * (params + 3 + (forward(stages) if stages else 0) + 2 * moments)


def counts(found):
    return found.operations["convolution"], found.operations["dot_general"]


@pytest.mark.parametrize(
    ("stages", "precision", "platforms"),
    [
        (RESNET18, "float32", ("cuda",)),
        (SMALL, "bfloat16", lowering.PLATFORMS),
        (None, "float32", ("cuda",)),
    ],
)
def test_a_runs_programs_are_for_the_device_alone(stages, precision, platforms):
    model = resnet(stages) if stages else models.mlp(10)
    programs = lowering.of_run(model, precision, batch_size=8)
    for platform in platforms:
        found = {what: lowering.contents(traced, platform) for what, traced in programs.items()}
        assert [problem for own in found.values() for problem in lowering.problems(own)] == []
        assert [own.reduced for own in found.values()] == [[], [], []]
        epoch, evaluation = found["epoch"], found["evaluation"]
        assert counts(epoch) == ((trained(stages), 3) if stages else (0, 4 + 3 + 4))
        assert counts(evaluation) == ((forward(stages), 1) if stages else (0, 4))
        assert epoch.products == evaluation.products == {"f32" if precision == "float32" else "bf16"}
        assert sum(epoch.donated) == lowering.state_bytes(model)
        assert evaluation.donated == []


@pytest.mark.parametrize("stages", [SMALL, None])
def test_devices_that_split_a_batch_sum_gradients_and_moments_and_no_more(stages):
    mesh = parallel.data_mesh(DEVICES)
    model = resnet(stages, mesh) if stages else models.mlp(10)
    programs = lowering.of_run(model, mesh=mesh, batch_size=8) | {"step": lowering.step(model, mesh=mesh, batch_size=8)}
    found = {what: lowering.contents(traced, "cuda") for what, traced in programs.items()}
    assert [problem for own in found.values() for problem in lowering.problems(own)] == []
    summed = {what: sum(own.reduced) for what, own in found.items()}
    step = communicated(model, stages)
    assert summed == {"draw": 0, "epoch": step, "step": step, "evaluation": 4 * 2}  # the loss and the score
    assert counts(found["epoch"]) == counts(found["step"]) == ((trained(stages), 3) if stages else (0, 11))
    assert sum(found["epoch"].donated) == sum(found["step"].donated) == lowering.state_bytes(model)
    others = {"all_gather", "all_to_all", "collective_permute", "reduce_scatter", "collective_broadcast"}
    assert not others & found["epoch"].operations.keys()


def test_a_step_for_pmap_lowers_as_the_docs_have_it():
    model = resnet(SMALL, parallel.data_mesh(DEVICES))
    task, optimizer = task_of(model), make_optimizer("sgd", 0.1)
    state = jax.eval_shape(partial(init_state, task, optimizer), jax.random.key(0))
    shapes = ((SHAPE, jnp.uint8), ((), jnp.int32), ((), jnp.float32))
    arrays: Any = [jax.ShapeDtypeStruct((2, *shape), dtype) for shape, dtype in shapes]
    parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct((DEVICES, *x.shape), x.dtype), (state, Batch(*arrays)))
    step = jax.jit(jax.pmap(make_train_step(task, optimizer, axis_name="data"), axis_name="data"), donate_argnums=0)
    found = lowering.contents(step.trace(*parts), "cuda")
    assert lowering.problems(found) == []
    assert counts(found) == (trained(SMALL), 3)
    assert sum(found.reduced) == communicated(model, SMALL)
    assert sum(found.donated) == DEVICES * lowering.state_bytes(model)


def test_seeds_side_by_side_communicate_nothing():
    model = models.mlp(10)
    programs = lowering.of_run(model, mesh=parallel.replica_mesh(2), batch_size=8, seeds=4)
    found = {what: lowering.contents(traced, "cuda") for what, traced in programs.items()}
    assert [problem for own in found.values() for problem in lowering.problems(own)] == []
    assert [own.reduced for own in found.values()] == [[], [], []]
    assert sum(found["epoch"].donated) == 4 * lowering.state_bytes(model)


def of(function, *arguments, platform="cuda"):
    return lowering.contents(jax.jit(function).trace(*arguments), platform)


def test_what_a_program_must_not_hold_is_told():
    x = jnp.ones(3)
    assert lowering.problems(of(lambda x: x + 1, x)) == []
    assert of(lambda x: x + 1, x).donated == []
    with pytest.raises(ValueError, match="different from the lowering platform"):  # a call of Python is no one else's
        of(lambda x: jax.pure_callback(lambda x: x, x, x), x)
    on_cpu = of(lambda x: jax.pure_callback(lambda x: x, x, x), x, platform="cpu")
    assert lowering.problems(on_cpu) == ["it calls xla_ffi_python_cpu_callback"]
    with jax.enable_x64(True):
        assert lowering.problems(of(lambda x: x * 2, jnp.ones(3))) == ["it has values of f64"]
    if kernels.available():
        images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
        assert lowering.problems(of(conv, images, kernel, platform="cpu")) == ["it calls wsjax_convolve_float32"]


def test_a_function_counts_as_often_as_it_is_called():
    @jax.jit
    def inner(x, y):
        return x @ y @ y

    x = jnp.ones((3, 3))
    assert of(lambda x: inner(inner(x, x), x + 1), x).operations["dot_general"] == 4
