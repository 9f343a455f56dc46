"""Very small pieces of device arrays: their bytes are copied one after the other, into the pack of a snapshot.

Leaves of a few bytes cost what is done for each of them, and not their bytes. In a job of several processes, the pieces of such leaves
travel to the process that writes them. So a save copies their bytes, and all else comes from the last save of the same structure: the
entries of the snapshot, and where in the pack each piece is.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxckpt.job.modes.together import VERY_SMALL_BYTES, is_very_small
from jaxckpt.job.plan import Plan
from jaxckpt.saving.shards import Described
from jaxckpt.storage.item.content import Entry, InPack, Piece
from jaxckpt.tree.flatten import Leaf

# A pack is full when it has so many bytes.
_PACK_BYTES = 16 << 20


class Packing(NamedTuple):
    """What a pack holds. It depends on the structure of the values alone.

    Attributes:
      entries: the entry of each leaf whose piece is in the pack; None for other leaves.
      rest: the positions of the other leaves.
      members: the position of each of these leaves, and of the shard that is its piece.
      foreign: numbers of the pieces whose dtypes only JAX knows.
    """

    entries: Sequence[Entry | None]
    rest: Sequence[int]
    members: Sequence[tuple[int, int]]
    foreign: Sequence[int]


class Started(NamedTuple):
    """The pieces of a pack, on their way to host memory."""

    packing: Packing
    shards: Sequence[Any]


def start(leaves: Sequence[Leaf], arrays: Sequence[Described | None], plan: Plan, *, on_cpu: bool) -> Started | None:
    """Starts the transfer of the very small pieces of this process to host memory.

    Args:
      leaves: all leaves.
      arrays: as `shards.described` returned it.
      plan: the plan of the save.
      on_cpu: whether JAX runs on the CPU. Then there is nothing to transfer.

    Returns:
      The pieces; None if there are none, or if one of them cannot be had. Then each leaf has to be taken on its own, which raises an error
      that names the leaf.
    """
    if plan.kept is None:
        return None
    packing: Packing | None = plan.kept.get("packing")
    if packing is None:
        packing = plan.kept["packing"] = _packing(leaves, arrays, plan)
    if not packing.members:
        return None
    try:
        found = [leaves[position].value.addressable_data(shard) for position, shard in packing.members]
        if not on_cpu:
            for shard in found:
                shard.copy_to_host_async()
    except Exception:
        # One was deleted, perhaps. Which one, and how, is found by the caller.
        return None
    return Started(packing, found)


def finish(started: Started) -> np.ndarray | None:
    """Returns the pack. Waits for the transfers.

    Args:
      started: as `start` returned it.

    Returns:
      The bytes; None if one of the pieces cannot be had, as for `start`.
    """
    shards: list[Any] = list(started.shards)
    try:
        if jax.default_backend() != "cpu":
            shards = [np.asarray(shard) for shard in shards]
        for number in started.packing.foreign:
            shards[number] = np.asarray(shards[number]).tobytes()
        try:
            content = b"".join(shards)
        except (BufferError, TypeError):
            # The bytes of an array lie in another order than C's.
            content = b"".join([each if isinstance(each, bytes) else np.asarray(each).tobytes() for each in shards])
    except Exception:
        return None
    return np.frombuffer(content, np.uint8)


def _packing(leaves: Sequence[Leaf], arrays: Sequence[Described | None], plan: Plan) -> Packing:
    entries: list[Entry | None] = [None] * len(leaves)
    members: list[tuple[int, int]] = []
    foreign: list[int] = []
    first = 0
    for position, (leaf, array) in enumerate(zip(leaves, arrays, strict=True)):
        if array is None or not array.parts or not array.is_plain or not _is_sent(array, plan):
            continue
        bare, parts = array.bare, array.parts
        dtype = bare.dtype
        pieces = []
        # In the order in which pieces of one array are numbered.
        for box, shard, _ in parts if len(parts) == 1 else sorted(parts, key=lambda part: part.box.start):
            last = first + math.prod(box.shape) * dtype.itemsize
            if dtype.isbuiltin != 1:
                foreign.append(len(members))
            pieces.append(Piece(*box, InPack(len(members), first, last)))
            members.append((position, shard))
            first = last
        entries[position] = Entry(leaf.path, bare.with_pieces(tuple(pieces), bare.write_shape))
        if first > _PACK_BYTES:
            break
    rest = [position for position, entry in enumerate(entries) if entry is None]
    return Packing(entries, rest, members, foreign)


def _is_sent(array: Described, plan: Plan) -> bool:
    """Returns whether an array is very small, and its pieces go to the process that writes the whole."""
    if plan.center is None:
        return is_very_small(array.bare)
    return 0 < array.bare.nbytes <= VERY_SMALL_BYTES
