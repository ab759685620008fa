"""The arrays of a pytree as one file, in the safetensors format: https://huggingface.co/docs/safetensors.

Eight bytes with the length of a header, the header (JSON: dtype, shape and place of each array), and all bytes one
behind the other. Any program that knows the format reads it, Orbax among them; names are the leaves' paths. Checksums
in the header tell a file that was damaged.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.errors import TaskError

_SUMS = "crc32"
"""Where the header has each array's checksum, in their order."""

_ALIGNED = 64  # an array that begins at such a place of memory is JAX's without a copy
_LARGE = 2**20  # bytes from which on threads are worth their start
_MOST_THREADS = 8
_NAMED = 3  # arrays that a message names
_DTYPES = {
    **{np.dtype(kind): name for kind, name in ((np.bool_, "BOOL"), (jnp.bfloat16, "BF16"), (np.complex64, "C64"))},
    **{np.dtype(kind): name for kind, name in ((jnp.float8_e5m2, "F8_E5M2"), (jnp.float8_e4m3fn, "F8_E4M3"))},
    **{
        np.dtype(f"{kind}{size}"): f"{name}{8 * size}"
        for kind, name in (("i", "I"), ("u", "U"))
        for size in (1, 2, 4, 8)
    },
    **{np.dtype(f"f{size}"): f"F{8 * size}" for size in (2, 4, 8)},
}


class OtherArraysError(ValueError):
    """A file holds arrays of other names, shapes or dtypes than are wanted."""


