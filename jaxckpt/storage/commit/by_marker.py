"""The committer for stores that cannot rename directories, such as buckets. A marker makes a directory a checkpoint: see
`marker_directory`.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable

from jaxckpt._lib import numbering
from jaxckpt._lib.deadline import Deadline
from jaxckpt.storage import owner, stores
from jaxckpt.storage.commit import leases, marker_directory, marker_leftovers, recognition
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.commit.leases import Lease
from jaxckpt.storage.item.description import MARKER
from jaxckpt.storage.owner import Owner

_CLEAN_SECS = 60.0
_REPLACED = "Another checkpoint has been saved at this path meanwhile, so it was not deleted"
_log = logging.getLogger("jaxckpt")


class MarkerCommitter:
    """Commits checkpoints with a marker. See `Committer` for the methods."""

    in_place = True

    def begin(self, path: CheckpointPath, *, replace: bool) -> "PendingMark":
        """See `Committer`."""
        try:
            marker_leftovers.sweep(path.directory, numbering.prefix_of(path.name) or path.name)
        except OSError as error:
            # If leftovers of a dead process cannot be removed, this save still goes on.
            _log.warning("Could not remove leftovers in %s: %s", path.directory, error)
        text = stores.absolute(str(path))
        if marker_directory.is_marked(text):
            if not replace:
                raise FileExistsError(errno.EEXIST, "A checkpoint exists here already", text)
            return PendingMark(text, staged=owner.temporary_path(text, Owner.new(token_bytes=4)))
        lease = leases.read(text)
        if lease is not None and lease.live:
            raise FileExistsError(
                errno.EEXIST, f"{lease.in_words.capitalize()} is working here (action: {lease.action})", text
            )
        if stores.exists(text):
            raise FileExistsError(
                errno.EEXIST,
                "This is not a checkpoint, so it was not replaced; remove it or save elsewhere",
                text,
            )
        return PendingMark(text)

    def home(self, path: str) -> str | None:
        """See `Committer`."""
        return marker_directory.home(path)

    def is_committed(self, path: str) -> bool:
        """See `Committer`."""
        return not recognition.is_temporary(path) and marker_directory.home(path) is not None

    def names(self, directory: str, wanted: Callable[[str], bool]) -> list[str]:
        """See `Committer`. A checkpoint that is being replaced counts as committed."""
        entries = [key.split("/") for key in stores.tree(directory)]
        named = [(entry[0], entry[1:]) for entry in entries if wanted(entry[0])]
        if stores.is_local(directory):
            # Plain Orbax may have written some of them, without a marker.
            return [name for name in {name for name, _ in named} if self.is_committed(os.path.join(directory, name))]
        has_marker = {name for name, rest in named if rest == [MARKER]}
        has_lease = {name for name, rest in named if rest == [leases.FILE]} - has_marker
        return [
            *has_marker,
            *(name for name in has_lease if marker_directory.home(os.path.join(directory, name)) is not None),
        ]

    def is_there(self, path: str) -> bool:
        """See `Committer`."""
        return self.is_committed(path) or (stores.exists(path) and leases.read(path) is None)

    def saving(self, path: str) -> str | None:
        """See `Committer`."""
        lease = leases.read(path)
        return lease.in_words if lease is not None and lease.live and lease.action != "delete" else None

    def identity(self, path: str) -> object | None:
        """See `Committer`. The identity is the version of the marker."""
        content, version = stores.read_versioned(f"{path}/{MARKER}")
        return None if content is None else version

    def delete(self, path: CheckpointPath, expected: object | None = None) -> None:
        """See `Committer`. Removes the marker first."""
        text = stores.absolute(str(path))
        if expected is not None:
            self._refuse_another(text, expected)
        if not stores.exists(text):
            return
        if not marker_directory.is_marked(text) and leases.read(text) is None:
            raise OSError(errno.EINVAL, "This is not a checkpoint, so it was not deleted", text)
        lease = Lease(text, "delete")
        if expected is not None:
            try:
                # Before the lease, another process may have saved here. From now on none can.
                self._refuse_another(text, expected)
            except BaseException:
                marker_directory.release(lease)
                raise
        try:
            marker_directory.clear(text)
        except BaseException:
            lease.stop()
            raise
        lease.release()
        stores.prune(text)

    def _refuse_another(self, path: str, expected: object) -> None:
        """Raises OSError (EBUSY) if another checkpoint is at a path than the one of an identity, or will be once a sweep completes it."""
        home = marker_directory.home(path)
        if self.identity(path) not in (None, expected) or home not in (None, path):
            raise OSError(errno.EBUSY, _REPLACED, path)

    def replace_file(self, path: CheckpointPath, content: bytes, expected: bytes) -> None:
        """See `Committer`."""
        leases.require_conditions(str(path))
        stores.write_if(str(path), content, expected)

    def leftovers(self, directory: str, name: str | None = None) -> list[Leftover]:
        """See `Committer`."""
        return marker_leftovers.leftovers(directory, name)

    def sweep(self, directory: str, name: str | None = None) -> list[str]:
        """See `Committer`."""
        return marker_leftovers.sweep(directory, name)


class PendingMark:
    """An unfinished checkpoint, in a directory that this process has leased. See `Pending` for the methods."""

    own_files: tuple[str, ...] = (leases.FILE,)

    def __init__(self, path: str, staged: str | None = None) -> None:
        """Claims the directory.

        Args:
          path: path of the checkpoint.
          staged: directory in which the new checkpoint is first written, if it replaces the one at `path`; None to write at `path`.

        Raises:
          FileExistsError: a running process works in the directory.
          OSError: with errno.
        """
        self.new = path if staged is None else staged
        self._path = path
        self._lease = Lease(self.new, "save" if staged is None else "stage")
        if staged is None and marker_directory.is_marked(path):
            # It was not there before the lease, and must not be mixed with this one.
            marker_directory.release(self._lease)
            raise FileExistsError(errno.EEXIST, "Another process has saved a checkpoint here at the same time", path)
        self._committing = False

    @property
    def _is_staged(self) -> bool:
        return self.new != self._path

    def prepare(self, nbytes: int | None) -> None:
        """See `Pending`."""

    def seal(self) -> None:
        """See `Pending`."""
        stores.sync_tree(self.new)

    def publish(self, register: Callable[[], None]) -> None:
        """See `Pending`. If `register` fails, a replaced checkpoint is not put back."""
        self._committing = True
        try:
            self._lease.confirm()
            marker_directory.mark(self.new)
            if self._is_staged:
                marker_directory.replace(self._path, self.new)
            register()
        except BaseException:
            self.discard()
            raise
        if self._is_staged:
            self._lease.stop()
            try:
                marker_directory.remove(self.new)
            except OSError as error:
                _log.warning("Could not remove %s: %s", self.new, error)
        else:
            marker_directory.release(self._lease)

    def discard(self) -> None:
        """See `Pending`. Ignores errors of the removal: the error of the save says more, and a sweep removes the leftover later."""
        self._lease.stop()
        with contextlib.suppress(OSError), stores.within(Deadline(_CLEAN_SECS, f"Removing {self.new}")):
            # If the replacement was interrupted, the checkpoint at `path` may be incomplete and need the staged one.
            if not (self._committing and self._is_staged) or marker_directory.is_marked(self._path):
                marker_directory.remove(self.new)
