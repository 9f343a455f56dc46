"""Private disks: each process of a job sees another directory, or small file system that can run full, at the same path."""

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
    """The private disk of one process: the content of the job's private path, as that process sees it.

    A disk outlives its job, and can be given to another job. It is removed when it is closed or garbage-collected. A directory of the
    caller is never removed.

    Attributes:
      path: where this process can read and write the content of the disk.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, size: str | int | None = None) -> None:
        """Makes a disk.

        Args:
          directory: the directory to use, which is made if it does not exist; None for a temporary one.
          size: size of a new file system (a tmpfs) for the disk, such as ``"16M"`` or a number of bytes, for tests of full disks; None
            to use a directory without limit.

        Raises:
          ValueError: both `directory` and `size` are given.
          OSError: the system does not permit mounting a file system.
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
        """The directory, and the id of the process in whose mount namespace it exists (None: every process sees it)."""
        return self._source, None if self._holder is None else self._holder.pid

    def files(self) -> list[str]:
        """Returns the paths of all files, relative to the disk, sorted."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir())

    def close(self) -> None:
        """Removes the disk and its content. A directory that the caller gave stays."""
        self._close()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Disk({str(self.path)!r})"


def _start_holder(directory: str, size: str | int) -> subprocess.Popen[str]:
    """Starts a process that holds a tmpfs, so that the tmpfs vanishes with that process, even if this one is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", namespaces.__file__, directory, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    # This read ends at the latest when the process does.
    answer = holder.stdout.readline().strip()
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
    """Returns the disks of a job, one for each process; None for a job without private disks.

    Args:
      processes: number of processes.
      private: path at which each process sees its own disk; None for a job without private disks.
      size: size of each new disk; None for disks without limit.
      disks: the disks to use; None to make new ones.

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
