"""Several (virtual CPU) devices: a split batch gives one device's result, replicas give each seed's own."""

import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from test_rounds import METHODS, TWO_ROUNDS, data, mlp_task, run, same, timeless

from wsjax import parallel
from wsjax.errors import ProcessLost, TaskError
from wsjax.networks import models
from wsjax.parallel import data_mesh, replica_mesh
from wsjax.rounds.legs import Round, Settings, as_method, make_legs
from wsjax.rounds.loop import run_rounds
from wsjax.storage.records import Records
from wsjax.training.statistics import reestimated
from wsjax.training.task import image_task, with_batch_statistics
from wsjax.training.train import Setup, make_optimizer


def test_a_process_that_may_use_fewer_cores_takes_those(monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    assert parallel.cores() == 3
    monkeypatch.delattr(parallel.os, "sched_getaffinity")
    assert parallel.cores() == (os.cpu_count() or 1)


def resnet_task(axis_name=None):
    model = models.ResNet(3, stage_sizes=(1,), width=4, stem_pool=False, axis_name=axis_name)
    return image_task(model, (4, 4, 1), (0.5,), (0.25,))


def train(task, mesh, batch_size, epochs=1, **options):
    images = data(20 * batch_size - 3)  # 20 steps, the last one of a smaller batch
    setup = Setup(task, make_optimizer("msgd", 0.01), images, data(13, seed=1), batch_size, **options)
    return run_rounds(setup, [Round(len(images[1]), max_epochs=epochs)], {}, mesh=mesh)


EVALUATIONS = {
    "running": lambda task: (task, {}),
    "reestimated": lambda task: (task, {"judged": reestimated}),
    "batch": lambda task: (with_batch_statistics(task), {}),
}


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_devices_that_split_a_batch_give_one_devices_result(devices, batch_size, evaluation):
    mesh = data_mesh(devices)
    results = []
    for on in (None, mesh):
        task, options = EVALUATIONS[evaluation](resnet_task(parallel.axis_of(on)))
        results.append(train(task, on, batch_size, **options))
    one, several = results
    for part in ("params", "batch_stats"):
        a, b = (jax.tree.leaves(getattr(result.states["first", 0], part)) for result in (one, several))
        for x, y in zip(a, b, strict=True):
            assert np.linalg.norm(x - y) <= 2e-6 * max(np.linalg.norm(x), 1e-2)
    for field in ("train_accuracy", "test_accuracy", "steps"):
        assert one.rows[0][field] == pytest.approx(several.rows[0][field], abs=1e-6)
    assert one.rows[0]["test_loss"] == pytest.approx(several.rows[0]["test_loss"], rel=1e-4)


def test_a_batch_is_really_split():
    """A device's program works on its part of the batch: two rows of eight."""
    mesh = data_mesh(4)
    seen = []

    def spy(params, batch_stats, inputs, weights, train, keys):
        if train:
            seen.append(inputs.shape[0])
        return mlp_task().apply(params, batch_stats, inputs, weights, train, keys)

    train(mlp_task()._replace(apply=spy), mesh, 8)
    assert set(seen) == {2}


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("seeds", [(3, 5, 7, 9), (3, 5, 7), (4,)])
def test_replicas_on_devices_are_each_the_seed_alone(stack, seeds):
    spread = run(TWO_ROUNDS, METHODS, seeds=seeds, stack=stack, mesh=replica_mesh(2))
    alone = run(TWO_ROUNDS, METHODS, seeds=seeds, stack=False)
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert (
        alone.states.keys() == spread.states.keys() == {(name, seed) for name in ("first", *METHODS) for seed in seeds}
    )
    for key, state in alone.states.items():
        if stack and len(seeds) > 2:  # several seeds a device are one vmapped program, up to rounding
            jax.tree.map(compare, spread.states[key].params, state.params)
        else:
            assert same(spread.states[key].params, state.params)
    assert {(row["method"], row["seed"], row["round"], row["epoch"]) for row in spread.rows} == {
        (row["method"], row["seed"], row["round"], row["epoch"]) for row in alone.rows
    }


@pytest.mark.parametrize("mesh", [data_mesh, replica_mesh])
def test_a_killed_run_on_several_devices_ends_in_the_same_bits(tmp_path, mesh):
    def study(folder, observe=None, records=None):
        settings = Settings(checkpoint_every=1)
        records = records or Records(folder / "records.jsonl")
        return run(
            TWO_ROUNDS, METHODS, seeds=(0, 1), settings=settings, records=records, checkpoints=folder / "checkpoints",
            observe=observe, mesh=mesh(2),
        )  # fmt: skip

    def kill(rows):
        if rows[0]["round"] == 2 and rows[0]["epoch"] == 2:
            raise KeyboardInterrupt

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = study(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "b", kill)
    trained = []
    again = study(tmp_path / "b", trained.extend)
    assert 0 < len(trained) < len(whole.rows)  # the others came from the records and checkpoints
    assert timeless(again.rows) == timeless(whole.rows)
    assert whole.states
    assert all(same(again.states[key], whole.states[key]) for key in whole.states)


def test_a_stopped_replica_does_no_steps():
    """Of two seeds on a device each, one stops after an epoch: from then on only the other one's batches run."""
    calls = []

    def spy(params, batch_stats, inputs, weights, train, keys):
        if train:
            jax.debug.callback(lambda: calls.append(1))
        return mlp_task().apply(params, batch_stats, inputs, weights, train, keys)

    asked = []

    def stop(accuracies):
        asked.append(len(accuracies))
        second = len(asked) % 2 == 0  # the seeds are asked in turn
        return "early" if second or len(accuracies) == 5 else None

    result = run([Round(24, stop)], {}, (0, 1), task=mlp_task()._replace(apply=spy), stack=False, mesh=replica_mesh(2))
    jax.effects_barrier()
    assert [row["epoch"] for row in result.rows if row["seed"] == 0] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in result.rows if row["seed"] == 1] == [1]
    assert len(calls) == 3 * (5 + 1)  # three batches an epoch


