"""The engine behind all handlers: what a handler writes, completes, and checks, whichever of Orbax's interfaces calls it.

Every process of a job calls. Each writes its own part into a subdirectory, as with Orbax's own handlers; the process that commits merges
the parts in `Engine.finalize`, once Orbax has made sure that all of them are there.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from jaxckpt._lib.bounds import METADATA_FILE_BYTES
from jaxckpt._lib.documents import damage
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.handlers.arguments import SaveArguments
from jaxckpt.storage.item import digests, layout, tree_text
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot
from jaxckpt.storage.joint import part_name
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores.inside import Inside

_PART = re.compile(re.escape(part_name(0)[:-1]) + "[0-9]+")

# The largest number of items that one handler has under way. Orbax saves the items of one checkpoint at a time.
_UNFINISHED = 32


class Take(Protocol):
    """Takes the snapshot of a tree, or this process's part of it; see `jaxckpt.saving.items.take`."""

    def __call__(self, arguments: SaveArguments, *, copy: bool) -> Snapshot:
        """Returns the snapshot.

        Args:
          arguments: what the program gave to the save.
          copy: whether to copy mutable host memory.
        """


class Engine:
    """Writes and completes the items of one handler. Several items may be under way at once, each in a directory of its own."""

    def __init__(self, settings: WriteSettings, take: Take, process: int, processes: int) -> None:
        """Creates the engine.

        Args:
          settings: how to write.
          take: takes the snapshot of a tree.
          process: index of this process.
          processes: how many processes write together; 1 if this process has everything.
        """
        self._settings = settings
        self._take = take
        self._process = process
        self.is_alone = processes == 1
        # By directory, what is left to do for an item once every process has written its part.
        self._begun: dict[str, tuple[Snapshot, WriteSettings]] = {}

    def begin(self, directory: str, arguments: SaveArguments, *, copy: bool) -> Callable[[float | None], None]:
        """Takes the snapshot of an item.

        Args:
          directory: the directory that Orbax makes for the item. It need not exist yet.
          arguments: what to save.
          copy: whether the program goes on before the write has ended, so that host memory must be copied.

        Returns:
          A function that writes this process's part. Its argument is a time limit in seconds besides the one of the settings, or None.

        Raises:
          TypeError: a leaf cannot be stored; the message names it.
          ValueError: an argument or a leaf asks for what is not possible.
        """
        settings = self._settings
        if arguments.target_data_file_size is not None:
            settings = dataclasses.replace(settings, target_data_file_size=arguments.target_data_file_size)
        snapshot = dataclasses.replace(self._take(arguments, copy=copy), custom_metadata=arguments.custom_metadata)
        while len(self._begun) >= _UNFINISHED:
            # These failed, or another process of the job has committed them.
            del self._begun[next(iter(self._begun))]
        self._begun[directory] = dataclasses.replace(snapshot, entries=_described(snapshot), groups=None), settings
        pending = [snapshot]

        def write(timeout: float | None) -> None:
            # Not kept alive by a future that Orbax keeps until the next save.
            self._write(directory, pending.pop(), _within(settings, timeout))

        return write

    def _write(self, directory: str, snapshot: Snapshot, settings: WriteSettings) -> None:
        with _errno_at(directory):
            if self.is_alone:
                writer.write_arrays(directory, snapshot.entries, settings, snapshot.groups)
            elif not layout.uses_ocdbt(settings):
                writer.write_arrays(directory, _with_pieces(snapshot), settings, snapshot.groups)
            else:
                part = stores.join(directory, part_name(self._process))
                writer.write_arrays(part, _with_pieces(snapshot), settings, snapshot.groups)
            if not self.is_alone:
                stores.sync_tree(directory)

    def finalize(self, directory: str) -> None:
        """Completes an item: merges the parts, and writes the tree and the digests. Called on the process that commits.

        Args:
          directory: directory of the item.

        Raises:
          CheckpointError: the part of a process is not there.
          OSError: with errno.
          TimeoutError: after the time limit of the settings.
        """
        begun = self._begun.pop(directory, None)
        if begun is None:
            raise CheckpointError(
                f"{directory}: Orbax finishes a save that this handler did not begin, so it is not committed."
            )
        snapshot, settings = begun
        with _errno_at(directory):
            if not self.is_alone and layout.uses_ocdbt(settings):
                writer.merge(directory, _parts(directory, snapshot), settings.timeout_secs)
            with quiet_gc():
                tree_text.write(directory, snapshot, settings)
            digests.write(directory)
            # Orbax does not sync the metadata, and renames afterwards.
            stores.sync_tree(directory)


def check(directory: str) -> None:
    """Checks the files of an item that Orbax is about to read. The checksums of the arrays are checked as they are read.

    Args:
      directory: directory of the item. Without jaxckpt's digests there is nothing to check.

    Raises:
      CorruptCheckpointError: a file is missing, damaged, or exchanged.
      OSError: a file cannot be read.
    """
    if not stores.is_file(stores.join(directory, digests.FILE)):
        return
    inside = Inside(directory)
    noted = digests.read(inside)
    for name, problem in digests.check_sizes(inside, noted):
        raise CorruptCheckpointError.at(stores.join(directory, name), f"{problem}. Restore another checkpoint.")
    for name, expected in noted.items():
        if expected.is_of_data:
            digests.check_data(inside, name, noted)
        else:
            with damage(stores.join(directory, name)):
                content = inside.read(name, METADATA_FILE_BYTES)
            digests.check(directory, name, content, noted)


def _described(snapshot: Snapshot) -> tuple[Entry, ...]:
    """Returns the entries without their data."""
    return tuple(
        entry._replace(content=entry.content._replace(pieces=())) if isinstance(entry.content, ArrayContent) else entry
        for entry in snapshot.entries
    )


def _with_pieces(snapshot: Snapshot) -> list[Entry]:
    return [
        entry for entry in snapshot.entries if isinstance(entry.content, ArrayContent) and len(entry.content.pieces)
    ]


def _parts(directory: str, snapshot: Snapshot) -> list[str]:
    """Returns the names of the parts of an item. Raises CheckpointError if one of them is missing."""
    found = sorted(name for name in stores.names(directory) if _PART.fullmatch(name))
    owners = {
        owner
        for entry in snapshot.entries
        if isinstance(entry.content, ArrayContent) and entry.content.share is not None
        for _, owner in entry.content.share.all()
    }
    missing = sorted(owner for owner in owners if part_name(owner) not in found)
    if missing:
        listed = ", ".join(map(str, missing))
        raise CheckpointError(
            f"{directory}: the part of process {listed} is not here, so the checkpoint is not committed. Either that process did not "
            "save, or the directory is not shared by all processes: then use jaxckpt.Checkpoint with experimental_io_device."
        )
    return found


def _within(settings: WriteSettings, timeout: float | None) -> WriteSettings:
    if timeout is None or timeout >= settings.timeout_secs:
        return settings
    return dataclasses.replace(settings, timeout_secs=timeout)


@contextlib.contextmanager
def _errno_at(directory: str) -> Iterator[None]:
    """Turns TensorStore's errors in the block into OSError with errno."""
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else faults.os_error(error, directory)
        if found is None:
            raise
        raise found from error
