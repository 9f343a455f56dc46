"""Reading a group of leaves, and making their new values: all is read in one batch, and transferred to devices in one batch."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import WHOLE, Delivery
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.matching import Pair, Source
from jaxckpt.storage.arrays.chunks import Box
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf


def load_group(
    group: Sequence[Pair], infos: Mapping[str, ArrayInfo], stored: Source, conversions: Mapping[str, Conversion]
) -> dict[str, Any]:
    """Reads the boxes that a group of targets needs, and makes their values.

    Args:
      group: validated pairs, all of array leaves.
      infos: of their arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: of those whose numbers need one, by Orbax's name.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Box | None]] = []
    # Each with the position of its first request.
    deliveries: list[tuple[Leaf, int, Delivery]] = []
    for target, leaf in group:
        name = leaf.param_name
        delivery = kind_of(target.value).place(target, leaf, infos[name])
        deliveries.append((target, len(requests), delivery))
        if delivery.boxes is WHOLE:
            requests.append((name, None))
        else:
            requests += [(name, box) for box in delivery.boxes]
    arrays = stored.read(requests)
    if conversions:
        for position, (name, _) in enumerate(requests):
            if (conversion := conversions.get(name)) is not None:
                arrays[position] = conversion(arrays[position])
    transfers = [
        (target, arrays[first + position], place)
        for target, first, delivery in deliveries
        for place, position in delivery.places
    ]
    placed = iter(_put(transfers) if transfers else ())
    values: dict[str, Any] = {}
    with leaf_errors.Walk([target for target, _, _ in deliveries]) as walk:
        for target, (_, first, (boxes, places, build)) in zip(walk, deliveries, strict=True):
            given = list(itertools.islice(placed, len(places))) if places else arrays[first : first + len(boxes)]
            values[target.name] = build(given)
    return values


def _put(transfers: Sequence[tuple[Leaf, np.ndarray, Any]]) -> list[jax.Array]:
    """Transfers arrays to their places, all in one batch. Where JAX refuses one, the error names its leaf.

    Args:
      transfers: a leaf, an array of it, and the device or sharding that it goes to; None for a place that JAX chooses.
    """
    try:
        placed: list[jax.Array] = jax.device_put(
            [array for _, array, _ in transfers], [place for _, _, place in transfers]
        )
    except Exception:
        for owner, array, place in transfers:
            try:
                jax.device_put(array, place)
            except Exception as error:
                found = leaf_errors.named(error, owner.name)
                raise found from (None if found is error else error)
        raise
    return placed
