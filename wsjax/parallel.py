"""Several devices: batches split over them, or independent runs spread over them. Nothing else knows how.

A mesh has one axis. Over "data" every batch is split into equal parts, gradients and BatchNorm's moments are summed
over the devices, and all hold the same state: N devices give one device's result up to rounding. Over "replicas" every
device trains replicas of its own, and nothing is communicated.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wsjax.checks import is_whole
from wsjax.errors import ProcessLost, TaskError
from wsjax.trees import named_leaves

DATA, REPLICAS = "data", "replicas"
JOIN_WITHIN = 60
"""Seconds within which all processes must have come."""
BROKEN_OFF = "gloo|nccl|barrier|heartbeat|coordination"
"""Who speaks in the error of a communication that broke off: collectives on a CPU and a GPU, or JAX's own service."""


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh that splits batches over so many devices, by default all there are."""
    return _mesh(DATA, devices)


def replica_mesh(devices: int | None = None) -> Mesh:
    """A mesh that spreads replicas over so many devices, by default all there are."""
    return _mesh(REPLICAS, devices)


def cores() -> int:
    """The cores that this process may use, which a scheduler or taskset can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_names() -> list[str]:
    """What every device is, as a run's record tells it: a CPU by its processor's name, where the system tells that."""
    return [
        f"{device.platform} ({processor() if device.platform == 'cpu' else device.device_kind})"
        for device in jax.devices()
    ]


@cache
def processor() -> str:
    """The processor's name, or its architecture's."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def axis_of(mesh: Mesh | None) -> str | None:
    """The axis over which batches are split, for a model's `axis_name`: "data", or None."""
    return DATA if mesh is not None and DATA in mesh.axis_names else None


def groups(seeds: Sequence[int], stack: bool, mesh: Mesh | None) -> list[tuple[int, ...]]:
    """The seeds that train as one program: all, or one by one; over a mesh of replicas as many as fill its devices."""
    size = len(seeds) if stack else 1
    if mesh is not None and REPLICAS in mesh.axis_names:
        size = max(len(seeds) // mesh.size, 1) * mesh.size if stack else mesh.size
    return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


def replica_devices(mesh: Mesh | None) -> int:
    """The number of devices that replicas are spread over."""
    return mesh.size if mesh is not None and REPLICAS in mesh.axis_names else 1


def fit(mesh: Mesh | None, replicas: int) -> Mesh | None:
    """The mesh for a stack of so many replicas: one of replicas shrinks to a number of devices that divides them."""
    if mesh is None or REPLICAS not in mesh.axis_names or replicas % mesh.size == 0:
        return mesh
    count = max(n for n in range(1, mesh.size) if replicas % n == 0)
    return Mesh(mesh.devices.ravel()[:count], (REPLICAS,), axis_types=(AxisType.Auto,))


def over_mesh(function: Callable[..., Any], mesh: Mesh | None, mapped: Sequence[bool]) -> Callable[..., Any]:
    """The function on every device of a mesh.

    Args:
      function: of arguments with a leading axis of replicas, where `mapped` says so; so are its results.
      mesh: of data, replicas, or None, which leaves the function as it is.
      mapped: for each argument, whether it has that axis.
    """
    if mesh is None:
        return function
    spec = PartitionSpec(REPLICAS) if REPLICAS in mesh.axis_names else PartitionSpec()
    specs = tuple(spec if has_axis else PartitionSpec() for has_axis in mapped)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)


def place(tree: Any, mesh: Mesh | None, replicated: bool = False) -> Any:
    """Puts a tree where `over_mesh` wants it: split by replicas, or whole on every device."""
    if mesh is None:
        return tree
    return jax.tree.map(partial(_put, sharding=_sharding(mesh, replicated)), tree)


def placed(shapes: Any, mesh: Mesh | None) -> Any:
    """The same shapes and dtypes, with where `place` puts such arrays: a template of what is not there yet.

    Without a mesh that is nowhere in particular: they go where the data lie.
    """
    sharding = None if mesh is None else _sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def unlike(tree: Any) -> str | None:
    """The path of a leaf of which this process's devices hold copies that differ, where they should be the same."""
    for name, leaf in named_leaves(tree):
        copies: dict[str, bytes] = {}
        shards = leaf.addressable_shards if jnp.issubdtype(leaf.dtype, jnp.number) else []
        for shard in shards if len(shards) > 1 else []:
            own = np.asarray(shard.data).tobytes()
            if copies.setdefault(str(shard.index), own) != own:
                return name
    return None


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of several hosts; what is None is taken from the cluster's environment, where it tells.

    Call it before anything else touches a device. A process that dies ends the others within a minute.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
    """
    jax.distributed.initialize(
        coordinator, num_processes, process_id, initialization_timeout=JOIN_WITHIN, heartbeat_timeout_seconds=20
    )


def is_main() -> bool:
    """Whether this process writes records and speaks to the user: of several, the first one."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process has come to the point of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the error of a communication that broke off into a ProcessLost, which carries its first words.

    JAX has no type for it: a ValueError or a JaxRuntimeError tells of what failed beneath it.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not re.search(BROKEN_OFF, str(error), re.IGNORECASE):
            raise
        raise ProcessLost(f"{str(error.__cause__ or error).splitlines()[0]:.200}") from error


def _sharding(mesh: Mesh, replicated: bool = False) -> NamedSharding:
    split = REPLICAS in mesh.axis_names and not replicated
    return NamedSharding(mesh, PartitionSpec(REPLICAS) if split else PartitionSpec())


def _put(x: Any, sharding: NamedSharding) -> Any:
    """Puts an array that every process has on all devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x  # it is there already
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding))
    local = np.asarray(x)
    return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])


def _mesh(axis: str, devices: Any) -> Mesh:
    if devices is not None and not is_whole(devices):
        raise TaskError(f"devices must be a whole number, how many, not {devices!r:.60}")
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise TaskError(
            f"{count} devices asked for; there are {len(available)} ({available[0].platform}); "
            "on a CPU, JAX_NUM_CPU_DEVICES says how many it passes for"
        )
    return Mesh(np.array(available[:count]), (axis,), axis_types=(AxisType.Auto,))


def total(x: Any, axis_name: str | None) -> Any:
    """The sum over the mapped axis, where there is one."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def apart(tree: Any, part: jax.Array, axis_name: str | None) -> Any:
    """The tree as each device's own, where `part` is known to be so: else its gradients come summed over the devices.

    They do under `jax.shard_map` with its `check_vma`, and under nothing else that maps an axis.
    """
    known = getattr(jax.typeof(part), "manual_axis_type", None)
    if known is None or axis_name not in known.varying:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), tree)
