"""The files of one checkpoint, which is whatever a stranger made of it: regular files inside of its directory, and nothing else.

The checkpoint itself may be reached by a link. A link inside of it must stay inside, with one exception: the cache of the Hugging Face
Hub, where every file of ``models--<name>/snapshots/<revision>/`` is a link into ``models--<name>/blobs/``.
"""

import errno
import os
import re
import stat
from typing import NamedTuple

from jaxckpt._lib.documents import DamagedError
from jaxckpt._lib.inner_path import checked_name
from jaxckpt.storage import stores
from jaxckpt.storage.stores import local

_HUB = re.compile(r"(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.*)?")


class Stored(NamedTuple):
    """What lies below a directory.

    Attributes:
      files: how many files.
      bytes: of all of them.
      largest: bytes of the largest one.
    """

    files: int
    bytes: int
    largest: int


class Inside:
    """Opens the files of a checkpoint. May be used by several threads.

    Attributes:
      directory: that names are relative to.
      is_local: it is a directory of the operating system, whose sizes are known.
    """

    def __init__(self, directory: str, top: str | None = None) -> None:
        """Looks at nothing yet.

        Args:
          directory: of the tree.
          top: of the checkpoint, where that is above.
        """
        self.directory = directory
        self.is_local = stores.is_local(directory)
        self._top = directory if top is None else top
        self._tops: tuple[str, ...] | None = None
        self._folders: set[str] = set()

    def path(self, name: str) -> str:
        """Returns the path of a file. Raises DamagedError: see `checked_name`."""
        return os.path.join(self.directory, checked_name(name))

    def open(self, name: str) -> int:
        """Opens a file of a local checkpoint, and returns its descriptor.

        Raises:
          DamagedError: its name, or a link, leads out of the checkpoint.
          OSError: it cannot be opened; EINVAL if it is not a regular file.
        """
        path = self.path(name)
        self._check_folder(os.path.dirname(path))
        try:
            return local.open_regular(path, os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        return local.open_regular(self._inside(path), os.O_NOFOLLOW)

    def read(self, name: str, limit: int) -> bytes:
        """Returns the content of a file that has at most `limit` bytes.

        Raises:
          DamagedError: its name, or a link, leads out of the checkpoint.
          OSError: it cannot be read; EINVAL if it is not a regular file, EFBIG if it is larger.
        """
        if not self.is_local:
            return stores.read(self.path(name), limit)
        return local.read_descriptor(self.open(name), self.path(name), limit)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns bytes of a file. Raises DamagedError if it is too short, or its name leads out of the checkpoint; OSError."""
        path = self.path(name)
        if not self.is_local:
            (content,) = stores.ranges(path, [(offset, length)])
        else:
            descriptor = self.open(name)
            try:
                if offset + length > os.fstat(descriptor).st_size:
                    raise DamagedError(f"{path} is shorter than it was")
                content = os.pread(descriptor, length, offset)
            except OSError as error:
                error.filename = path
                raise
            finally:
                os.close(descriptor)
        if len(content) != length:
            raise DamagedError(f"{path} is shorter than it was")
        return content

    def size(self, name: str) -> int | None:
        """Returns the size of a regular file of a local checkpoint; None in a bucket. Raises as `open`."""
        path = self.path(name)
        if not self.is_local:
            return None
        self._check_folder(os.path.dirname(path))
        return self._checked(path).st_size

    def stored(self, folder: str) -> Stored:
        """Returns what lies below a directory of a local checkpoint, whoever will open it: every file is a regular one.

        Raises:
          DamagedError: a link leads out of the checkpoint.
          OSError: EINVAL if something is neither a regular file nor a directory.
        """
        number = nbytes = largest = 0
        waiting = [self.path(folder.rstrip("/"))]
        self._check_folder(waiting[0])
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                listed = list(entries)
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                found = self._checked(entry.path)
                number += 1
                nbytes += found.st_size
                largest = max(largest, found.st_size)
        return Stored(number, nbytes, largest)

    def _checked(self, path: str) -> os.stat_result:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            found = os.stat(self._inside(path))
        if not stat.S_ISREG(found.st_mode):
            raise local.irregular(found.st_mode, path)
        return found

    def _check_folder(self, folder: str) -> None:
        """Makes sure that a directory is inside of the checkpoint; looked at once."""
        if folder in self._folders:
            return
        parent = os.path.dirname(folder)
        if len(parent) >= len(self.directory):
            self._check_folder(parent)
            # What is not a link is where its parent is.
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                self._inside(folder)
        else:
            self._inside(folder)
        self._folders.add(folder)

    def _inside(self, path: str) -> str:
        """Returns where a path leads. Raises DamagedError if that is outside."""
        if self._tops is None:
            top = os.path.realpath(self._top)
            hub = _HUB.fullmatch(top)
            self._tops = (top,) if hub is None else (top, hub[1] + "/blobs")
        real = os.path.realpath(path)
        for top in self._tops:
            if real == top or real.startswith(top.rstrip("/") + "/"):
                return real
        raise DamagedError(f"{path} is a link that leads out of the checkpoint")
