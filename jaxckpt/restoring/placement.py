"""Reads a part of the leaves in one batch, transfers it to the devices in one batch, and makes the new values."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxckpt._lib.boxes import Slices, overlapping, spans_of
from jaxckpt._lib.documents import damage
from jaxckpt._lib.groups import groups
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import Delivery
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.alike import Alike
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage import compat
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import Source
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf


class _Batch(NamedTuple):
    """A group of leaves that are alike, whose arrays are read together with those of other groups.

    Attributes:
      group: the group.
      first: position of the first request for it.
      delivery: how each of its leaves becomes a value.
    """

    group: Alike
    first: int
    delivery: Delivery

    @property
    def starts(self) -> list[int]:
        """For each leaf the position of its first request."""
        step = len(self.delivery.boxes)
        return [self.first + number * step for number in range(len(self.group.pairs))]


def load_part(
    part: Sequence[Alike],
    infos: Mapping[str, ArrayInfo],
    stored: Source,
    conversions: Mapping[str, Conversion],
    memory: int,
) -> dict[str, Any]:
    """Reads the boxes that a part of the targets needs, and makes their values.

    Args:
      part: groups of validated pairs whose leaves are arrays. A leaf that is converted is a group by itself.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: conversions of the arrays that need one, by name of the target.
      memory: if the part has a single array that is larger than so many bytes, its boxes are read and transferred in several steps.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Slices | None]] = []
    batches: list[_Batch] = []
    for group in part:
        target, leaf = group.pairs[0]
        delivery = kind_of(target.value).place(target, leaf, group.info)
        batches.append(_Batch(group, len(requests), delivery))
        requests += [(leaf.param_name, box) for _, leaf in group.pairs for box in delivery.boxes]
    if len(part) == 1 and len(part[0].pairs) == 1:
        steps = list(_steps(requests, infos, memory))
        if len(steps) > 1:
            return _in_steps(batches[0], requests, steps, stored, conversions)
    arrays: list[Any] = list(stored.read(requests))
    if conversions:
        _convert(batches, arrays, conversions)
    placed = iter(_transferred(batches, arrays))
    values: dict[str, Any] = {}
    with compat.explicit_transfers():
        for batch in batches:
            pairs = batch.group.pairs
            boxes, places, build, assemble = batch.delivery
            given: Iterator[Sequence[Any]] = _taken(arrays, batch.starts, len(boxes))
            if places and assemble is None:
                given = itertools.islice(zip(*[placed] * len(places), strict=False), len(pairs))
            values.update(zip(batch.group.names, _built(pairs, assemble or build, given), strict=True))
    return values


def _in_steps(
    batch: _Batch,
    requests: Sequence[tuple[str, Slices | None]],
    steps: Iterable[Sequence[int]],
    stored: Source,
    conversions: Mapping[str, Conversion],
) -> dict[str, Any]:
    """Makes the value of one large array. What has been read is transferred before more is read.

    Args:
      batch: a group of one leaf.
      requests: its boxes.
      steps: positions of the boxes that are read together.
      stored: the checkpoint.
      conversions: as for `load_part`.

    Returns:
      The new value by name of the leaf.
    """
    (pair,) = batch.group.pairs
    target = pair[0]
    places = batch.delivery.places
    arrays: list[Any] = [None] * len(requests)
    placed: list[Any] = [None] * len(places)
    conversion = conversions.get(target.name)
    for step in steps:
        for position, array in zip(step, stored.read([requests[position] for position in step]), strict=True):
            arrays[position] = array if conversion is None else conversion(array)
        chosen = set(step)
        transfers = [number for number, (_, position) in enumerate(places) if position in chosen]
        results = _put(
            [arrays[places[number][1]] for number in transfers],
            [places[number][0] for number in transfers],
            [target] * len(transfers),
        )
        # The memory is free only when the transfers are over.
        jax.block_until_ready(results)
        for number, result in zip(transfers, results, strict=True):
            placed[number] = result
            # What has been transferred is let go of.
            arrays[places[number][1]] = None
    with compat.explicit_transfers():
        return {target.name: _built([pair], batch.delivery.build, [placed if places else arrays])[0]}


def _convert(batches: Sequence[_Batch], arrays: list[Any], conversions: Mapping[str, Conversion]) -> None:
    """Converts the arrays that need it.

    Args:
      batches: the batches.
      arrays: what was read for them; changed.
      conversions: as for `load_part`.
    """
    for batch in batches:
        conversion = conversions.get(batch.group.pairs[0][0].name)
        if conversion is not None:
            for position in range(batch.first, batch.first + len(batch.delivery.boxes)):
                arrays[position] = conversion(arrays[position])


