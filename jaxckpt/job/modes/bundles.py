"""Bundles: very small stored arrays that every process wants travel whole, hundreds of them as one tile. Pure.

To name, find and copy a box of a few bytes costs much more than the bytes. So each process tells the positions of the very small arrays
that it wants. Those that all of them want are read once, in the order of the leaves, and every process cuts its boxes out of them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxckpt._lib.boxes import Slices, spans_of
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.wanted import BoxKey
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf

NAME = "\0bundle"
"""Stands for the name of the leaf in the key of a bundle. Its box is the number of the bundle, and the number of its bytes."""
# Arrays of at most so many bytes are very small.
_ARRAY_BYTES = 4 << 10
# A process that wants less than this part of an array asks for a box of it, unless the whole is tiny.
_PART = 16
_TINY_BYTES = 256
_BUNDLE_BYTES = 256 << 10
_NOT_THERE = "A process told about leaves that the checkpoint does not have."

Requests = Sequence[tuple[str, Slices | None]]


def very_small(requests: Requests, infos: Mapping[str, ArrayInfo]) -> list[bool]:
    """Returns, for each request, whether it asks for a very small array whole. It is the same for all requests for one array.

    Args:
      requests: Orbax's name of an array, and a box of it; None for the whole array.
      infos: descriptions of the arrays, by Orbax's name.
    """
    # Thousands of requests have few infos and boxes, which are the same objects, so each pair is looked at once.
    known: dict[tuple[int, int], bool] = {}
    found: list[bool] = []
    for name, box in requests:
        info = infos[name]
        key = id(info), id(box)
        answer = known.get(key)
        if answer is None:
            answer = known[key] = _is_very_small(box, info)
        found.append(answer)
    if all(found):
        return found
    in_part = {name for (name, _), answer in zip(requests, found, strict=True) if not answer}
    return [name not in in_part for name, _ in requests]


def _is_very_small(box: Slices | None, info: ArrayInfo) -> bool:
    nbytes = info.nbytes
    if not 0 < nbytes <= _ARRAY_BYTES:
        return False
    if box is None or nbytes <= _TINY_BYTES:
        return True
    wanted = math.prod([max(0, last - first) for first, last in spans_of(box, info.shape)]) * info.dtype.itemsize
    return wanted * _PART >= nbytes


def runs_of(positions: Iterable[int]) -> tuple[int, ...]:
    """Returns positions as runs: the first position of each run, and its length, in turn.

    Args:
      positions: the positions, in any order.
    """
    runs: list[int] = []
    for position in sorted(set(positions)):
        if runs and position == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [position, 1]
    return tuple(runs)


def positions_of(runs: Sequence[int], limit: int) -> list[int]:
    """Returns the positions of runs.

    Args:
      runs: as `runs_of` returns them. They may come from another process.
      limit: number of positions that there are.

    Raises:
      ProcessError: these are not runs of such positions.
    """
    found: list[int] = []
    # Runs do not touch each other: they would be one.
    end = -1
    for first, count in zip(runs[::2], runs[1::2], strict=False):
        if not (end < first < first + count <= limit):
            raise ProcessError(_NOT_THERE)
        end = first + count
        found += range(first, end)
    if len(runs) % 2:
        raise ProcessError(_NOT_THERE)
    return found


class Bundles:
    """The bundles of a group of leaves.

    Attributes:
      keys: the key of each bundle.
    """

    def __init__(self, positions: Sequence[int], leaves: Sequence[StoredLeaf], infos: Mapping[str, ArrayInfo]) -> None:
        """Divides very small arrays into bundles. Every process divides them in the same way.

        Args:
          positions: positions of the arrays, ascending.
          leaves: all leaves of the checkpoint.
          infos: descriptions of the arrays, by Orbax's name.
        """
        # For each bundle the names of its arrays; those that follow each other and are alike are together, with what they are.
        self._groups: list[list[tuple[ArrayInfo, list[str]]]] = []
        sizes: list[int] = []
        last: ArrayInfo | None = None
        nbytes = 0
        names: list[str] = []
        for position in positions:
            name = leaves[position].param_name
            info = infos[name]
            is_new = info is not last
            if is_new:
                last, nbytes = info, info.nbytes
            if not sizes or sizes[-1] + nbytes > _BUNDLE_BYTES:
                self._groups.append([])
                sizes.append(0)
                is_new = True
            if is_new:
                names = []
                self._groups[-1].append((info, names))
            names.append(name)
            sizes[-1] += nbytes
        self.keys: list[BoxKey] = [(NAME, (number,), (nbytes,)) for number, nbytes in enumerate(sizes)]

    def requests(self, number: int) -> list[tuple[str, Slices | None]]:
        """Returns the requests that read the arrays of a bundle.

        Args:
          number: number of the bundle.
        """
        return [(name, None) for _, names in self._groups[number] for name in names]

    def arrays(self, number: int, content: np.ndarray) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        """Yields the arrays of a bundle: names, and an array of the arrays of these names, which are alike. They are views.

        Args:
          number: number of the bundle.
          content: its bytes.
        """
        at = 0
        for info, names in self._groups[number]:
            nbytes = info.nbytes * len(names)
            yield names, content[at : at + nbytes].view(info.dtype).reshape(len(names), *info.shape)
            at += nbytes


def packed(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the bytes of arrays, one after the other.

    Args:
      arrays: the arrays of a bundle.
    """
    return np.frombuffer(b"".join([array.tobytes() for array in arrays]), np.uint8)


def cut(arrays: np.ndarray, box: Slices | None) -> np.ndarray:
    """Returns copies of one box of several arrays, one after the other.

    Args:
      arrays: very small arrays that are alike, along the first axis.
      box: the box; None for the whole arrays.
    """
    return arrays.copy() if box is None else arrays[(slice(None), *box)].copy(order="C")
