"""Opens the files of one checkpoint, and nothing else: only regular files inside of its directory.

The checkpoint may come from a stranger, so its names and links are not trusted. The path of the checkpoint itself may be a link. A link
inside of the checkpoint must not lead out of it, with one exception: in the cache of the Hugging Face Hub, every file of
``models--<name>/snapshots/<revision>/`` is a link into ``models--<name>/blobs/``.
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
    """Number and sizes of the files below a directory.

    Attributes:
      files: number of files.
      bytes: size of all files together.
      largest: size of the largest file in bytes.
    """

    files: int
    bytes: int
    largest: int


class Inside:
    """Opens the files of a checkpoint. Several threads may use it.

    Attributes:
      directory: the directory that names are relative to.
      is_local: whether the checkpoint is in a local directory, where sizes of files are known.
    """

    def __init__(self, directory: str, top: str | None = None) -> None:
        """Does not touch the files yet.

        Args:
          directory: directory that holds the tree of the checkpoint.
          top: directory of the whole checkpoint; None if that is `directory`.
        """
        self.directory = directory
        self.is_local = stores.is_local(directory)
        self._top = directory if top is None else top
        self._tops: tuple[str, ...] | None = None
        self._folders: set[str] = set()

    def path(self, name: str) -> str:
        """Returns the path of a file. Raises DamagedError if its name leads out of the directory; see `checked_name`."""
        return os.path.join(self.directory, checked_name(name))

    def open(self, name: str) -> int:
        """Opens a file of a local checkpoint, and returns its descriptor.

        Args:
          name: path of the file, relative to the directory.

        Raises:
          DamagedError: the name, or a link, leads out of the checkpoint.
          OSError: the file cannot be opened; EINVAL if it is not a regular file.
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
        """Returns the content of a file.

        Args:
          name: path of the file, relative to the directory.
          limit: the largest size in bytes that is read. In a bucket it is not checked.

        Raises:
          DamagedError: the name, or a link, leads out of the checkpoint.
          OSError: the file cannot be read; EINVAL if it is not a regular file, EFBIG if it is larger than `limit`.
        """
        if not self.is_local:
            return stores.read(self.path(name), limit)
        return local.read_descriptor(self.open(name), self.path(name), limit)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns a range of the bytes of a file.

        Args:
          name: path of the file, relative to the directory.
          offset: first byte.
          length: number of bytes.

        Raises:
          DamagedError: the file ends before the range does, or the name, or a link, leads out of the checkpoint.
          OSError: the file cannot be read.
        """
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
        """Returns the size in bytes of a regular file; None in a bucket.

        Args:
          name: path of the file, relative to the directory.

        Raises:
          DamagedError: the name, or a link, leads out of the checkpoint.
          OSError: the file cannot be looked at; EINVAL if it is not a regular file.
        """
        path = self.path(name)
        if not self.is_local:
            return None
        self._check_folder(os.path.dirname(path))
        return self._checked(path).st_size

    def stored(self, folder: str) -> Stored:
        """Returns number and sizes of the files below a folder of a local checkpoint, and makes sure that all are regular files.

        After this check, TensorStore may open the files itself.

        Args:
          folder: path of the folder, relative to the directory; empty for the directory itself.

        Raises:
          DamagedError: a link leads out of the checkpoint.
          OSError: EINVAL if an entry is neither a regular file nor a directory.
        """
        number = nbytes = largest = 0
        waiting = [self.path(folder.rstrip("/")) if folder else self.directory]
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
        """Makes sure that a directory is inside of the checkpoint. Each directory is checked once."""
        if folder in self._folders:
            return
        parent = os.path.dirname(folder)
        if len(parent) >= len(self.directory):
            self._check_folder(parent)
            # A directory that is not a link is in its parent, which has been checked.
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                self._inside(folder)
        else:
            self._inside(folder)
        self._folders.add(folder)

    def _inside(self, path: str) -> str:
        """Returns the path that a link leads to. Raises DamagedError if it leads out of the checkpoint."""
        if self._tops is None:
            top = os.path.realpath(self._top)
            hub = _HUB.fullmatch(top)
            self._tops = (top,) if hub is None else (top, hub[1] + "/blobs")
        real = os.path.realpath(path)
        for top in self._tops:
            if real == top or real.startswith(top.rstrip("/") + "/"):
                return real
        raise DamagedError(f"{path} is a link that leads out of the checkpoint")
