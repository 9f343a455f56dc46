"""New leaves → values: rebuilds the values that a walk took apart, and collects the changes that update objects in place."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.tree.builders import KEPT, Change, Owned, Rebuild
from jaxckpt.tree.flatten import Flat
from jaxckpt.tree.names import leaf_names

IsSame = Callable[[Any, Any], bool]
"""Whether two new values of leaves are the same, bit for bit."""


@quiet_gc()
def rebuild_values(
    flats: Mapping[str, Flat], new: Mapping[str, Any], is_same: IsSame
) -> tuple[dict[str, Any], list[Change]]:
    """Rebuilds values from new leaves. This does not change any object yet.

    Args:
      flats: the values by name, taken apart.
      new: new values by leaf name. Other leaves keep their values.
      is_same: compares two new values that were stored for one object.

    Returns:
      The values that have new leaves, by name; and the changes that update reference objects. Calling a change carries it out and returns
      its undo.

    Raises:
      ValueError: an object that appears under two names would get two different values; the message names both leaves.
    """
    values = {
        name: [new.get(leaf, KEPT) for leaf in leaf_names([leaf.path for leaf in flat.leaves])]
        for name, flat in flats.items()
    }
    _share(flats, values, is_same)
    state = Rebuild({id(owned.owner) for flat in flats.values() for owned in flat.owned if owned.in_place})
    replacements: dict[str, Any] = {}
    for name, flat in flats.items():
        if any(value is not KEPT for value in values[name]):
            state.start([leaf.value for leaf in flat.leaves], values[name])
            replacements[name] = flat.builder.build(state)
            state.require(len(flat.leaves))
    return replacements, state.changes


def _share(flats: Mapping[str, Flat], values: dict[str, list[Any]], is_same: IsSame) -> None:
    """Makes sure that an object that appears under several names gets the same new value under each."""
    found: dict[tuple[int, Hashable], list[tuple[str, Owned]]] = {}
    for name, flat in flats.items():
        for owned in flat.owned:
            found.setdefault((id(owned.owner), owned.key), []).append((name, owned))
    for places in found.values():
        if len(places) > 1:
            for leaves in zip(*(range(owned.start, owned.stop) for _, owned in places), strict=True):
                _share_leaf(
                    flats, values, [(name, index) for (name, _), index in zip(places, leaves, strict=True)], is_same
                )


def _share_leaf(
    flats: Mapping[str, Flat], values: dict[str, list[Any]], places: list[tuple[str, int]], is_same: IsSame
) -> None:
    given = [(name, index) for name, index in places if values[name][index] is not KEPT]
    if not given:
        return
    first_name, first_index = given[0]
    value = values[first_name][first_index]
    for name, index in given[1:]:
        if not is_same(value, values[name][index]):
            raise ValueError(
                f"{flats[first_name].leaves[first_index].name} and {flats[name].leaves[index].name} are one object in this program "
                "and can have one value only, but the checkpoint holds two different ones. An nnx.state(model) shares the Variables "
                "of the model. Give the Checkpoint a copy under one of the names: nnx.clone(model), or jax.tree.map(lambda x: x, "
                "nnx.state(model))."
            )
    for name, index in places:
        values[name][index] = value
