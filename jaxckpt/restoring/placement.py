"""Reads a group of leaves in one batch, transfers it to the devices in one batch, and makes the new values."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import Slices, overlapping, spans_of
from jaxckpt._lib.documents import damage
from jaxckpt._lib.groups import groups
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import Delivery
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage import compat
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import Source
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf


def load_group(
    group: Sequence[Pair],
    infos: Mapping[str, ArrayInfo],
    stored: Source,
    conversions: Mapping[str, Conversion],
    memory: int,
) -> dict[str, Any]:
    """Reads the boxes that a group of targets needs, and makes their values.

    Args:
      group: validated pairs whose leaves are arrays.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: conversions of the arrays that need one, by name of the target.
      memory: if the group has a single array that is larger than so many bytes, its boxes are read and transferred in several steps.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Slices | None]] = []
    # The name of the target of each request.
    askers: list[str] = []
    names = [target.name for target, _ in group]
    # Target, position of its first request, and its delivery.
    deliveries: list[tuple[Leaf, int, Delivery]] = []
    for asker, (target, leaf) in zip(names, group, strict=True):
        name = leaf.param_name
        delivery = kind_of(target.value).place(target, leaf, infos[name])
        deliveries.append((target, len(requests), delivery))
        for box in delivery.boxes:
            requests.append((name, box))
            askers.append(asker)
    steps = list(_steps(requests, infos, memory)) if len(group) == 1 else [range(len(requests))]
    if len(steps) > 1:
        # What has been read must be transferred before more is read.
        deliveries = [(target, first, delivery._replace(assemble=None)) for target, first, delivery in deliveries]
    # For each transfer: the position of the request whose array is transferred, its target, and its device or sharding.
    sources: list[int] = []
    owners: list[Leaf] = []
    destinations: list[Any] = []
    for target, first, delivery in deliveries:
        for place, position in delivery.places if delivery.assemble is None else ():
            sources.append(first + position)
            owners.append(target)
            destinations.append(place)
    arrays: list[Any] = [None] * len(requests)
    placed: list[Any] = [None] * len(sources)
    for step in steps:
        for position, array in zip(step, stored.read([requests[position] for position in step]), strict=True):
            conversion = conversions.get(askers[position]) if conversions else None
            arrays[position] = array if conversion is None else conversion(array)
        transfers: Sequence[int] = range(len(sources))
        if len(step) < len(requests):
            chosen = set(step)
            transfers = [number for number, source in enumerate(sources) if source in chosen]
        results = _put(
            [arrays[sources[number]] for number in transfers],
            [destinations[number] for number in transfers],
            [owners[number] for number in transfers],
        )
        if len(step) < len(requests):
            # The memory is free only when the transfers are over.
            jax.block_until_ready(results)
        for number, result in zip(transfers, results, strict=True):
            placed[number] = result
            # What has been transferred is let go of.
            arrays[sources[number]] = None
    values: dict[str, Any] = {}
    at = 0
    with compat.explicit_transfers():
        for name, (target, first, (boxes, places, build, assemble)) in zip(names, deliveries, strict=True):
            if assemble is not None:
                last = first + len(boxes)
                values[name] = _built(target, assemble, arrays[first:last])
                arrays[first:last] = [None] * len(boxes)
                continue
            if places:
                given: Sequence[Any] = placed[at : at + len(places)]
                at += len(places)
            else:
                given = arrays[first : first + len(boxes)]
            values[name] = _built(target, build, given)
    return values


def load_text(target: Leaf, leaf: StoredLeaf, text: str) -> Any:
    """Makes the value of a target whose leaf is stored as a str.

    Args:
      target: the target.
      leaf: its stored leaf.
      text: the stored text.
    """
    return _built(target, kind_of(target.value).place(target, leaf, None).build, [text])


def _built(target: Leaf, build: Callable[[Sequence[Any]], Any], given: Sequence[Any]) -> Any:
    """Makes the value of a target. Every error names the leaf.

    Args:
      target: the target.
      build: the function of the target's `Delivery`.
      given: what was read for it.

    Raises:
      CorruptCheckpointError: the kind of a value in host memory cannot make one of what is stored.
      Exception: JAX's error about a value on devices.
    """
    # Only if there is an error, because there are thousands of leaves.
    try:
        return build(given)
    except Exception as error:
        with leaf_errors.naming(target.name):
            if isinstance(target.value, (jax.Array, jax.ShapeDtypeStruct)):
                raise
            with damage(target.name, "its stored value"):
                raise error


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


def _put(arrays: Sequence[np.ndarray], places: Sequence[Any], owners: Sequence[Leaf]) -> list[jax.Array]:
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
