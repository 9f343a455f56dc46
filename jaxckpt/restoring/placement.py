"""Reads a group of leaves in one batch, transfers it to the devices in one batch, and makes the new values."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.leaf_kinds.kind import WHOLE, Delivery
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.source import Source
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf


def load_group(
    group: Sequence[Pair], infos: Mapping[str, ArrayInfo], stored: Source, conversions: Mapping[str, Conversion]
) -> dict[str, Any]:
    """Reads the boxes that a group of targets needs, and makes their values.

    Args:
      group: validated pairs whose leaves are arrays.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: conversions of the arrays that need one, by name of the target.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Slices | None]] = []
    # The target of each request.
    owners: list[str] = []
    # Target, position of its first request, and its delivery.
    deliveries: list[tuple[Leaf, int, Delivery]] = []
    # For each transfer: the position of the request whose array is transferred, and its device or sharding.
    sources: list[int] = []
    destinations: list[Any] = []
    for target, leaf in group:
        name = leaf.param_name
        delivery = kind_of(target.value).place(target, leaf, infos[name])
        boxes, places, _ = delivery
        first = len(requests)
        deliveries.append((target, first, delivery))
        if boxes is WHOLE:
            requests.append((name, None))
        else:
            requests += [(name, box) for box in boxes]
        owners += [target.name] * (len(requests) - first)
        for place, position in places:
            sources.append(first + position)
            destinations.append(place)
    arrays = stored.read(requests)
    if conversions:
        for position, owner in enumerate(owners):
            if (conversion := conversions.get(owner)) is not None:
                arrays[position] = conversion(arrays[position])
    placed = _put([arrays[source] for source in sources], destinations, deliveries)
    values: dict[str, Any] = {}
    at = 0
    for target, first, (boxes, places, build) in deliveries:
        if places:
            given: Sequence[Any] = placed[at : at + len(places)]
            at += len(places)
        else:
            given = arrays[first : first + len(boxes)]
        try:
            values[target.name] = build(given)
        except Exception as error:
            found = leaf_errors.named(error, target.name)
            raise found from (None if found is error else error)
    return values


def _put(
    arrays: Sequence[np.ndarray], places: Sequence[Any], deliveries: Sequence[tuple[Leaf, int, Delivery]]
) -> list[jax.Array]:
    """Transfers arrays to devices, all in one batch. If JAX refuses one, the error names its leaf.

    Args:
      arrays: the arrays to transfer.
      places: a device or a sharding for each of them; None lets JAX choose.
      deliveries: the targets and their deliveries, in the order of `places`.
    """
    try:
        placed: list[jax.Array] = jax.device_put(list(arrays), list(places)) if arrays else []
    except Exception:
        owners = [target for target, _, delivery in deliveries for _ in delivery.places]
        for owner, array, place in zip(owners, arrays, places, strict=True):
            try:
                jax.device_put(array, place)
            except Exception as error:
                found = leaf_errors.named(error, owner.name)
                raise found from (None if found is error else error)
        raise
    return placed
