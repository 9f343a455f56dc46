"""The checked path of a checkpoint. Functions that write, commit, register or delete a checkpoint take such an object, not text."""

import os
from dataclasses import dataclass

from jaxckpt.storage import stores
from jaxckpt.storage.stores import protected


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """The path of a checkpoint: one name in one directory. It does not depend on the working directory.

    It cannot be the empty path, ``.``, ``..``, ``/``, a whole bucket, the working directory, the home directory, or a directory above
    these two.

    Attributes:
      directory: absolute path of the directory, or the address of one in a bucket.
      name: name of the checkpoint in the directory.
    """

    directory: str
    name: str

    def __post_init__(self) -> None:
        """Checks the path.

        Raises:
          ValueError: the path is relative, does not name a bucket, does not end in a name, or is one of the directories that a
            checkpoint cannot be.
        """
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            raise ValueError(f"{self}: the path of a checkpoint ends in a name, got {self.name!r}.")
        # With a slash, because `of` splits "gs://bucket" into "gs:/" and "bucket".
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

        Args:
          path: absolute path, or address in a bucket.

        Raises:
          ValueError: the path cannot be that of a checkpoint; see the class.
        """
        directory, _, name = path.rpartition("/")
        return cls(directory if directory or not path.startswith("/") else "/", name)

    def __str__(self) -> str:
        return os.path.join(self.directory, self.name)


def _protected(path: str) -> str | None:
    """Returns, in words, which protected directory is at `path`; None if it is not one. See `protected`."""
    try:
        there = os.lstat(path)
    except OSError:
        # Nothing exists at the path, so nothing can be lost.
        return None
    return protected.directories().get((there.st_dev, there.st_ino))
