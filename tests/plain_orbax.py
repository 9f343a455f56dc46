"""Opens checkpoints with Orbax alone, in every way that it has, and compares what comes with what was saved.

`Recorder` watches the saves of a test process. It keeps a copy of each checkpoint that shows something new (a kind of leaf in a kind of
container, a layout of the files), together with the values that were handed to the storage engine, for `check` to open.
"""

import functools
import itertools
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

from jaxckpt import storage
from jaxckpt.storage import stores
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, Snapshot, StringContent
from jaxckpt.storage.settings import WriteSettings

_LARGEST = 32 << 20
_EMPTIES: dict[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": ()}


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def restored(
    path: str | Path, target: Any = None, *, standard: bool = True, described: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yields what Orbax's interfaces read at a path, each with its name.

    Args:
      path: of the checkpoint.
      target: a tree of arrays, abstract arrays and scalars; None for none.
      standard: with `StandardCheckpointer`, too, which knows no str and no complex scalar.
      described: with v1's metadata, too, which knows no scalars but ints and floats, whoever wrote them.
    """
    with warnings.catch_warnings():
        # Orbax advises to give shardings.
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            if target is None:
                yield "v0", checkpointer.restore(path)
                yield "v0 metadata", jax.tree.map(lambda leaf: leaf, checkpointer.metadata(path).item_metadata.tree)
            else:
                yield "v0 item", checkpointer.restore(path, item=target)
                arguments = ocp.checkpoint_utils.construct_restore_args(target)
                yield "v0 arguments", checkpointer.restore(path, item=target, restore_args=arguments)
        if standard:
            with ocp.StandardCheckpointer() as checkpointer:
                yield "standard", checkpointer.restore(path, *([] if target is None else [target]))
        if target is None:
            yield "v1", v1.load(path)
            if described:
                yield "v1 metadata", v1.metadata(path).metadata
        else:
            yield "v1 target", v1.load(path, target)


def assert_reads(found: Any, expected: Any, where: str) -> None:
    """Asserts that Orbax, which was given no target, has read what was saved: containers, dtypes, shapes, and every bit."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert sorted(found) == sorted(expected), where
        for key, child in expected.items():
            assert_reads(found[key], child, f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple)), where
        assert len(found) == len(expected), where
        for index, child in enumerate(expected):
            assert_reads(found[index], child, f"{where}/{index}")
    else:
        assert_same_leaf(found, expected, where)


def assert_same_leaf(found: Any, expected: Any, where: str) -> None:
    """Asserts that Orbax has read a leaf: what is no array, as far as Python's own scalars can be the same."""
    if expected is None or isinstance(expected, str):
        assert found == expected, where
        return
    if is_key(expected):
        assert jax.random.key_impl(found) == jax.random.key_impl(expected), where
        found, expected = jax.random.key_data(found), jax.random.key_data(expected)
    if isinstance(expected, bytes):
        expected = np.frombuffer(expected, np.uint8)
    one, two = np.asarray(found), np.asarray(expected)
    assert one.shape == two.shape, where
    if isinstance(expected, (jax.Array, np.ndarray)):
        assert (one.dtype, one.tobytes()) == (two.dtype, two.tobytes()), where
    else:
        assert one.astype(two.dtype) == two or (one != one and two != two), where


def check(path: str | Path, expected: Any, target: Any) -> None:
    """Opens a checkpoint in every way, without a target and with one, and compares.

    Args:
      path: of the checkpoint.
      expected: what Orbax reads without a target.
      target: of the same structure as `expected`.
    """
    leaves = jax.tree.leaves(expected)
    standard = not any(isinstance(leaf, (str, bytes, complex, np.complexfloating)) for leaf in leaves)
    described = all(isinstance(leaf, (str, bytes, jax.Array, np.ndarray)) or _is_number(leaf) for leaf in leaves)
    for name, found in restored(path, standard=standard, described=described):
        if name.endswith("metadata"):
            assert jax.tree.structure(found) == jax.tree.structure(expected), name
        else:
            assert_reads(found, expected, name)
    for name, found in restored(path, target, standard=standard):
        assert_reads(found, expected, name)


def _is_number(leaf: Any) -> bool:
    dtype = np.asarray(leaf).dtype
    return bool(np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating))


def tree_of(snapshot: Snapshot) -> tuple[Any, Any]:
    """Returns what Orbax is expected to read of a snapshot, and a target for it. Containers of NNX objects are dicts."""
    root: dict[Any, Any] = {}
    for entry in snapshot.entries:
        node = root
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = entry
    return _built(root, 0), _built(root, 1)


def _built(node: Any, which: int) -> Any:
    if isinstance(node, Entry):
        return _leaf(node.content)[which]
    if _kind(node) == "list":
        return [_built(child, which) for _, child in sorted(node.items(), key=lambda item: int(item[0].text))]
    return {key.text: _built(child, which) for key, child in node.items()}


