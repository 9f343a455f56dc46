"""Tiles: the parts of stored arrays that are read as a unit if several processes want them. Every process computes the same ones. Pure."""

import itertools
import math
from collections.abc import Iterator

from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo

# A tile consists of whole chunks. Small chunks are put together until a tile has so many bytes.
_TILE_BYTES = 256 << 10
# Most bytes of a part that a process asks for at once.
PART_BYTES = 16 << 20

Indices = tuple[int, ...]


def tile_of(info: ArrayInfo) -> Indices:
    """Returns the extents of the tiles of an array. Those at the edge may be smaller.

    Args:
      info: description of the stored array.
    """
    shape, itemsize = info.shape, info.dtype.itemsize
    if info.nbytes <= _TILE_BYTES or not shape:
        return shape
    chunks = info.chunk_shape or info.grid or (1,) * len(shape)
    tile = [min(max(1, chunk), extent) for chunk, extent in zip(chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        times = _TILE_BYTES // (math.prod(tile) * itemsize)
        if times <= 1:
            break
        tile[axis] = min(shape[axis], tile[axis] * times)
    return tuple(tile)


def tile_at(start: Indices, tile: Indices) -> Indices:
    """Returns the number along each axis of the tile that holds an element.

    Args:
      start: index of the element.
      tile: extents of the tiles.
    """
    return tuple([first // max(1, extent) for first, extent in zip(start, tile, strict=True)])


def box_of(number: Indices, tile: Indices, shape: Indices) -> tuple[Indices, Indices]:
    """Returns first index and extents of a tile.

    Args:
      number: its number along each axis.
      tile: extents of the tiles.
      shape: shape of the array.
    """
    start = tuple([at * extent for at, extent in zip(number, tile, strict=True)])
    return start, tuple([min(extent, whole - first) for first, extent, whole in zip(start, tile, shape, strict=True)])


def parts_of(start: Indices, extents: Indices, info: ArrayInfo) -> Iterator[tuple[Indices, Indices, Indices]]:
    """Divides a box into parts, each of which lies in one tile and has at most `PART_BYTES`.

    Args:
      start: first index of the box along each axis of the array.
      extents: its extents.
      info: description of the stored array.

    Yields:
      For each part, in the order of the tiles: the number of the tile, the first index of the part, and its extents.
    """
    tile = tile_of(info)
    if tile == info.shape:
        whole = (0,) * len(tile)
        for first, shape in _limited(start, extents, info.dtype.itemsize):
            yield whole, first, shape
        return
    numbers = [
        range(first // cut, -(-(first + extent) // cut))
        for first, extent, cut in zip(start, extents, tile, strict=True)
    ]
    for number in itertools.product(*numbers):
        spans = [
            (max(first, at * cut), min(first + extent, (at + 1) * cut))
            for first, extent, at, cut in zip(start, extents, number, tile, strict=True)
        ]
        inside = tuple([low for low, _ in spans]), tuple([high - low for low, high in spans])
        for first, shape in _limited(*inside, info.dtype.itemsize):
            yield number, first, shape


def _limited(start: Indices, extents: Indices, itemsize: int) -> Iterator[tuple[Indices, Indices]]:
    """Divides a box into parts of at most `PART_BYTES`."""
    if math.prod(extents) * itemsize <= PART_BYTES:
        yield start, extents
        return
    steps = list(extents)
    for axis in range(len(steps)):
        rest = math.prod(steps[axis + 1 :]) * itemsize
        steps[axis] = max(1, min(steps[axis], PART_BYTES // rest))
        if steps[axis] * rest <= PART_BYTES and steps[axis] > 1:
            break
    ranges = [range(first, first + extent, step) for first, extent, step in zip(start, extents, steps, strict=True)]
    for begin in itertools.product(*ranges):
        yield (
            begin,
            tuple(
                [
                    min(step, first + extent - at)
                    for at, first, extent, step in zip(begin, start, extents, steps, strict=True)
                ]
            ),
        )
