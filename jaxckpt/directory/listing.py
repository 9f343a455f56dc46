"""The checkpoints of a manager, as paths for its callers. Every process of a job gets the same answers."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxckpt import storage
from jaxckpt._lib.arguments import type_name
from jaxckpt.directory import foreign_runs, paths, saved_infos
from jaxckpt.directory.ask import ask
from jaxckpt.directory.policies import CheckpointInfo
from jaxckpt.directory.series import CheckpointSeries
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage import stores

_logger = logging.getLogger("jaxckpt")
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

    def start(self) -> tuple[str | None, str | None]:
        """Removes leftovers and registers what a crash left unregistered. Call it on the process that does the file access.

        Returns:
          Two warnings, each None if there is nothing to warn of: the clock is behind; there are checkpoints of another program.
        """
        try:
            behind, foreign = self._series.start(self.root())
        except OSError as error:
            # Not an error: a program that only reads may lack the right to write. A later call that has to write raises its own error.
            _logger.warning("Could not remove leftovers and register checkpoints in %s: %s", self._directory, error)
            return None, None
        late = (
            f"This machine's clock is {behind:g} s behind the time at which a checkpoint in {self._directory} was last preserved. "
            "The manager has registered nothing. Once it saves, it will never delete the checkpoints that are there now."
        )
        return late if behind else None, None if foreign is None else str(foreign)

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

    def saved(self, options: CheckpointOptions | None) -> tuple[list[CheckpointInfo], list[int]]:
        """Returns what policies are told about the listed checkpoints, oldest first, and the numbers of all that are on disk.

        Args:
          options: options whose `experimental_io_device` tells which process looks; without one, process 0 does.

        Raises:
          OSError: the directory cannot be read.
        """

        def look() -> tuple[list[Any], list[int]]:
            root = self.root()
            if not stores.exists(root):
                return [], []
            return [saved_infos.as_json(info) for info in self._series.infos(root).values()], self._series.numbers(root)

        infos, numbers = ask("CheckpointManager.save", self._directory, options, look, always=True)
        return [saved_infos.from_json(info) for info in infos], list(numbers)

    def best(self, options: CheckpointOptions | None, metric: str, mode: str) -> str | None:
        """Returns the path of the checkpoint with the best value of a metric; None if no checkpoint has it.

        Args:
          options: options whose `experimental_io_device` tells which process looks.
          metric: name of the metric.
          mode: "min" or "max".

        Raises:
          TypeError: `metric` is not text.
          ValueError: `mode` is neither.
          OSError: the directory cannot be read.
        """
        if not isinstance(metric, str):
            raise TypeError(f"metric must be the name of a metric, got {type_name(metric)}.")
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", got {mode!r}.')
        sign = 1 if mode == "max" else -1

        def look() -> str | None:
            found = self._series.best(self.root(), metric, sign)
            return None if found is None else self._paths([found])[0]

        return self._ask("best_checkpoint", options, look)

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
