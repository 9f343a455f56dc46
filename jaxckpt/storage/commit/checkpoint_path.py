"""The checked path of a checkpoint. Every function that writes, commits, registers or deletes a checkpoint takes one of these, not text."""

import os
from dataclasses import dataclass

from jaxckpt.storage import stores
from jaxckpt.storage.stores import protected


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """The path of a checkpoint: one name in one directory, the same place whatever the working directory is.

    It cannot be the empty path, ``.``, ``..``, ``/``, a whole bucket, the working directory, the home directory, or a directory above
    these two.

    Attributes:
      directory: absolute path of the directory, or the address of one in a bucket.
      name: of the checkpoint in it.
    """

    directory: str
    name: str

    def __post_init__(self) -> None:
        """Checks the path.

        Raises:
          ValueError: it is relative, names no bucket, has no name of its own, or is one of the directories that no checkpoint may take
            the place of.
        """
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            raise ValueError(f"{self}: the path of a checkpoint ends in a name, got {self.name!r}.")
        # The slash: "gs://bucket" is taken apart into "gs:/" and "bucket".
        directory = f"{self.directory}/"
        if not stores.is_local(directory):
            stores.store_of(directory).check_address(directory, "path")
            return
        if not os.path.isabs(self.directory):
            raise ValueError(f"{self}: the path of a checkpoint must be absolute here.")
        if (what := _protected(str(self))) is not None:
            raise ValueError(
                f"{self}: a checkpoint cannot take the place of {what}. Give the name of a checkpoint, such as "
                f"{os.path.join(str(self), 'ckpt')!r}."
            )

    @classmethod
    def of(cls, path: str) -> "CheckpointPath":
        """Returns the checked path for the text of an absolute path.

        Raises:
          ValueError: no checkpoint may be there; see the class.
        """
        directory, _, name = path.rpartition("/")
        return cls(directory if directory or not path.startswith("/") else "/", name)

    def __str__(self) -> str:
        return os.path.join(self.directory, self.name)


def _protected(path: str) -> str | None:
    """Says in words which directory, that must stay, is at `path`; None if there is no such one."""
    try:
        there = os.lstat(path)
    except OSError:
        # Nothing is there, so that nothing can be lost.
        return None
    return protected.directories().get((there.st_dev, there.st_ino))
