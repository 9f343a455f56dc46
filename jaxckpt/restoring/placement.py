"""Reading a group of leaves, and making their new values: all is read in one batch, and transferred to devices in one batch."""

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
      group: validated pairs, all of array leaves.
      infos: of their arrays, by Orbax's name.
      stored: the checkpoint.
      conversions: of those whose numbers need one, by Orbax's name.

    Returns:
      New values by name of the leaf.
    """
    requests: list[tuple[str, Slices | None]] = []
    # Each with the position of its first request.
    deliveries: list[tuple[Leaf, int, Delivery]] = []
    # The request whose array goes to a place, and the place.
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
        for place, position in places:
            sources.append(first + position)
            destinations.append(place)
    arrays = stored.read(requests)
    if conversions:
        for position, (name, _) in enumerate(requests):
            if (conversion := conversions.get(name)) is not None:
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
    """Transfers arrays to their places, all in one batch. Where JAX refuses one, the error names its leaf.

    Args:
      arrays: the sources.
      places: a device or a sharding for each of them; None for a place that JAX chooses.
      deliveries: the targets, in the order of their places.
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
