"""This process's part of arrays that lie on the devices of several processes."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxckpt._lib.boxes import Box, Slices, part_of, slices_of
from jaxckpt.job.layouts import Layout
from jaxckpt.job.plan import Plan, Share
from jaxckpt.leaf_kinds.contents import require_storable
from jaxckpt.leaf_kinds.dtypes import is_key_dtype
from jaxckpt.leaf_kinds.jax_arrays import require_data
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.storage.item.content import ArrayContent, Piece
from jaxckpt.tree.flatten import Leaf

_new = tuple.__new__


class _Part(NamedTuple):
    """A box that this process owns.

    Attributes:
      box: the box.
      position: position of a shard of this process that contains it.
      inside: the place of the box in the shard; None if it is the whole shard.
    """

    box: Box
    position: int
    inside: Slices | None


class _Form(NamedTuple):
    """What arrays of the same sharding, shape and dtype have in common.

    Attributes:
      sharding: their sharding.
      key_impl: PRNG implementation, if they are arrays of PRNG keys; otherwise None.
      shape: shape of what is stored: of PRNG keys, the key data.
      dtype: dtype of what is stored.
      layout: their layout.
      places: the boxes of this process's shards, in the order of the shards.
      owned: what this process owns; None if that differs from array to array.
    """

    sharding: Any
    key_impl: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout
    places: Sequence[Box]
    owned: Sequence[_Part] | None


class Described(NamedTuple):
    """What is known of an array that has shards on several processes, without its data.

    Attributes:
      form: what it has in common with others.
      share: who owns which part of it.
      parts: what this process owns.
      bare: the content without its pieces.
      is_plain: whether what this process owns are whole shards, whose data is stored as it is.
    """

    form: _Form
    share: Share
    parts: Sequence[_Part]
    bare: ArrayContent
    is_plain: bool


# For each box that this process owns: the box, its shard, and its place in the shard.
Started = list[tuple[Box, Any, Slices | None]]


def described(leaves: Iterable[Leaf], plan: Plan) -> Sequence[Described | None]:
    """Returns a description for each leaf; None for those that do not have shards on several processes.

    It depends on the structure alone. So it is made once for a plan that is kept, and what depends on sharding, shape and dtype is worked
    out once for all arrays that have the same ones.

    Args:
      leaves: all leaves. Every process has the same ones, in the same order.
      plan: the plan of the save.

    Raises:
      TypeError: an array has a dtype that cannot be stored. The message names the leaf.
      ValueError: an array was deleted (donated). The message names the leaf.
    """
    found: Sequence[Described | None] | None = None if plan.kept is None else plan.kept.get("arrays")
    if found is None:
        found = _described(leaves, plan)
        if plan.kept is not None:
            plan.kept["arrays"] = found
    return found


def _described(leaves: Iterable[Leaf], plan: Plan) -> Sequence[Described | None]:
    # Shardings are slow to hash. Each form keeps its sharding alive, so that another one cannot get its id.
    by_id: dict[tuple[int, tuple[int, ...], Any], _Form] = {}
    forms: list[_Form | None] = []
    for leaf in leaves:
        value = leaf.value
        if not kind_of(value).is_global(leaf):
            forms.append(None)
            continue
        sharding = value.sharding
        key = id(sharding), value.shape, value.dtype
        form = by_id.get(key)
        if form is None:
            form = by_id[key] = _form(value, sharding, plan)
            require_storable(leaf, form.dtype)
        forms.append(form)
    shares = iter(plan.divide([(form.layout, form.dtype.itemsize) for form in forms if form is not None]))
    return [None if form is None else _divided(form, next(shares)) for form in forms]


def _divided(form: _Form, share: Share) -> Described:
    parts = form.owned if form.owned is not None else tuple(_owned(form.places, share.mine()))
    is_plain = form.key_impl is None and all(part.inside is None for part in parts)
    return Described(form, share, parts, _bare(form, share), is_plain)


def _bare(form: _Form, share: Share) -> ArrayContent:
    """Returns the content of an array without its pieces.

    It calls the array a numpy array: without a target, Orbax restores a jax.Array only on the very devices that saved it. For PRNG keys
    Orbax only has the type jax.Array, so their content names a device that every job has.

    Args:
      form: the form of the array.
      share: who owns which part of it.
    """
    if form.key_impl is None:
        return ArrayContent("np.ndarray", form.shape, form.dtype, share.grid, (), "jax", None, form.sharding, share)
    return ArrayContent("jax.Array", form.shape, form.dtype, share.grid, (), None, form.key_impl, first_device(), share)


def content_at_once(leaf: Leaf, array: Described, *, on_cpu: bool) -> ArrayContent:
    """Returns the content of an array, as `start` and `content` do, in one step. Called for thousands of leaves.

    Args:
      leaf: the leaf.
      array: its description.
      on_cpu: as for `start`.

    Raises:
      ValueError: the array was deleted (donated). The message names the leaf.
    """
    value = leaf.value
    if value.is_deleted():
        require_data(leaf)
    if not array.parts:
        return array.bare
    if not array.is_plain:
        return content(array, start(leaf, array, on_cpu=on_cpu))
    pieces = [_new(Piece, (*box, np.asarray(value.addressable_data(shard)))) for box, shard, _ in array.parts]
    return array.bare.with_pieces(tuple(pieces), array.bare.write_shape)


def start(leaf: Leaf, array: Described, *, on_cpu: bool) -> Started:
    """Starts the transfer of the parts that this process owns to host memory.

    Args:
      leaf: the leaf.
      array: its description.
      on_cpu: whether JAX runs on the CPU. Then there is nothing to transfer.

    Raises:
      ValueError: the array was deleted (donated). The message names the leaf.
    """
    value, form = leaf.value, array.form
    require_data(leaf)
    shards: dict[int, Any] = {}
    started: Started = []
    for box, position, inside in array.parts:
        data = shards.get(position)
        if data is None:
            data = value.addressable_data(position)
            data = shards[position] = data if form.key_impl is None else jax.random.key_data(data)
        if not on_cpu:
            if inside is not None and data.sharding.memory_kind in (None, "device"):
                # Only this part travels to the host.
                data = jax.lax.slice(data, [each.start for each in inside], [each.stop for each in inside])
                inside = None
            data.copy_to_host_async()
        started.append((box, data, inside))
    return started


def content(array: Described, started: Started) -> ArrayContent:
    """Returns the content of an array, with the pieces that this process owns. Waits for their transfer.

    Args:
      array: the description.
      started: as `start` returned it.
    """
    pieces = tuple([Piece(box.start, box.shape, part_of(np.asarray(data), inside)) for box, data, inside in started])
    return array.bare.with_pieces(pieces, array.bare.write_shape)


def _form(value: jax.Array, sharding: Any, plan: Plan) -> _Form:
    key_impl: str | None = None
    trailing: tuple[int, ...] = ()
    dtype = value.dtype
    if is_key_dtype(value.dtype):
        key_impl = str(jax.random.key_impl(value))
        trailing, dtype = _key_data(value.dtype)
    layout = plan.layout(sharding, value.shape, trailing)
    places = plan.places(layout, lambda: _places(value, trailing))
    owned = None
    if layout.has_no_replicas:
        # This process owns what it holds.
        held = [box for box, (holder,) in zip(layout.boxes, layout.holders, strict=True) if holder == plan.process]
        owned = tuple(_owned(places, held))
    return _Form(sharding, key_impl, (*value.shape, *trailing), np.dtype(dtype), layout, places, owned)


def _owned(places: Sequence[Box], boxes: Sequence[Box]) -> Iterator[_Part]:
    """Yields where the boxes that this process owns are.

    Args:
      places: the boxes of this process's shards. Several shards may have the same box.
      boxes: the boxes that it owns; each is a shard, or a part of one.
    """
    positions: dict[Box, int] = {}
    for position, place in enumerate(places) if boxes else ():
        positions.setdefault(place, position)
    for box in boxes:
        found = positions.get(box)
        if found is not None:
            yield _Part(box, found, None)
            continue
        place = next(place for place in positions if _contains(place, box))
        start = [first - begin for first, begin in zip(box.start, place.start, strict=True)]
        yield _Part(box, positions[place], slices_of(start, box.shape))


def _places(value: jax.Array, trailing: tuple[int, ...]) -> list[Box]:
    """Returns the boxes of this process's shards, in the order of the shards.

    Args:
      value: the array.
      trailing: the extra axes of the key data, if `value` is an array of PRNG keys.
    """
    places = []
    for shard in value.addressable_shards:
        # The index of a shard of PRNG keys refers to the key data, which has one more axis.
        index = shard.index[: value.ndim]
        start = tuple(part.indices(extent)[0] for part, extent in zip(index, value.shape, strict=True))
        places.append(Box((*start, *(0 for _ in trailing)), (*shard.data.shape, *trailing)))
    return places


def _contains(whole: Box, part: Box) -> bool:
    return all(
        first <= start and start + extent <= first + size
        for first, size, start, extent in zip(whole.start, whole.shape, part.start, part.shape, strict=True)
    )


@functools.cache
def _key_data(dtype: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape and the dtype of the key data of one PRNG key."""
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
    return data.shape, np.dtype(data.dtype)


@functools.cache
def first_device() -> Any:
    """Returns a sharding that every job has. It stands for one in descriptions of values that Orbax takes for a jax.Array."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
