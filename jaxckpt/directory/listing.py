"""The checkpoints of a manager, as paths for its callers. Every process of a job gets the same answers."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from jaxckpt import storage
from jaxckpt.directory import foreign_runs, paths
from jaxckpt.directory.ask import ask
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage import stores

_Result = TypeVar("_Result")
# How often a directory is looked at again if all its checkpoints have been deleted between two looks.
_LOOKS = 20


class Listing:
    """The content of a manager's directory. Every call looks at the directory anew."""

    def __init__(self, series: CheckpointSeries, directory: str) -> None:
        """Makes the listing, without looking at the directory yet.

        Args:
          series: the manager's checkpoints.
          directory: their directory, as the caller gave it.
        """
        self._series = series
        self._directory = directory

    def root(self) -> str:
        """Returns the absolute path of the directory."""
        return paths.absolute(self._directory)

    def checkpoints(self, options: CheckpointOptions | None) -> list[str]:
        """Returns the paths of the listed checkpoints, oldest first.

        Args:
          options: options whose `experimental_io_device` tells which process looks.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._ask("checkpoints", options, lambda: self._paths(self._series.listed(self.root())))

    def latest(self, options: CheckpointOptions | None) -> str | None:
        """Returns the path of the newest checkpoint that exists; None if there is none.

        Args:
          options: options whose `experimental_io_device` tells which process looks.

        Raises:
          OSError: the directory cannot be read.
        """

        def latest() -> str | None:
            before: list[str] | None = None
            # Other programs may save and delete between two looks. Then there is a newer checkpoint.
            for _ in range(_LOOKS):
                candidates = self.newest_first()
                found = next((path for path in candidates if storage.is_checkpoint(path)), None)
                if found is not None or candidates == before:
                    return found
                before = candidates
            return None

        return self._ask("latest_checkpoint", options, latest)

    def newest_first(self) -> list[str]:
        """Returns the paths of the candidates for a restore, best first. Call it on the process that does the file access.

        Raises:
          OSError: the directory cannot be read.
        """
        return self._paths(self._series.newest_first(self.root()))

    def require_nothing_else(self, options: CheckpointOptions | None) -> str | None:
        """Looks for another program's checkpoints if the directory does not have one of this manager.

        Args:
          options: options whose `experimental_io_device` tells which process looks.

        Returns:
          A text that names the other program's checkpoints and tells how to go on from them; None if there are none.

        Raises:
          CheckpointError: they are TensorFlow's. jaxckpt never saves beside those.
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
