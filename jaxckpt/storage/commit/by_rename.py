"""The committer for disks: one rename gives a finished directory its name, and another one takes it away before a removal."""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable

from jaxckpt._lib import numbering
from jaxckpt.storage.commit import moves, recognition, rename_leftovers
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.commit.temporary import TemporaryDirectory
from jaxckpt.storage.stores import local
from jaxckpt.storage.stores.descriptors import SpareDescriptors

_log = logging.getLogger("jaxckpt")
_REPLACED = "Another checkpoint has been saved at this path meanwhile, so it was not deleted"


class RenameCommitter:
    """Commits checkpoints on disks. See `Committer` for the methods."""

    in_place = False

    def begin(self, path: CheckpointPath, *, replace: bool) -> "PendingRename":
        """See `Committer`."""
        _refuse_occupied(str(path), replace)
        try:
            rename_leftovers.sweep(path.directory, numbering.prefix_of(path.name) or path.name)
        except OSError as error:
            # If leftovers of a dead process cannot be removed, this save still goes on.
            _log.warning("Could not remove leftovers in %s: %s", path.directory, error)
        return PendingRename(path, TemporaryDirectory(path), replace)

    def home(self, path: str) -> str | None:
        """See `Committer`."""
        return path

    def is_committed(self, path: str) -> bool:
        """See `Committer`."""
        return not recognition.is_temporary(path) and os.path.isdir(path) and recognition.has_files(path)

    def names(self, directory: str, wanted: Callable[[str], bool]) -> list[str]:
        """See `Committer`."""
        try:
            names = os.listdir(directory or ".")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in names if wanted(name) and self.is_committed(os.path.join(directory or ".", name))]

    def is_there(self, path: str) -> bool:
        """See `Committer`."""
        return os.path.lexists(path) or rename_leftovers.recover_missing(path)

    def saving(self, path: str) -> str | None:
        """See `Committer`."""
        return rename_leftovers.saving(path)

    def identity(self, path: str) -> object | None:
        """See `Committer`. The identity is device and inode number."""
        return moves.identity_at(path)

    def delete(self, path: CheckpointPath, expected: object | None = None) -> None:
        """See `Committer`. Renames the checkpoint away first. If a link is at the path, removes the link and not its target."""
        text = str(path)
        try:
            found = _marked_identity(text)
        except FileNotFoundError:
            return
        if expected is not None and found != expected:
            raise OSError(errno.EBUSY, _REPLACED, text)
        folder = TemporaryDirectory(path)
        try:
            # Another process may have deleted it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                os.rename(text, folder.deleted)
            if moves.identity_at(folder.deleted) not in (None, found):
                os.rename(folder.deleted, text)
                raise OSError(
                    errno.EBUSY, "Something else took its place during the deletion, so it was not deleted", text
                )
        finally:
            if moves.identity_at(folder.deleted) in (None, found):
                folder.remove()

    def replace_file(self, path: CheckpointPath, content: bytes, expected: bytes) -> None:
        """See `Committer`. Does not check the version: writers on a disk keep each other out with a lock."""
        folder = TemporaryDirectory(path)
        try:
            try:
                with open(folder.new, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = error.filename or str(path)
                raise
            os.replace(folder.new, str(path))
        finally:
            # The file has been written. If the directory cannot be removed, a sweep removes it.
            with contextlib.suppress(OSError):
                folder.remove()
        local.sync_directory(path.directory)

    def leftovers(self, directory: str, name: str | None = None) -> list[Leftover]:
        """See `Committer`."""
        return rename_leftovers.leftovers(directory, name)

    def sweep(self, directory: str, name: str | None = None) -> list[str]:
        """See `Committer`."""
        return rename_leftovers.sweep(directory, name)


class PendingRename:
    """An unfinished checkpoint in a temporary directory. See `Pending` for the methods.

    `publish` and `discard` remove the temporary directory in any case.
    """

    own_files: tuple[str, ...] = ()

    def __init__(self, path: CheckpointPath, folder: TemporaryDirectory, replace: bool) -> None:
        """Takes over the temporary directory.

        Args:
          path: path of the checkpoint.
          folder: the temporary directory, which exists.
          replace: whether the checkpoint may replace one at `path`.
        """
        self._path = path
        self._folder = folder
        self._replace = replace
        self._spare: SpareDescriptors | None = None

    @property
    def new(self) -> str:
        """See `Pending`."""
        return self._folder.new

    def prepare(self, nbytes: int | None) -> None:
        """See `Pending`."""
        self._spare = SpareDescriptors()
        if nbytes is None:
            return
        status = os.statvfs(self._folder.path)
        free = status.f_bavail * status.f_frsize
        if status.f_blocks and nbytes > free:
            raise OSError(
                errno.ENOSPC, f"No space left on device: {nbytes} bytes to write, {free} free", self._folder.path
            )

    def seal(self) -> None:
        """See `Pending`."""
        local.sync_tree(self._folder.new)

    def publish(self, register: Callable[[], None]) -> None:
        """See `Pending`."""
        written = moves.identity_at(self._folder.new)
        try:
            moves.publish(self._folder, str(self._path), self._replace)
            local.sync_directory(self._path.directory)
            register()
        except BaseException as error:
            try:
                moves.take_back(self._folder, str(self._path), written)
            except OSError as second:
                error.add_note(f"Besides, {self._path} could not be taken back: {second}")
            else:
                self.discard()
            raise
        self.discard()

    def discard(self) -> None:
        """See `Pending`. If the directory cannot be removed, that is logged and does not fail the save: a sweep tries again."""
        if self._spare is not None:
            self._spare.close()
        try:
            self._folder.remove()
        except OSError as error:
            _log.warning("Could not remove %s: %s", self._folder.path, error)


def _refuse_occupied(path: str, replace: bool) -> None:
    if not os.path.lexists(path):
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, "A checkpoint exists here already", path)
    if os.path.isdir(path):
        if not os.listdir(path):
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not recognition.is_temporary(path) and recognition.is_certain(descriptor):
                return
        finally:
            os.close(descriptor)
    raise FileExistsError(
        errno.EEXIST, "This is not a checkpoint, so it was not replaced; remove it or save elsewhere", path
    )


def _marked_identity(path: str) -> moves.Identity:
    """Returns the identity of the checkpoint at `path`, or of the link to one. Raises OSError if something else is there."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        if not RenameCommitter().is_committed(path):
            raise OSError(errno.EINVAL, "This link does not lead to a checkpoint, so it was not deleted", path)
        return status.st_dev, status.st_ino
    # Identify the directory and look for its files through one open descriptor: then both are of the same directory, even if another
    # process renames something meanwhile.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not recognition.is_certain(descriptor):
            raise OSError(errno.EINVAL, "This is not a checkpoint, so it was not deleted", path)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_dev, status.st_ino