def test_methods_run_side_by_side_where_seeds_leave_devices_idle():
    def legs(*arguments):
        methods = {name: as_method(method) for name, method in METHODS.items()}
        return [leg.replicas for leg in make_legs(TWO_ROUNDS, methods, *arguments)]

    first, *later = legs((7,), True, replica_mesh(2))
    assert first == (("first", 7),)
    assert later == [(("RI", 7), ("WS", 7)), (("SP", 7),)]
    assert legs((1, 2), True, replica_mesh(2))[1] == (("RI", 1), ("RI", 2))  # they are not idle
    for mesh in (None, data_mesh(2)):
        assert legs((7,), True, mesh)[1:] == [(("RI", 7),), (("WS", 7),), (("SP", 7),)]


def test_groups_and_meshes_by_hand():
    seeds = (1, 2, 3, 4, 5)
    assert parallel.groups(seeds, True, None) == [seeds]
    assert parallel.groups(seeds, False, None) == [(1,), (2,), (3,), (4,), (5,)]
    assert parallel.groups(seeds, True, replica_mesh(2)) == [(1, 2, 3, 4), (5,)]
    assert parallel.groups(seeds, True, replica_mesh(4)) == [(1, 2, 3, 4), (5,)]
    assert parallel.groups(seeds, False, replica_mesh(2)) == [(1, 2), (3, 4), (5,)]
    assert parallel.groups(seeds[:1], True, replica_mesh(4)) == [(1,)]
    assert parallel.groups(seeds, True, data_mesh(2)) == [seeds]
    assert parallel.fit(replica_mesh(4), 3).size == 3
    assert parallel.fit(replica_mesh(4), 8).size == 4
    assert parallel.fit(replica_mesh(4), 6).size == 3
    assert parallel.fit(None, 3) is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_communication_that_broke_off_is_a_lost_process(monkeypatch, wrapped):
    def fail(message):
        with parallel.together():
            try:
                raise ValueError(message)
            except ValueError as error:
                if not wrapped:
                    raise
                raise OSError(f"cannot write checkpoint 3: {error}") from error

    lost = "UNKNOWN: Gloo AllReduce failed: Connection closed by peer"
    with pytest.raises((ValueError, OSError), match="Gloo"):  # there is no other process
        fail(lost)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ProcessLost, match=f"^{lost}$"):
        fail(f"{lost}\nmore")
    with pytest.raises((ValueError, OSError), match="bug"):
        fail("bug")


def test_a_cpu_is_called_by_its_processors_name():
    name = parallel.processor()
    assert set(parallel.device_names()) == {f"cpu ({name})"}
    if os.path.exists("/proc/cpuinfo") and "model name" in (told := Path("/proc/cpuinfo").read_text()):
        assert name in " ".join(told.split())
        assert name != "cpu"


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match=r"5 devices asked for; there are 4 \(cpu\); on a CPU, JAX_NUM_CPU_DEVICES"):
        data_mesh(5)
    with pytest.raises(ValueError, match="0 devices asked for"):
        replica_mesh(0)


def test_batch_statistics_that_devices_do_not_share_are_refused():
    with pytest.raises(TaskError, match=r"devices disagree on the batch statistics '.*mean': .* over the axis 'data'"):
        train(resnet_task(), data_mesh(2), 8)
