"""Turns leaves into a snapshot, which later changes of the values cannot reach. An asynchronous save does only this on the caller's thread.

Device arrays are immutable. On the CPU backend the snapshot is a view of the device's buffer, which JAX does not donate as long as the
view exists. On other backends it is a copy in host memory. Mutable host memory (numpy) is copied if the write happens in the background.
Very small pieces that another process writes are copied in any case (see `packing`).
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt.job.plan import Plan
from jaxckpt.leaf_kinds.kind import Content
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.saving import host_leaves, packing, shards
from jaxckpt.storage.item import layout, strings
from jaxckpt.storage.item.content import EmptyContent, EmptyType, Entry, Snapshot, StringContent
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import EmptyNode, Flat, Leaf
from jaxckpt.tree.names import PROCESS, Path


def take(flats: Iterable[Flat], plan: Plan | None = None, *, copy: bool, pack: bool = False) -> Snapshot:
    """Takes the snapshot of flattened values, or this process's part of it.

    In a job of several processes, every process describes all leaves, in the same way, and adds the pieces that it owns. The data of
    host leaves (values in host memory, which every process has) is taken from process 0.

    Args:
      flats: values that were flattened by `jaxckpt.tree.flatten.flatten`.
      plan: tells which process of the job owns which piece; None if this process has everything.
      copy: whether to copy mutable host memory (numpy), because the caller may change it before it is written.
      pack: whether very small pieces may be in a pack, where only a process that gathers them from all finds them.

    Raises:
      TypeError: a leaf has a kind or dtype that cannot be stored, or is a traced value (inside jax.jit). The message names the leaf.
      ValueError: Orbax cannot tell the names of two leaves apart, or an array was deleted (donated). The message names the leaves.
      Exception: JAX's error about a leaf, such as a computation that failed. The message names the leaf.
    """
    flats = list(flats)
    leaves = [leaf for flat in flats for leaf in flat.leaves]
    # The user's transfer guard is against unintended copies. The user asked for these by calling save.
    with jax.transfer_guard_device_to_host("allow"), leaf_errors.Walk(leaves) as walk:
        if plan is None:
            _start_transfers(leaves)
            entries = [_new_entry(Entry, (leaf.path, kind_of(leaf.value).take(leaf, copy))) for leaf in walk]
        else:
            entries, packed, rest = _entries(leaves, plan, copy=copy, pack=pack)
    entries += [Entry(node.path, EmptyContent(_empty_type(node))) for flat in flats for node in flat.empties]
    refuse_collisions(entries)
    if plan is None:
        return Snapshot(tuple(entries))
    states = [(leaf.path, leaf.value) for leaf in leaves if leaf.is_state]
    if states and any(entry.path and entry.path[0].text.startswith(PROCESS) for entry in entries):
        raise ValueError(
            f"Names that begin with {PROCESS!r} are reserved for the states of other processes; choose another name."
        )
    # The empty nodes are no part of the structure.
    unpacked = None if rest is None else (*rest, *range(len(leaves), len(entries)))
    return Snapshot(tuple(entries), states=tuple(states), kept=plan.kept, pack=packed, rest=unpacked)


def _entries(
    leaves: Sequence[Leaf], plan: Plan, *, copy: bool, pack: bool
) -> tuple[list[Entry], np.ndarray | None, Sequence[int] | None]:
    """Returns the entries of leaves, with the pieces that this process owns, the pack, and which leaves are not in it.

    The last two are None if there is no pack (see `jaxckpt.saving.packing`).

    Args:
      leaves: the leaves.
      plan: tells which process owns which piece.
      copy: whether to copy mutable host memory.
      pack: whether very small pieces may be in a pack.
    """
    with leaf_errors.Walk(leaves) as walk:
        arrays = shards.described(walk, plan)
    on_cpu = jax.default_backend() == "cpu"
    # Start all transfers before waiting for the first.
    small = packing.start(leaves, arrays, plan, on_cpu=on_cpu) if pack else None
    rest: Sequence[int] = range(len(leaves)) if small is None else small.packing.rest
    started: dict[int, shards.Started] = {}
    if not on_cpu:
        with leaf_errors.Walk([leaves[position] for position in rest]) as walk:
            for position, leaf in zip(rest, walk, strict=True):
                if (array := arrays[position]) is not None:
                    started[position] = shards.start(leaf, array, on_cpu=False)
        _start_transfers([leaves[position] for position in rest if arrays[position] is None])
    packed = None if small is None else packing.finish(small)
    entries: list[Any] = [None] * len(leaves)
    if small is not None and packed is not None:
        entries[:] = small.packing.entries
    else:
        rest = range(len(leaves))
    with leaf_errors.Walk([leaves[position] for position in rest]) as walk:
        for position, leaf in zip(rest, walk, strict=True):
            array = arrays[position]
            # What has been copied is let go of.
            parts = started.pop(position, None)
            if array is None:
                content: Content = host_leaves.part(leaf, plan, copy)
            elif parts is None:
                content = shards.content_at_once(leaf, array, on_cpu=on_cpu)
            else:
                content = shards.content(array, parts)
            entries[position] = Entry(leaf.path, content)
    return entries, packed, None if packed is None else rest


def _start_transfers(leaves: Sequence[Leaf]) -> None:
    """Starts all copies from devices to the host, before the first is waited for."""
    if jax.default_backend() == "cpu":
        # The snapshot has views of these arrays: nothing is copied.
        return
    for leaf in leaves:
        kind_of(leaf.value).start(leaf.value)


def _empty_type(node: EmptyNode) -> EmptyType:
    value = node.value
    if value is None or (isinstance(value, tuple) and hasattr(value, "_fields")):
        # Orbax stores an empty named tuple, such as optax.EmptyState, as "None".
        return "None"
    if isinstance(value, list):
        return "List"
    if isinstance(value, tuple):
        return "Tuple"
    # Orbax stores a custom node without children as "None", too.
    return "Dict" if isinstance(value, Mapping) else "None"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# A NamedTuple's own constructor takes twice as long, and there are thousands of leaves.
_new_entry = tuple.__new__
_told_apart: tuple[Path, ...] = ()


def refuse_collisions(entries: Sequence[Entry]) -> None:
    """Refuses names that Orbax cannot tell apart.

    The paths of the last call are remembered: a training loop saves the same path objects (see `jaxckpt.tree.flatten`) each time.

    Args:
      entries: the leaves of a snapshot.

    Raises:
      ValueError: two names collide, or one is not text; the message names them.
    """
    global _told_apart
    paths = tuple([entry.path for entry in entries])
    if len(paths) == len(_told_apart) and all(map(operator.is_, paths, _told_apart)):
        return
    names = [entry.param_name for entry in entries]
    text = "".join(names)
    try:
        text.encode()
    except UnicodeEncodeError:
        bad = next(entry for entry in entries if not _is_text(entry.param_name))
        raise ValueError(f"{bad.name}: this key holds a lone surrogate, which is not text. Rename the key.") from None
    if "/" in text or "~" in text:
        _refuse_collisions_of_strings(entries)
    if "/" not in text and "~" not in text and len(set(names)) == len(names):
        # Without '/' and '~' the names stay distinct whichever of the leaves are str, so the paths alone decide.
        _told_apart = paths
        return
    layout.refuse_collisions(paths)


def _refuse_collisions_of_strings(entries: Sequence[Entry]) -> None:
    """Refuses str leaves whose names collide in the file in which Orbax stores strings."""
    texts: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry.content, StringContent):
            try:
                strings.put(texts, entry.param_name, "")
            except ValueError:
                raise ValueError(
                    f"{entry.name}: Orbax cannot tell the name of this str from another one, because of a '/' or '~'. Rename the key."
                ) from None
