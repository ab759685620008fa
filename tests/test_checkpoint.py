"""Checkpoints: bit for bit, two of them, and a damaged one is passed over."""

import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from wsjax.errors import RunError, TaskError
from wsjax.storage import checkpoint, tensors

# Orbax leaves coroutines behind where a file is damaged; that they complain at their end is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step):
    """A tree of mixed dtypes whose bits depend on the step."""
    special = np.array([-0.0, np.nan, np.inf, 1e-45, step], np.float32)
    return {
        "params": {"w": jnp.asarray(special).reshape(5, 1), "half": jnp.arange(4, dtype=jnp.bfloat16) + step / 8},
        "half": (jnp.full((2, 2), step / 3, jnp.float16), jnp.array([True, False])),
        "count": jnp.int32(step),
        "key": jax.random.key_data(jax.random.key(step)),
        "bytes": jnp.array([step, 255], jnp.uint8),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def like(template):
    """Every step's template."""
    return lambda step: template


def restore(path, template=None, **options):
    """Restores as a new process would; returns what was found and the text of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with checkpoint.Folder(path) as folder:
            found = checkpoint.restore(folder, like(template or state(0)), **options)
    own = [str(warning.message) for warning in caught if str(warning.message).startswith("checkpoint ")]
    return found, own


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder in which steps 1, 2 and 3 were saved."""
    path = tmp_path_factory.mktemp("checkpoints")
    folder = checkpoint.Folder(path)
    for step in (1, 2, 3):
        checkpoint.save(folder, step, state(step))
    folder.close()
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def files_of(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def test_restored_bit_for_bit_with_no_warning(saved):
    (step, found), own = restore(saved)
    assert (step, own) == (3, [])
    assert_same(found, state(3))


def test_a_typed_key_is_kept(tmp_path):
    state = {"key": jax.random.key(3), "w": jnp.ones(2)}
    with checkpoint.Folder(tmp_path) as folder:
        checkpoint.save(folder, 1, state)
        _, found = checkpoint.restore(folder, lambda _: state)
        assert checkpoint.digest(state | {"key": jax.random.key(4)}) != checkpoint.digest(state)
    assert jax.random.key_data(found["key"]).tolist() == jax.random.key_data(state["key"]).tolist()


def test_two_are_kept(saved):
    assert names(saved) == ["2", "3"]


def test_an_empty_folder_and_one_not_yet_made(tmp_path):
    for path in (tmp_path, tmp_path / "a" / "b"):
        assert restore(path) == (None, [])
    assert list(tmp_path.iterdir()) == []  # a folder is made with its first checkpoint


def test_only_wanted_steps_are_restored(saved):
    (step, found), own = restore(saved, wanted=lambda step: step < 3)
    assert (step, own) == (2, [])
    assert_same(found, state(2))
    assert restore(saved, wanted=lambda step: False) == (None, [])


def test_the_highest_number_is_the_newest(tmp_path):
    folder = checkpoint.Folder(tmp_path)
    for step in (9, 10):
        checkpoint.save(folder, step, state(step))
    assert checkpoint.restore(folder, like(state(0)))[0] == 10


def test_a_step_can_be_saved_again(copy):
    folder = checkpoint.Folder(copy)
    checkpoint.save(folder, 3, state(7))
    step, found = checkpoint.restore(folder, like(state(0)))
    assert step == 3
    assert_same(found, state(7))


def test_optimizer_states_and_shardings(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("seeds",))
    sharding = NamedSharding(mesh, PartitionSpec("seeds"))
    params = {"w": jax.device_put(jnp.arange(4.0).reshape(2, 2), sharding)}
    before = (params, optax.adam(0.1).init(params))
    folder = checkpoint.Folder(tmp_path)
    checkpoint.save(folder, 1, before)
    step, found = checkpoint.restore(folder, like(jax.tree.map(lambda x: x + 1, before)))
    assert step == 1
    assert_same(found, before)


def damage_file(kind, file):
    data = file.read_bytes()
    if kind == "deleted":
        file.unlink()
    elif kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 4]) + data[middle + 4 :])


