"""Cuts large arrays into tiles along several axes, so that a process of another sharding reads little besides its own part. Pure.

An array that is saved by rows may be restored by columns. If a chunk were as wide as the array, every process would have to read all of it.
"""

import math

# Smaller arrays are not cut: what a process reads in vain costs less than more chunks.
TILED_BYTES = 64 << 20
# Each of the two longest axes is cut into so many parts if possible: then processes that have a half, a quarter or an eighth of it read
# whole chunks.
_PARTS = 8
# These cuts make no tile smaller than this, in bytes.
_LEAST_BYTES = 512 << 10
# Tiles larger than this are cut further, so that more processes find whole chunks.
_MOST_BYTES = 4 << 20
# A tile is copied in runs that are contiguous in the array. Shorter ones would cost more than they save.
_RUN_BYTES = 256
# The tiles at the end of an axis may reach beyond the array by this part of the axis.
_WASTE = 128


def tile(shape: tuple[int, ...], write_shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Returns the largest chunk that an array should have. Chunks of this shape never reach into a second piece.

    Args:
      shape: shape of the array.
      write_shape: shape of the pieces that tile the array.
      itemsize: size of one element in bytes.

    Returns:
      `write_shape`, with some extents shortened if the array is large. No extent is less than 1.
    """
    extents = [max(1, extent) for extent in write_shape]
    if math.prod(shape) * itemsize < TILED_BYTES:
        return tuple(extents)
    pieces = tuple(extents)
    longest = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    for axis in longest[:2]:
        parts = _PARTS
        while parts > 1:
            cut = [*extents[:axis], _cut(shape[axis], pieces[axis], parts), *extents[axis + 1 :]]
            if math.prod(cut) * itemsize >= _LEAST_BYTES and _run(cut, pieces) * itemsize >= _RUN_BYTES:
                extents = cut
                break
            parts //= 2
    while math.prod(extents) * itemsize > _MOST_BYTES:
        # The axis with the fewest parts comes first, and of two, the one whose parts are contiguous.
        for axis in sorted(range(len(shape)), key=lambda axis: shape[axis] // extents[axis]):
            cut = [*extents[:axis], _halved(shape[axis], pieces[axis], extents[axis]), *extents[axis + 1 :]]
            if cut != extents and _run(cut, pieces) * itemsize >= _RUN_BYTES:
                extents = cut
                break
        else:
            break
    return tuple(extents)


def _cut(whole: int, piece: int, parts: int) -> int:
    """Returns the extent of a tile along one axis.

    Args:
      whole: extent of the array.
      piece: extent of a piece, which the result divides unless the whole axis is one piece.
      parts: into how many parts the axis should be cut.
    """
    if piece * parts <= whole and whole % piece == 0 and (whole // piece) % parts == 0:
        return piece
    for count in (parts, parts // 2):
        if count > 1 and (count == parts or count > 2) and whole % count == 0:
            found = math.gcd(piece, whole // count)
            if found * 8 * parts >= whole:
                return found
    if piece < whole:
        least = -(-parts * piece // whole)
        return next((piece // count for count in range(least, 4 * least + 1) if piece % count == 0), piece)
    # Borders of processes are not borders of tiles then, so there are a few more tiles.
    count = min(range(parts, 2 * parts + 1), key=lambda count: (-(-whole // count) * count - whole, count))
    found = -(-whole // count)
    return found if _fits(whole, found) else piece


def _halved(whole: int, piece: int, extent: int) -> int:
    """Returns about half of the extent of a tile; the extent itself if it cannot be halved."""
    if extent % 2 == 0:
        return extent // 2
    half = -(-extent // 2)
    return half if piece == whole and extent > 1 and _fits(whole, half) else extent


def _fits(whole: int, extent: int) -> bool:
    return (-(-whole // extent) * extent - whole) * _WASTE <= whole


def _run(extents: list[int], pieces: tuple[int, ...]) -> int:
    """Returns the number of elements of a tile that lie one after the other in its piece."""
    run = 1
    for extent, piece in zip(reversed(extents), reversed(pieces), strict=True):
        run *= extent
        if extent < piece:
            break
    return run
