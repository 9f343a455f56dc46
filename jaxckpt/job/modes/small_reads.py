"""One read of one process in which very small arrays come first, in bundles; see `bundles`."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import bundles
from jaxckpt.job.modes.bundles import Bundles
from jaxckpt.job.modes.wanted import BoxKey
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf


class SmallFirst:
    """The requests of one read, and what comes in bundles.

    Attributes:
      runs: the very small arrays that this process wants, as `bundles.runs_of` returns them.
      rest: the other requests.
      keys: the bundles to take, in this order. Empty before `agree`.
    """

    def __init__(
        self,
        requests: Sequence[tuple[str, Slices | None]],
        infos: Mapping[str, ArrayInfo],
        positions: Mapping[str, int],
    ) -> None:
        """Divides the requests.

        Args:
          requests: for each read Orbax's name of the leaf, and the box, or None for the whole array.
          infos: descriptions of the arrays, by Orbax's name.
          positions: positions of all leaves in the tree, by Orbax's name.
        """
        self._requests = requests
        self._infos = infos
        self._is_small = bundles.very_small(requests, infos)
        self.rest: list[tuple[str, Slices | None]] = []
        # The requests for each very small array, by Orbax's name, and what has come for each request.
        self._askers: dict[str, list[int]] = {}
        for number, (request, small) in enumerate(zip(requests, self._is_small, strict=True)):
            if not small:
                self.rest.append(request)
            elif (askers := self._askers.get(request[0])) is None:
                self._askers[request[0]] = [number]
            else:
                askers.append(number)
        self.runs = bundles.runs_of([positions[name] for name in self._askers])
        self.keys: list[BoxKey] = []
        self._arrays: list[np.ndarray | None] = [None] * len(requests)

    def agree(self, runs: Sequence[int], leaves: Sequence[StoredLeaf]) -> list[tuple[str, Slices | None]]:
        """Notes which of the very small arrays come in bundles.

        Args:
          runs: those that all processes want.
          leaves: all leaves of the checkpoint.

        Returns:
          The requests for those that other processes do not want, which have to be read in another way.

        Raises:
          ProcessError: the center means arrays that this process does not want.
        """
        positions = bundles.positions_of(runs, len(leaves))
        # Most often all processes want the same ones.
        is_all = tuple(runs) == self.runs
        if not is_all and not set(positions) <= set(bundles.positions_of(self.runs, len(leaves))):
            raise ProcessError("The center sends very small arrays that this process does not want.")
        self._bundles = Bundles(positions, leaves, self._infos)
        self.keys = self._bundles.keys
        if is_all:
            return []
        names = {leaves[position].param_name for position in positions}
        return [
            request
            for request, small in zip(self._requests, self._is_small, strict=True)
            if small and request[0] not in names
        ]

    def take(self, contents: Sequence[np.ndarray]) -> None:
        """Takes all bundles.

        Args:
          contents: the bytes of each.
        """
        for number, content in enumerate(contents):
            self.take_one(number, content)

    def take_one(self, number: int, content: np.ndarray) -> None:
        """Takes a bundle.

        Args:
          number: its number.
          content: its bytes.
        """
        for names, arrays in self._bundles.arrays(number, content):
            askers = [self._askers[name] for name in names]
            # Arrays that are alike are most often wanted alike, so their boxes are cut all at once.
            wanted = [[self._requests[each][1] for each in row] for row in askers]
            if wanted.count(wanted[0]) == len(wanted):
                for column, box in enumerate(wanted[0]):
                    for row, part in zip(askers, _items(bundles.cut(arrays, box)), strict=True):
                        self._arrays[row[column]] = part
            else:
                for at, row in enumerate(askers):
                    for asker in row:
                        self._arrays[asker] = bundles.cut(arrays[at : at + 1], self._requests[asker][1])[0, ...]

    def all(self, rest: Sequence[np.ndarray], left: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the arrays of all requests.

        Args:
          rest: those of `rest`.
          left: those of the requests that `agree` returned.
        """
        others, alone = iter(rest), iter(left)
        return [
            array if array is not None else next(alone) if small else next(others)
            for array, small in zip(self._arrays, self._is_small, strict=True)
        ]


def _items(arrays: np.ndarray) -> Iterable[np.ndarray]:
    # The items of an array of one axis would be scalars. The ellipsis makes them arrays without axes.
    return arrays if arrays.ndim > 1 else [arrays[at, ...] for at in range(len(arrays))]
