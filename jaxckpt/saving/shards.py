"""This process's part of arrays that lie on the devices of several processes."""

import functools
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.boxes import Box, Slices, part_of, slices_of
from jaxckpt.job.plan import HOST_OWNER, Plan, Share
from jaxckpt.leaf_kinds.dtypes import is_key_dtype
from jaxckpt.storage.item.content import ArrayContent, Piece


class GlobalArray:
    """One array that has shards on several processes.

    Attributes:
      dtype: dtype of its elements; of PRNG keys, dtype of their data.
      layout: how it lies on the devices.
    """

    def __init__(self, value: jax.Array, plan: Plan) -> None:
        """Looks at the array, and copies nothing yet.

        Args:
          value: an array that has shards on other processes.
          plan: the plan of the save.
        """
        self._value: jax.Array | None = value
        self._sharding = value.sharding
        self._key_impl: str | None = None
        trailing: tuple[int, ...] = ()
        self.dtype = value.dtype
        if is_key_dtype(value.dtype):
            self._key_impl = str(jax.random.key_impl(value))
            trailing, self.dtype = _key_data(value.dtype)
        self._trailing = trailing
        self.layout = plan.layout(value.sharding, value.shape, trailing)
        self._share: Share | None = None
        # For each box that this process owns: a shard, and the place of the box in it; None if the box is the whole shard.
        self._shards: list[tuple[Box, Any, Slices | None]] = []

    def start(self, share: Share) -> None:
        """Starts the transfer of the parts that this process owns to host memory.

        Args:
          share: who owns which part of the array.
        """
        value, self._value, self._share = self._value, None, share
        assert value is not None
        wanted = share.mine()
        if not wanted:
            return
        on_cpu = jax.default_backend() == "cpu"
        shards: dict[Box, tuple[int, Any]] = {}
        for position, place in enumerate(share.plan.places(self.layout, lambda: _places(value, self._trailing))):
            shards.setdefault(place, (position, None))
        for box in wanted:
            place = box if box in shards else next(place for place in shards if _contains(place, box))
            position, data = shards[place]
            if data is None:
                data = value.addressable_data(position)
                data = data if self._key_impl is None else jax.random.key_data(data)
                shards[place] = position, data
            part = None
            if box != place:
                part = slices_of(
                    [first - start for first, start in zip(box.start, place.start, strict=True)], box.shape
                )
                if not on_cpu and data.sharding.memory_kind in (None, "device"):
                    # Only this part travels to the host.
                    data = jax.lax.slice(data, [each.start for each in part], [each.stop for each in part])
                    part = None
            if not on_cpu:
                data.copy_to_host_async()
            self._shards.append((box, data, part))

    def content(self) -> ArrayContent:
        """Returns the description of the array, with the pieces that this process owns. Waits for their transfer.

        The description calls the array a numpy array: without a target, Orbax restores a jax.Array only on the very devices that saved
        it. For PRNG keys Orbax only has the type jax.Array, so their description names a device that every job has.
        """
        assert self._share is not None
        pieces = tuple(Piece(box.start, box.shape, part_of(np.asarray(data), part)) for box, data, part in self._shards)
        is_key = self._key_impl is not None
        return ArrayContent(
            "jax.Array" if is_key else "np.ndarray",
            self.layout.shape,
            np.dtype(self.dtype),
            self._share.grid,
            pieces,
            None if is_key else "jax",
            self._key_impl,
            _first_device() if is_key else self._sharding,
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


def _contains(whole: Box, part: Box) -> bool:
    return all(
        first <= start and start + extent <= first + size
        for first, size, start, extent in zip(whole.start, whole.shape, part.start, part.shape, strict=True)
    )


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
        share=plan.host_share(content.shape),
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