def write(path: Path | str, arrays: Any, **about: str) -> None:
    """Writes a pytree of NumPy arrays (`on_host`) and what is said about them; it is on the disk when this returns.

    Raises OSError where it cannot be written.
    """
    leaves = _ordered(arrays)
    entries = _entries(leaves)
    with open(path, "wb", buffering=0) as file:

        def place(leaf: np.ndarray, begin: int) -> str:
            content = memoryview(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
            _write_all(file.fileno(), content, begin)
            return f"{zlib.crc32(content):08x}"

        def header(sums: Sequence[str]) -> bytes:
            text = json.dumps({"__metadata__": about | {_SUMS: " ".join(sums)}, **entries}).encode()
            text += b" " * (-(8 + len(text)) % _ALIGNED)
            return len(text).to_bytes(8, "little") + text

        begin = len(header(["00000000"] * len(leaves)))
        sums = _each(place, ((leaf, begin + entries[name]["data_offsets"][0]) for name, leaf in leaves), _size(entries))
        _write_all(file.fileno(), memoryview(header(sums)), 0)
        os.fsync(file.fileno())


def read(path: Path | str, template: Any, **about: str) -> Any:
    """Reads what `write` wrote, as a pytree of JAX arrays.

    Args:
      path: the file.
      template: a pytree of arrays with the structure, shapes, dtypes and shardings of what was written.
      about: what was said about them.

    Raises:
      OtherArraysError: the file holds other arrays.
      ValueError: it is damaged, or something else was said about its arrays.
      OSError: it cannot be read.
    """
    like = jax.tree.map(_numbers_like, template)
    wanted = _entries(_ordered(like))
    with open(path, "rb", buffering=0) as file:
        begin = 8 + int.from_bytes(_read_all(file.fileno(), bytearray(8), 0), "little")
        if begin > os.fstat(file.fileno()).st_size:
            raise ValueError("it is cut short")
        header = json.loads(_read_all(file.fileno(), bytearray(begin - 8), 8))
        said = header.pop("__metadata__")
        sums = said.pop(_SUMS).split()
        if said != about:
            raise ValueError(f"its arrays are those of {said}, not of {about}")
        if header != wanted:
            raise OtherArraysError(_difference(header, wanted))
        room = _room(_size(wanted))

        def fill(first: int, last: int) -> str:
            return f"{zlib.crc32(_read_all(file.fileno(), room[first:last].data, begin + first)):08x}"

        if _each(fill, (entry["data_offsets"] for entry in wanted.values()), _size(wanted)) != sums:
            raise ValueError("its arrays are not those that were saved")

    def leaf(at: Any, own: Any, numbers: Any) -> jax.Array:
        first, last = wanted[_name(at)]["data_offsets"]
        return _placed(room[first:last].view(numbers.dtype).reshape(numbers.shape), own)

    return jax.tree_util.tree_map_with_path(leaf, template, like)


def on_host(state: Any) -> Any:
    """A pytree of JAX arrays as one of NumPy's; of random keys the numbers. All of each array is in this process.

    Raises TaskError, which names the leaf, where one is no array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not hasattr(leaf, "dtype"):
            raise TaskError(f"what is saved must be arrays; {_name(path)} is {leaf!r:.60}")
    return jax.device_get(jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state))


def _room(size: int) -> np.ndarray:
    """So many bytes of memory, which JAX takes as it is."""
    room = np.empty(size + _ALIGNED, np.uint8)
    begin = -room.ctypes.data % _ALIGNED
    return room[begin : begin + size]


def _read_all(file: int, room: Any, begin: int) -> Any:
    """Fills a buffer with what a file has from a place on. Raises ValueError where that is less."""
    left = memoryview(room)
    while left:
        if not (count := os.preadv(file, [left], begin)):
            raise ValueError("it is cut short")
        left, begin = left[count:], begin + count
    return room


def _write_all(file: int, left: memoryview, begin: int) -> None:
    while left:
        count = os.pwrite(file, left, begin)
        left, begin = left[count:], begin + count


def _each(work: Callable[..., str], items: Iterable[Sequence[Any]], size: int) -> list[str]:
    """What a function gives for each item, in order; in several threads where there are so many bytes."""
    if size < _LARGE:
        return [work(*item) for item in items]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        return list(pool.map(lambda item: work(*item), items))


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what arrays are not as wanted, in words: the names that one side lacks, else the first of another kind."""
    sides = ("lacks", sorted(wanted.keys() - there.keys())), ("has besides", sorted(there.keys() - wanted.keys()))
    if words := [f"{verb} {_listed(names)}" for verb, names in sides if names]:
        return "it " + " and ".join(words)
    for name in sorted(wanted):
        found, due = (f"{own[name]['dtype']} {own[name]['shape']}" for own in (there, wanted))
        if found != due:
            return f"its array {name} is {found}, not {due}"
    return "its arrays lie in another order"


def _listed(names: Sequence[str]) -> str:
    """The first names in a message, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _size(entries: Mapping[str, Any]) -> int:
    """The bytes of all arrays together."""
    return max((entry["data_offsets"][1] for entry in entries.values()), default=0)


def _ordered(tree: Any) -> list[tuple[str, Any]]:
    """The leaves by name, the largest first: what is behind a small one is not aligned."""
    leaves = [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return sorted(leaves, key=lambda named: -named[1].size * named[1].dtype.itemsize)


def _entries(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The header's entries for arrays that lie one behind the other."""
    entries, end = {}, 0
    for name, leaf in leaves:
        begin, end = end, end + leaf.size * leaf.dtype.itemsize
        entries[name] = {"dtype": _kind(leaf.dtype), "shape": list(leaf.shape), "data_offsets": [begin, end]}
    return entries


def _kind(dtype: Any) -> str:
    """A dtype as the format calls it; one that it does not know by its own name, which other programs then refuse."""
    return _DTYPES.get(np.dtype(dtype), np.dtype(dtype).name)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers_like(leaf: Any) -> Any:
    """Shape and dtype of a leaf's numbers."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """The array where a template has it; a random key of its numbers."""
    sharding = getattr(like, "sharding", None)
    if _is_key(like):
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array), impl=_impl_of(like)), sharding)
    if sharding is not None and not sharding.is_fully_addressable:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.device_put(array, sharding)


def _impl_of(key: Any) -> Any:
    """How a key draws; of a mere shape too, which `key_impl` takes only as it is traced."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]
