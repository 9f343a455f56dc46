"""This process's part of arrays that lie on the devices of several processes."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxckpt._lib.boxes import Box
from jaxckpt.job.plan import HOST_OWNER, Layout, Plan, Share
from jaxckpt.leaf_kinds.dtypes import is_key_dtype
from jaxckpt.storage.item.content import ArrayContent, Piece


class GlobalArrays:
    """Makes the `GlobalArray`s of one snapshot. What depends on sharding, shape and dtype alone is worked out once for all arrays."""

    def __init__(self, plan: Plan) -> None:
        """Creates the object.

        Args:
          plan: tells which process owns which shard.
        """
        self._plan = plan
        self._forms: dict[tuple[int, tuple[int, ...], Any], _Form] = {}

    def start(self, value: jax.Array) -> "GlobalArray":
        """Starts the transfer of this process's shards of an array.

        Args:
          value: an array that has shards on other processes.
        """
        sharding = value.sharding
        # Shardings are slow to hash. Each form keeps its sharding alive, so that another one cannot get its id.
        key = id(sharding), value.shape, value.dtype
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = _form(value, sharding, self._plan)
        share = self._plan.assign(form.layout)
        shards: dict[Box, Any] = {}
        for position, box in form.owned if form.owned is not None else _owned(form.places, share.mine()):
            data = value.addressable_data(position)
            shards[box] = data = data if form.key_impl is None else jax.random.key_data(data)
            if jax.default_backend() != "cpu":
                data.copy_to_host_async()
        return GlobalArray(form, share, shards)


class _Form(NamedTuple):
    """What arrays of the same sharding, shape and dtype have in common.

    Attributes:
      sharding: their sharding.
      key_impl: PRNG implementation, if they are arrays of PRNG keys; otherwise None.
      shape: shape of what is stored: of PRNG keys, the key data.
      dtype: dtype of what is stored.
      layout: their layout.
      places: the boxes of this process's shards, in the order of the shards.
      owned: positions and boxes of the shards that this process owns; None if that differs from array to array.
    """

    sharding: Any
    key_impl: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout
    places: Sequence[Box]
    owned: tuple[tuple[int, Box], ...] | None


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
    if all(len(layout.holders[position]) == 1 for position in plan.held(layout)):
        # Without replicas on other processes, this process owns what it holds.
        owned = tuple(_owned(places, [layout.boxes[position] for position in plan.held(layout)]))
    return _Form(sharding, key_impl, (*value.shape, *trailing), np.dtype(dtype), layout, places, owned)


def _owned(places: Sequence[Box], boxes: Iterable[Box]) -> Iterator[tuple[int, Box]]:
    """Yields the position of a shard for each of the boxes, and the box.

    Args:
      places: the boxes of this process's shards. Some shards may have the same box.
      boxes: the boxes that are wanted.
    """
    wanted = set(boxes)
    for position, box in enumerate(places) if wanted else ():
        if box in wanted:
            wanted.discard(box)
            yield position, box


class GlobalArray:
    """The shards of one array that this process owns. Their transfer to host memory has been started."""

    __slots__ = ("_form", "_shards", "_share")

    def __init__(self, form: _Form, share: Share, shards: dict[Box, Any]) -> None:
        self._form, self._share, self._shards = form, share, shards

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is stored."""
        return self._form.dtype

    def content(self) -> ArrayContent:
        """Returns the description of the array, with the pieces that this process owns. Waits for their transfer.

        The description calls the array a numpy array: without a target, Orbax restores a jax.Array only on the very devices that saved
        it. For PRNG keys Orbax only has the type jax.Array, so their description names a device that every job has.
        """
        form = self._form
        pieces = tuple([Piece(box.start, box.shape, np.asarray(data)) for box, data in self._shards.items()])
        is_key = form.key_impl is not None
        return ArrayContent(
            "jax.Array" if is_key else "np.ndarray",
            form.shape,
            form.dtype,
            form.layout.grid,
            pieces,
            None if is_key else "jax",
            form.key_impl,
            _first_device() if is_key else form.sharding,
            self._share,
        )


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


def host_content(content: ArrayContent, plan: Plan) -> ArrayContent:
    """Returns the content of a host leaf, with the same description on every process. Only process 0 has the data.

    Args:
      content: the content that this process has.
      plan: tells which process owns which piece.
    """
    sharding = _first_device() if content.value_type == "jax.Array" else None
    pieces: tuple[Piece, ...] = ()
    if plan.process == HOST_OWNER:
        pieces = (Piece((0,) * len(content.shape), content.shape, _whole(content)),)
    return content._replace(
        write_shape=content.shape,
        pieces=pieces,
        sharding=sharding,
        share=plan.assign(plan.host_layout(content.shape)),
    )


def _whole(content: ArrayContent) -> np.ndarray:
    if len(content.pieces) == 1:
        return content.pieces[0].fetch(content.pieces[0].start, content.pieces[0].shape)
    array = np.empty(content.shape, content.dtype)
    for piece in content.pieces:
        box = tuple(slice(start, start + extent) for start, extent in zip(piece.start, piece.shape, strict=True))
        array[box] = piece.fetch(piece.start, piece.shape)
    return array


@functools.cache
def _key_data(dtype: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape and the dtype of the key data of one PRNG key."""
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
    return data.shape, np.dtype(data.dtype)


@functools.cache
def _first_device() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
