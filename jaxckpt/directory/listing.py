"""The checkpoints of a manager as its callers are told: by path, and the same on every process of a job."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from jaxckpt import storage
from jaxckpt.directory import foreign_runs, paths
from jaxckpt.directory.ask import ask
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage import stores

_Result = TypeVar("_Result")
# How often a directory is looked at again if everything in it is deleted between the looks.
_LOOKS = 20


class Listing:
    """The content of a manager's directory. Every call looks at the directory anew."""

    def __init__(self, series: CheckpointSeries, directory: str) -> None:
        """Looks at nothing yet.

        Args:
          series: the manager's checkpoints.
          directory: where they are, as it was given.
        """
        self._series = series
        self._directory = directory

    def root(self) -> str:
        """Returns the absolute path of the directory."""
        return paths.absolute(self._directory)

    def checkpoints(self, options: CheckpointOptions | None) -> list[str]:
        """Returns the paths of the listed checkpoints, oldest first.

        Args:
          options: `experimental_io_device` says which process looks.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._ask("checkpoints", options, lambda: self._paths(self._series.listed(self.root())))

    def latest(self, options: CheckpointOptions | None) -> str | None:
        """Returns the path of the newest checkpoint that exists; None if there is none.

        Args:
          options: `experimental_io_device` says which process looks.

        Raises:
          OSError: the directory cannot be read.
        """

        def latest() -> str | None:
            before: list[str] | None = None
            # Other programs may save and delete between the two looks; there is a newer one then.
            for _ in range(_LOOKS):
                candidates = self.newest_first()
                found = next((path for path in candidates if storage.is_checkpoint(path)), None)
                if found is not None or candidates == before:
                    return found
                before = candidates
            return None

        return self._ask("latest_checkpoint", options, latest)

    def newest_first(self) -> list[str]:
        """Returns the paths of what could be restored, best first, for the process that does the file access.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._paths(self._series.newest_first(self.root()))

    def require_nothing_else(self, options: CheckpointOptions | None) -> str | None:
        """Looks for another program's checkpoints where there are none of this manager.

        Args:
          options: `experimental_io_device` says which process looks.

        Returns:
          A sentence that names them and says how to go on from them; None if there are none.

        Raises:
          CheckpointError: they are TensorFlow's, beside which nothing is saved.
          OSError: the directory cannot be read.
        """

        def look() -> str | None:
            found = self._series.foreign(self.root())
            if found is not None and found.is_tensorflow:
                raise foreign_runs.tensorflow_error(found.directory, found.names)
            return None if found is None else str(found)

        return ask("restore_or_initialize", self._directory, options, look, always=True)

    def _ask(self, what: str, options: CheckpointOptions | None, work: Callable[[], _Result]) -> _Result:
        return ask(f"CheckpointManager.{what}", self._directory, options, work)

    def _paths(self, names: Iterable[str]) -> list[str]:
        directory = paths.spelled(self._directory)
        return [stores.join(directory, name) for name in names]