# Every file of a checkpoint. Whether a damaged file of Orbax's own matters is its affair: what counts is that no other
# arrays come back, and that nothing is passed over in silence.
PARTS = {
    "state/state.safetensors": "passed over",
    "_CHECKPOINT_METADATA": "either",
    "commit_success.txt": "either",
    "state/commit_success.txt": "either",
}


def test_the_parts_are_all_of_a_checkpoint(saved):
    assert files_of(saved / "3") == sorted(PARTS)


@pytest.mark.parametrize("kind", ["flipped", "truncated", "deleted"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_newest_is_passed_over_and_named(copy, part, kind):
    damage_file(kind, copy / "3" / part)
    (step, found), own = restore(copy)
    assert_same(found, state(step))
    assert step in ((2,) if PARTS[part] == "passed over" else (2, 3))
    said = [text.partition(": ")[0] for text in own]
    assert said == [f"checkpoint {copy / '3'} is damaged, passed over"][: 3 - step]
    assert "\n" not in "".join(own)


@pytest.mark.parametrize("place", [0, 3, 9, 40, 300, -1])
def test_a_byte_anywhere_in_the_file_is_missed(copy, place):
    file = copy / "3" / "state" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    (step, found), own = restore(copy)
    assert (step, len(own)) == (2, 1)
    assert_same(found, state(2))


def test_a_file_of_another_step_is_found_though_it_is_whole(copy):
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    (step, found), own = restore(copy)
    assert step == 2
    assert_same(found, state(2))
    why = "its arrays are those of {'step': '2'}, not of {'step': '3'}"
    assert own == [f"checkpoint {copy / '3'} is damaged, passed over: {why}"]


@pytest.mark.parametrize("left", ["empty folder", "file", "no state"])
def test_what_is_no_checkpoint_is_passed_over(copy, left):
    shutil.rmtree(copy / "3" / "state" if left == "no state" else copy / "3")
    if left == "empty folder":
        (copy / "3").mkdir()
    elif left == "file":
        (copy / "3").write_text("3")
    (step, found), own = restore(copy)
    assert (step, len(own)) == (2, 1)
    assert_same(found, state(2))


def test_nothing_whole_is_an_error_and_no_wanted_one_is_none(copy):
    for step in ("2", "3"):
        damage_file("truncated", copy / step / "state" / "state.safetensors")
    named = pytest.warns(UserWarning, match="is damaged, passed over: ")
    with named as told, pytest.raises(checkpoint.UnreadableError) as refusal, checkpoint.Folder(copy) as folder:
        checkpoint.restore(folder, like(state(0)))
    own = [str(warning.message).split(" is damaged")[0] for warning in told if warning.category is UserWarning]
    assert own == [f"checkpoint {copy / step}" for step in ("3", "2")]
    assert str(refusal.value) == (
        f"none of the checkpoints in {copy} can be read; restore them from a copy, or move that folder away: what they "
        "held is then trained again"
    )
    assert restore(copy, wanted=lambda step: False) == (None, [])
    assert checkpoint.Folder(copy).steps() == [3, 2]


def test_too_little_memory_is_no_damage(copy, monkeypatch):
    def load(*_):
        raise ValueError("cannot be read") from MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(checkpoint, "_load", load)
    with pytest.raises(MemoryError, match="7 TiB"):
        restore(copy)


def test_a_run_goes_on_after_damage(copy):
    damage_file("deleted", copy / "3" / "_CHECKPOINT_METADATA")
    folder = checkpoint.Folder(copy)
    for step in (3, 4, 5):
        checkpoint.save(folder, step, state(step))
    folder.close()
    assert names(copy) == ["4", "5"]
    assert restore(copy)[0][0] == 5


def test_what_a_killed_process_left_half_written_is_removed(copy):
    half = copy / "4.orbax-checkpoint-tmp"
    shutil.copytree(copy / "3", half)
    (half / "commit_success.txt").unlink()
    (copy / "notes").mkdir()
    (copy / "²").mkdir()
    with checkpoint.Folder(copy) as folder:
        assert checkpoint.restore(folder, like(state(0)))[0] == 3
        checkpoint.save(folder, 5, state(5))  # Orbax removes it on a thread of its own, which only a save waits for
    assert names(copy) == ["3", "5", "notes", "²"]


def test_a_process_killed_while_it_saves_leaves_a_whole_one(tmp_path):
    code = f"""
import os, pathlib
os.environ["JAX_PLATFORMS"] = "cpu"
import jax.numpy as jnp
from wsjax.storage import checkpoint, tensors
folder = checkpoint.Folder(pathlib.Path({str(tmp_path)!r}))
for step in range(1, 10**6):
    checkpoint.save(folder, step, {{"w": jnp.full((200, 200), step, jnp.float32)}})
    print(step, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        for line in process.stdout:
            if int(line) == 4:
                break
    finally:
        process.kill()
        process.communicate()
    (step, found), own = restore(tmp_path, {"w": jnp.zeros((200, 200))})
    assert (step >= 4, own) == (True, [])
    np.testing.assert_array_equal(found["w"], np.full((200, 200), step))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"w": jnp.zeros((3, 2))}, "its array ['w'] is F32 [2, 2], not F32 [3, 2]"),
        ({"w": jnp.zeros((200, 200))}, "its array ['w'] is F32 [2, 2], not F32 [200, 200]"),
        ({"w": jnp.zeros((2, 2), jnp.bfloat16)}, "its array ['w'] is F32 [2, 2], not BF16 [2, 2]"),
        ({"v": jnp.zeros((2, 2))}, "it lacks ['v'] and has besides ['w']"),
        ({"w": jnp.zeros((2, 2)), "b": jnp.zeros(1)}, "it lacks ['b']"),
        ({"w": jnp.zeros((9, 9)), "a": jnp.zeros(()), "b": jnp.zeros(1)}, "it lacks ['a'], ['b']"),
        ({"w": jnp.zeros((2, 2)), **{f"l{n}": jnp.zeros(1) for n in range(5)}}, "['l0'], ['l1'], ['l2'] and 2 more"),
        ({}, "it has besides ['w']"),
        ((jnp.zeros((2, 2)),), "it lacks [0] and has besides ['w']"),
    ],
)
def test_another_template_is_not_filled_nor_the_checkpoint_called_damaged(tmp_path, template, said):
    folder = checkpoint.Folder(tmp_path)
    checkpoint.save(folder, 1, {"w": jnp.arange(4.0).reshape(2, 2) / 3})
    told = f"checkpoint {tmp_path / '1'} is another network's or optimiser's, passed over: "
    refused = f"the checkpoints in {tmp_path} are of another network or optimiser; give those that they were saved with"
    with (
        pytest.warns(UserWarning, match=re.escape(told) + ".*" + re.escape(said)),
        pytest.raises(RunError, match=re.escape(refused)) as refusal,
    ):
        checkpoint.restore(folder, like(template))
    assert not isinstance(refusal.value, checkpoint.UnreadableError)  # after which a run may begin anew


def test_of_arrays_in_a_file_only_what_differs_in_kind_is_told(tmp_path):
    """Where one array is larger, all behind it lie elsewhere: they are as wanted all the same."""
    template = {"a": jnp.zeros((), jnp.int32), "w": jnp.zeros((3, 3))}
    tensors.write(tmp_path / "file", tensors.on_host({"a": jnp.zeros((), jnp.int32), "w": jnp.zeros((2, 2))}))
    with pytest.raises(tensors.OtherArraysError, match=re.escape("its array ['w'] is F32 [2, 2], not F32 [3, 3]")):
        tensors.read(tmp_path / "file", template)


@pytest.mark.parametrize("leaf", [3.0, "text", object])
def test_what_is_no_array_is_named_and_not_saved(tmp_path, leaf):
    with checkpoint.Folder(tmp_path) as folder, pytest.raises(TaskError, match=r"arrays; \['a'\]\[1\] is "):
        checkpoint.save(folder, 1, {"a": [jnp.ones(2), leaf]})
    assert names(tmp_path) == []


def test_a_disk_that_takes_no_more_is_an_oserror_in_one_line(copy, capfd):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(100, 100)), jnp.float32)}
    with checkpoint.Folder(copy) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, old[1]))
        try:
            with pytest.raises(OSError, match="cannot write checkpoint 4") as failure:
                checkpoint.save(folder, 4, big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert str(failure.value) == f"cannot write checkpoint 4 in {copy}: File too large"
        assert names(copy) == ["2", "3"]
        checkpoint.save(folder, 5, big)  # the disk has room again
        assert checkpoint.restore(folder, like(big))[0] == 5
    assert capfd.readouterr() == ("", "")
    assert names(copy) == ["3", "5"]


def test_closing_hides_no_error(tmp_path, monkeypatch, capfd):
    """Orbax raises an old error of its own when it is closed."""
    folder = checkpoint.Folder(tmp_path)
    checkpoint.save(folder, 1, state(1))

    def close(self):
        raise ValueError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "close", close)
    with pytest.raises(ZeroDivisionError), folder:
        1 / 0  # noqa: B018
    assert capfd.readouterr() == ("", "")


NAMES = [
    "lr[0.1]", "a[b", "back\\slash", "st*ar", "q?", "{a,b}", "per%cent", "ha#sh", "sp ace", "co:lon", "-dash",
    "ünïcode", "new\nline", "trailing.", "gs:", "s3:", "file:", "~", "$HOME", "'", "\udcff", "x" * 250,
    "a.orbax-checkpoint-tmp",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_keeps_its_checkpoints(tmp_path, name):
    path = tmp_path / name / "leg"
    with checkpoint.Folder(path) as folder:
        for step in (1, 2, 3):
            checkpoint.save(folder, step, {"w": jnp.full(3, step)})
    (step, found), own = restore(path, {"w": jnp.zeros(3, int)})
    assert (step, found["w"].tolist(), own) == (3, [3, 3, 3], [])
    assert names(path) == ["2", "3"]
    assert names(tmp_path) == [name]


def test_the_first_checkpoint_of_a_process_is_read_back(tmp_path, monkeypatch):
    loads, real = [], checkpoint._load
    monkeypatch.setattr(checkpoint, "_load", lambda *arguments: loads.append(arguments[1]) or real(*arguments))
    with checkpoint.Folder(tmp_path) as folder:
        checkpoint.save(folder, 1, state(1))
        checkpoint.save(folder, 2, state(2))
    assert loads == [1]


def test_a_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    write = tensors.write
    monkeypatch.setattr(tensors, "write", lambda path, arrays, **about: write(path, {"a": arrays}, **about))
    message = rf"^cannot write checkpoint 1 in {re.escape(str(path))}: read back, it is not what was written \("
    with checkpoint.Folder(path) as folder, pytest.raises(OSError, match=message):
        checkpoint.save(folder, 1, state(1))


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path):
    with checkpoint.Folder(tmp_path / "run" / "leg") as folder:
        checkpoint.save(folder, 1, state(1))
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(
            RunError, match="leg was removed while this process was working there; nothing more is saved"
        ):
            checkpoint.save(folder, 2, state(2))
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    with checkpoint.Folder(tmp_path / "a[1]") as folder:
        checkpoint.save(folder, 1, state(1))
        (link,) = (tmp_path / "tmp").glob("wsjax-*/checkpoints")
        assert os.readlink(link) == str(tmp_path / "a[1]")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert names(tmp_path / "a[1]") == ["1"]


def test_digest_tells_paths_shapes_dtypes_and_bits_apart():
    trees = [
        {"a": jnp.zeros(2)},
        {"b": jnp.zeros(2)},
        {"a": -jnp.zeros(2)},
        {"a": jnp.zeros((2, 1))},
        {"a": jnp.zeros(2, jnp.int32)},
        {"a": jnp.zeros(4, jnp.bfloat16)},
        {"a": jnp.zeros(1), "b": jnp.zeros(1)},
        [jnp.zeros(2)],
    ]
    assert len({checkpoint.digest(tree) for tree in trees}) == len(trees)
    assert checkpoint.digest(state(1)) == checkpoint.digest(jax.tree.map(np.asarray, state(1)))


def test_other_programs_read_the_arrays(saved):
    """The format by hand, and Orbax's own reader of it."""
    file = saved / "3" / "state" / "state.safetensors"
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    assert header.pop("__metadata__").keys() == {"crc32", "step"}
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert [end for _, end in ends[:-1]] == [begin for begin, _ in ends[1:]]  # without holes
    assert begin + ends[-1][1] == len(content)
    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        found = ocp.load(file)
    own = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state(3))}
    assert found.keys() == own.keys()
    for name, leaf in own.items():
        assert (found[name].dtype, np.asarray(found[name]).tobytes()) == (leaf.dtype, np.asarray(leaf).tobytes())


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"a": np.ones(3, np.float32), "b'\"\n": jnp.ones(2, jnp.complex64)},
        [jnp.ones(3, jnp.float8_e4m3fn), jnp.ones((2, 1), jnp.int4), jnp.float32(3)],
        (jax.random.key(3), jax.random.split(jax.random.key(4, impl="rbg"), 4)),
    ],
    ids=["nothing", "any name", "few bits", "keys"],
)
def test_any_array_comes_back_by_its_shape_alone(tmp_path, tree):
    tensors.write(tmp_path / "file", tensors.on_host(tree))
    found = tensors.read(tmp_path / "file", jax.eval_shape(lambda: tree))
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(tree)]
    one, other = (jax.tree.leaves(tensors.on_host(own)) for own in (found, tree))
    assert [np.asarray(x).tobytes() for x in one] == [np.asarray(x).tobytes() for x in other]