def _transferred(batches: Sequence[_Batch], arrays: list[Any]) -> list[jax.Array]:
    """Transfers arrays to devices, except those that `Delivery.assemble` transfers.

    Args:
      batches: the batches.
      arrays: what was read for them. What has been transferred is let go of.

    Returns:
      The results, in the order of the leaves, and of the places of each.
    """
    chosen = [batch for batch in batches if batch.delivery.places and batch.delivery.assemble is None]
    sources: list[int] = []
    destinations: list[Any] = []
    for batch in chosen:
        places = batch.delivery.places
        sources += [start + position for start in batch.starts for _, position in places]
        destinations += [place for place, _ in places] * len(batch.group.pairs)
    # Only errors ask for the owners.
    owners = (target for group, _, delivery in chosen for target, _ in group.pairs for _ in delivery.places)
    placed = _put([arrays[position] for position in sources], destinations, owners)
    for position in sources:
        arrays[position] = None
    return placed


def _taken(arrays: list[Any], starts: Iterable[int], count: int) -> Iterator[Sequence[Any]]:
    """Yields what was read for each leaf, and lets go of it.

    Args:
      arrays: what was read; changed.
      starts: for each leaf the position of its first array.
      count: the number of arrays of each leaf.
    """
    none = [None] * count
    for start in starts:
        stop = start + count
        found = arrays[start:stop]
        arrays[start:stop] = none
        yield found


def load_text(target: Leaf, leaf: StoredLeaf, text: str) -> Any:
    """Makes the value of a target whose leaf is stored as a str.

    Args:
      target: the target.
      leaf: its stored leaf.
      text: the stored text.
    """
    build = kind_of(target.value).place(target, leaf, None).build
    return _built([(target, leaf)], build, [[text]])[0]


def _built(pairs: Sequence[Pair], build: Callable[[Sequence[Any]], Any], given: Iterable[Sequence[Any]]) -> list[Any]:
    """Makes the values of targets that are alike. Every error names the leaf.

    Args:
      pairs: the targets, and their stored leaves.
      build: the function of their `Delivery`.
      given: what was read or transferred for each.

    Raises:
      CorruptCheckpointError: the kind of a value in host memory cannot make one of what is stored.
      Exception: JAX's error about a value on devices.
    """
    values: list[Any] = []
    # Only if there is an error, because there are thousands of leaves.
    try:
        for each in given:
            values.append(build(each))
    except Exception as error:
        target = pairs[len(values)][0]
        with leaf_errors.naming(target.name):
            if isinstance(target.value, (jax.Array, jax.ShapeDtypeStruct)):
                raise
            with damage(target.name, "its stored value"):
                raise error
    return values


def _steps(
    requests: Sequence[tuple[str, Slices | None]], infos: Mapping[str, ArrayInfo], memory: int
) -> Iterator[Sequence[int]]:
    """Divides the boxes of one array into steps of at most `memory` bytes. Boxes that want the same chunks come in one step.

    Args:
      requests: the boxes, all of one array.
      infos: its metadata, by Orbax's name.
      memory: the largest size of a step in bytes. A step has at least one box.

    Yields:
      Indices of `requests`.
    """
    if len(requests) < 2 or (info := infos[requests[0][0]]).nbytes <= memory:
        yield range(len(requests))
        return
    boxes = [spans_of(box, info.shape) for _, box in requests]
    sizes = [math.prod(max(0, stop - start) for start, stop in spans) * info.dtype.itemsize for spans in boxes]
    grid = info.chunk_shape or info.grid or info.shape
    ranges = [
        [(start // cut, -(-stop // cut)) for (start, stop), cut in zip(spans, grid, strict=True)] for spans in boxes
    ]
    for group in groups(overlapping(ranges), lambda together: sum(sizes[position] for position in together), memory):
        yield sorted(itertools.chain.from_iterable(group))


def _put(arrays: Sequence[np.ndarray], places: Sequence[Any], owners: Iterable[Leaf]) -> list[jax.Array]:
    """Transfers arrays to devices, all in one batch. If JAX refuses one, the error names its leaf.

    Args:
      arrays: the arrays to transfer.
      places: a device or a sharding for each of them; None lets JAX choose.
      owners: the target to which each of them belongs.
    """
    try:
        return compat.put(arrays, places)
    except Exception:
        for owner, array, place in zip(owners, arrays, places, strict=True):
            with leaf_errors.naming(owner.name):
                jax.device_put(array, place)
        raise
