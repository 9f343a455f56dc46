"""Decodes very small arrays that lie in the index of a database, all that are alike in one step: a state may have thousands of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxckpt._lib import checksum
from jaxckpt._lib.boxes import Slices, part_of
from jaxckpt.storage.arrays.places import Places
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item import layout

# Arrays of at most so many bytes are very small,
_BYTES = 1 << 10
# and so many that are alike are worth the step.
_MANY = 16


def decoded(
    places: Places, requests: Sequence[tuple[str, Slices | None]], infos: Mapping[str, ArrayInfo]
) -> dict[int, np.ndarray]:
    """Returns very small arrays, or boxes of them, read-only, by the position of their request.

    The others must be read one by one. They include all that are damaged, so that an error names the first of them.

    Args:
      places: where the chunks are.
      requests: Orbax's name of an array, and the box, or None for the whole array.
      infos: metadata of the arrays, by Orbax's name. The own code can decode them, and every chunk must be there.
    """
    # Arrays with the same metadata share one object, which is faster to tell apart than to compare.
    alike: dict[int, list[int]] = {}
    for position, (name, _) in enumerate(requests):
        alike.setdefault(id(infos[name]), []).append(position)
    found: dict[int, np.ndarray] = {}
    for positions in alike.values():
        info = infos[requests[positions[0]][0]]
        if len(positions) >= _MANY and _is_plain(info):
            arrays = _arrays(places, [requests[position][0] for position in positions], info)
            boxes = [requests[position][1] for position in positions]
            found.update(zip(positions, map(part_of, arrays, boxes), strict=False))
    return found


def _is_plain(info: ArrayInfo) -> bool:
    """Whether an array is very small, and stored as one chunk: its bytes and their checksum."""
    encoding = info.encoding
    return (
        info.only_key is not None and 0 < info.nbytes <= _BYTES and encoding.is_checked and not encoding.is_compressed
    )


def _arrays(places: Places, names: Sequence[str], info: ArrayInfo) -> Sequence[np.ndarray]:
    """Returns arrays that are alike, in order; none if one of them is not in the index, or damaged."""
    key, nbytes = info.only_key or "", info.nbytes
    values = places.many([path + key for path in layout.array_paths(names)])
    if values is None:
        return ()
    stored = [value for value in values if type(value) is bytes and len(value) == nbytes + checksum.BYTES]
    if len(stored) < len(names) or not checksum.are_sealed(stored):
        return ()
    dtype, shape = info.dtype, info.shape
    count = nbytes // dtype.itemsize
    # Each is a view of its own value: of a block of all of them, one array that lives on would keep the whole.
    arrays = [np.frombuffer(value, dtype, count) for value in stored]
    return arrays if len(shape) == 1 else [array.reshape(shape) for array in arrays]