def test_arrays_that_were_read_may_be_donated(tmp_path):
    """They lie in the memory that the file was read into, all in one piece."""
    start = {"w": jnp.arange(4096.0), "b": jnp.ones(3), "v": jnp.arange(64.0)}
    tensors.write(tmp_path / "file", tensors.on_host(start))
    step = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    once, again = tensors.read(tmp_path / "file", start), tensors.read(tmp_path / "file", start)
    for _ in range(3):
        once = step(once)
    assert_same(again, start)
    assert_same(once, jax.tree.map(lambda x: 8 * x, start))


def test_an_array_without_numbers_is_kept(tmp_path):
    """Orbax refuses to save one, and its threads then never end."""
    empty = state(1) | {"none": jnp.zeros((0, 4), jnp.bfloat16)}
    with checkpoint.Folder(tmp_path / "empty") as folder:
        checkpoint.save(folder, 1, empty)
    found, warned = restore(tmp_path / "empty", empty)
    assert not warned
    assert found[0] == 1
    assert_same(found[1], empty)


def test_threads_save_and_restore_each_in_a_folder_of_its_own(tmp_path):
    """Orbax alone waits forever; and what keeps its log back leaves the log as it was."""
    logger = logging.getLogger("absl")
    before, found, together = logger.level, {}, threading.Barrier(3)

    def job(name):
        together.wait()
        for step in range(1, 6):
            with checkpoint.Folder(tmp_path / name) as folder:
                checkpoint.save(folder, step, {"w": jnp.full(3, step)})
                found[name, step] = checkpoint.restore(folder, like({"w": jnp.zeros(3, int)}))

    threads = [threading.Thread(target=job, args=(name,), daemon=True) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    values = {key: (step, state["w"].tolist()) for key, (step, state) in found.items()}
    assert values == {(name, step): (step, [step] * 3) for name in "abc" for step in range(1, 6)}
    assert logger.level == before