def _kind(node: dict[Any, Any]) -> str:
    kinds = {key.is_index for key in node}
    if len(kinds) > 1:
        return "mixed"
    if not all(kinds) or not node:
        return "dict"
    whole = sorted(int(key.text) for key in node) == list(range(len(node)))
    return ("list" if kinds == {True} else "items") if whole else "holes"


def _leaf(content: Any) -> tuple[Any, Any]:
    """Returns the value that Orbax reads, and the target for it."""
    if isinstance(content, EmptyContent):
        empty = _EMPTIES[content.typestr]
        return empty, empty
    if isinstance(content, StringContent):
        return content.text, "another text"
    array = np.empty(content.shape, content.dtype)
    for piece in content.pieces:
        box = tuple(slice(start, start + extent) for start, extent in zip(piece.start, piece.shape, strict=True))
        array[(*box, ...)] = piece.fetch(piece.start, piece.shape)
    if content.key_impl is not None:
        keys = [jax.random.wrap_key_data(jnp.asarray(data), impl=content.key_impl) for data in (array, array * 0)]
        return keys[0], keys[1]
    if content.value_type == "scalar":
        value = array[()] if content.note == "numpy" else array.item()
        # Orbax takes no complex scalar for a target, but an array without dimensions.
        return value, np.zeros_like(array) if array.dtype.kind == "c" else type(array.item())(3)
    if content.value_type == "np.ndarray":
        return array, np.zeros_like(array)
    sharding = content.sharding if content.sharding.memory_kind in (None, "device") else None
    return array, jax.ShapeDtypeStruct(
        content.shape, content.dtype, sharding=sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )


class Recorded(NamedTuple):
    """A checkpoint that shows something new.

    Attributes:
      path: of a copy.
      expected, target: as for `check`.
    """

    path: Path
    expected: Any
    target: Any


class Recorder:
    """Watches `storage.save`, through which every save of one process goes."""

    def __init__(self, directory: Path) -> None:
        """Args: where the copies go."""
        self._directory = directory
        self._seen: set[Any] = set()
        self._count = 0
        self._recorded: list[Recorded] = []

    def watch(self) -> None:
        """Begins to watch."""
        original = storage.save

        @functools.wraps(original)
        def save(path: Any, snapshot: Snapshot, settings: WriteSettings, **arguments: Any) -> None:
            original(path, snapshot, settings, **arguments)
            self._look(str(path), snapshot, settings)

        storage.save = save

    def take(self) -> list[Recorded]:
        """Returns what has been recorded since the last call."""
        taken, self._recorded = self._recorded, []
        return taken

    def _look(self, path: str, snapshot: Snapshot, settings: WriteSettings) -> None:
        contents = [entry.content for entry in snapshot.entries]
        arrays = [content for content in contents if isinstance(content, ArrayContent)]
        if not stores.is_local(path) or any(content.share is not None for content in arrays):
            # Other tests check what Orbax reads of those.
            return
        if sum(content.nbytes for content in arrays) > _LARGEST or _has_unreadable_text(snapshot):
            return
        new = set(_features(snapshot, settings)) - self._seen
        if not new:
            return
        self._seen |= new
        self._count += 1
        copy = self._directory / str(self._count)
        shutil.copytree(path, copy)
        self._recorded.append(Recorded(copy, *tree_of(snapshot)))


def _has_unreadable_text(snapshot: Snapshot) -> bool:
    """Whether there is a str that Orbax can neither write nor read: one below a key with a tilde."""
    return any(isinstance(entry.content, StringContent) and "~" in entry.param_name for entry in snapshot.entries)


def _features(snapshot: Snapshot, settings: WriteSettings) -> Iterator[Any]:
    """Yields everything about a checkpoint that Orbax may read otherwise."""
    files = layout.uses_ocdbt(settings), layout.compression(settings)
    yield files, not snapshot.entries
    kinds: dict[Any, dict[Any, Any]] = {}
    for entry in snapshot.entries:
        for depth, key in enumerate(entry.path):
            kinds.setdefault(entry.path[:depth], {})[key] = None
    names = {path: _kind(children) for path, children in kinds.items()}
    for entry in snapshot.entries:
        content = entry.content
        above = [names[entry.path[:depth]] for depth in range(len(entry.path))]
        yield from itertools.pairwise(above)
        if isinstance(content, ArrayContent):
            yield above[-1], content.value_type, content.note, content.key_impl
            yield content.value_type, content.dtype.name
            yield content.value_type, "scalar" if not content.shape else "some" if math.prod(content.shape) else "none"
            yield type(content.sharding).__name__, len(content.pieces) > 1, files
        else:
            yield above[-1], content.typestr if isinstance(content, EmptyContent) else "str"
        for key in entry.path:
            if not key.text.isidentifier() and not key.text.isdecimal():
                yield from {character for character in key.text if not character.isalnum() and character.isascii()}
