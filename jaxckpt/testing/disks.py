"""Private disks: directories, or small file systems that can run full, of which each process of a job sees one at the same path."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxckpt.testing import namespaces

_START_SECS = 30


class Disk:
    """What one process of a job sees at the private path of the job. Outlives the job, so that another job can be given it.

    Removed when it is closed, or not used any more; a directory of the caller's is not removed.

    Attributes:
      path: where this process can read and write what is on the disk.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, size: str | int | None = None) -> None:
        """Makes a disk.

        Args:
          directory: directory to use, made if it does not exist; None makes a temporary one.
          size: makes a file system (a tmpfs) of this size, such as ``"16M"`` or a number of bytes, for tests of full disks.

        Raises:
          ValueError: both are given.
          OSError: the system does not permit to mount a file system.
        """
        if directory is not None and size is not None:
            raise ValueError("a Disk has either a directory or a size, not both: a disk of limited size is a tmpfs.")
        self._source = os.path.abspath(os.fspath(directory or tempfile.mkdtemp(prefix="jaxckpt-disk-")))
        os.makedirs(self._source, exist_ok=True)
        self._holder: subprocess.Popen[str] | None = None
        self._close: Callable[[], object] = weakref.finalize(
            self, _remove, None, None if directory is not None else self._source
        )
        self.path = Path(self._source)
        if size is not None:
            self._holder = _start_holder(self._source, size)
            self._close = weakref.finalize(self, _remove, self._holder, self._source)
            self.path = Path(f"/proc/{self._holder.pid}/root{self._source}")

    @property
    def mount(self) -> tuple[str, int | None]:
        """The directory, and the process in whose mount namespace it is: what a process needs to see this disk."""
        return self._source, None if self._holder is None else self._holder.pid

    def files(self) -> list[str]:
        """Returns the paths of all files, relative to the disk, sorted."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir())

    def close(self) -> None:
        """Removes the disk and what is on it. A directory that the caller gave stays."""
        self._close()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Disk({str(self.path)!r})"


def _start_holder(directory: str, size: str | int) -> subprocess.Popen[str]:
    """Starts the process that holds a tmpfs: it is gone with that process, whatever happens to this one."""
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", namespaces.__file__, directory, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    answer = holder.stdout.readline().strip()  # Ends when the process does.
    if answer != "ready":
        _remove(holder, directory)
        raise OSError(f"cannot mount a private file system of size {size}: {answer or 'its process ended'}")
    return holder


def _remove(holder: subprocess.Popen[str] | None, directory: str | None) -> None:
    if holder is not None:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.kill()
        holder.wait(_START_SECS)
        holder.stdin.close()
        holder.stdout.close()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def private_disks_problem() -> str | None:
    """Returns why processes cannot have private disks on this machine; None if they can."""
    if sys.platform != "linux":
        return f"private disks need the mount namespaces of Linux; this is {sys.platform}"
    try:
        Disk(size="1M").close()
    except OSError as error:
        return f"mount namespaces are not permitted (they need root, or user namespaces): {error}"
    return None


def disks_for(
    processes: int,
    private: str | None,
    size: str | int | None,
    disks: Sequence[Disk | str | os.PathLike[str]] | None,
) -> list[Disk] | None:
    """Returns the disks of a job, one a process; None for a job without private disks.

    Raises:
      ValueError: the arguments contradict each other.
      OSError: the system does not permit private disks.
    """
    if private is None:
        if size is not None or disks is not None:
            raise ValueError("private_size and disks need private: the path at which each process sees its own disk.")
        return None
    if (problem := private_disks_problem()) is not None:
        raise OSError(f"private={private!r}: {problem}. Skip such tests with @testing.requires_private_disks.")
    if disks is None:
        return [Disk(size=size) for _ in range(processes)]
    if size is not None:
        raise ValueError("give private_size or disks: the size of a disk is set when it is made, Disk(size=...).")
    if len(disks) != processes:
        raise ValueError(f"disks: {len(disks)} given for {processes} processes; each process needs one.")
    return [disk if isinstance(disk, Disk) else Disk(disk) for disk in disks]
