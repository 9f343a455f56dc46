"""An Orbax checkpoint written without Orbax's checkpointer, whose barriers and operation counter belong to jobs that save together.

Several processes each write a database of their own into the directory of the item, as Orbax lets them do, and one of them makes the
whole out of it; or one process writes everything.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence

from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import kvstore, writer
from jaxckpt.storage.commit import by_rename, claims
from jaxckpt.storage.item import description, digests, layout, tree_text
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot
from jaxckpt.storage.settings import WriteSettings


def part_name(process: int, token: str = "") -> str:
    """Returns the name of the database of one process, as Orbax calls it.

    Args:
      process: index of the process.
      token: tells one save to a bucket from another at the same path.
    """
    return f"ocdbt.process_{process}" + (f"_{token}" if token else "")


def check_part(path: str, settings: WriteSettings) -> None:
    """Refuses, before anything is written, what several processes cannot write together.

    Raises:
      ValueError: chunks of which each is an object of its own in a bucket.
    """
    if stores.is_bucket(path) and not layout.uses_ocdbt(settings):
        # Nobody can take a directory of a bucket away from a process that was given up on and goes on writing; with an object for each
        # chunk, its data would get into the next checkpoint of that name.
        raise ValueError(
            f"{path}: several processes write into a bucket together only with a max_shard_size of 64 MiB or more, got "
            f"{settings.max_file_size}. Choose a larger one, or give experimental_io_device."
        )


def write_part(new: str, snapshot: Snapshot, settings: WriteSettings, process: int) -> None:
    """Writes the pieces that a process has, and syncs them.

    Args:
      new: directory of the item, which exists.
      snapshot: the process's part.
      settings: how.
      process: index of this process.

    Raises:
      OSError: with errno; ENOENT if the others have given up on this process.
      TimeoutError: after `settings.timeout_secs`.
    """
    entries = [entry for entry in snapshot.entries if _has_pieces(entry)]
    try:
        _write_part(new, entries, settings, process, snapshot.groups)
    except Exception as error:
        found = None if isinstance(error, OSError) else faults.os_error(error, new)
        if found is None:
            raise
        raise found from error


def _write_part(
    new: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    process: int,
    groups: Sequence[Sequence[Entry]] | None,
) -> None:
    if stores.is_bucket(new):
        check_part(new, settings)
        token = _token(new)
        directory = os.path.join(new, part_name(process, token))
        with _not_abandoned(new, token, directory):
            writer.write_arrays(directory, entries, settings, groups)
    elif not layout.uses_ocdbt(settings):
        os.stat(new)
        writer.write_arrays(new, entries, settings, groups)
        by_rename.sync_tree(new)
    else:
        directory = os.path.join(new, part_name(process))
        os.mkdir(directory)
        writer.write_arrays(directory, entries, settings, groups)
        by_rename.sync_tree(directory)


def _token(new: str) -> str:
    """Returns what tells the save that is at work on a directory of a bucket from others."""
    note = claims.read(new)
    if note is None:
        raise FileNotFoundError(errno.ENOENT, "No save is at work there any more", new)
    return note.token


@contextlib.contextmanager
def _not_abandoned(new: str, token: str, directory: str) -> Iterator[None]:
    """Removes `directory` if the save that it belongs to was given up while what runs inside wrote there."""
    try:
        yield
    finally:
        note = claims.read(new)
        if note is None or note.token != token:
            stores.bucket.remove_all(stores.bucket.children(directory))
            raise FileNotFoundError(errno.ENOENT, "The save was given up meanwhile", new)


def _has_pieces(entry: Entry) -> bool:
    return isinstance(entry.content, ArrayContent) and len(entry.content.pieces) > 0


def write_jointly(
    new: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    process: int,
    begin_others: Callable[[], Sequence[int]] = tuple,
    end_others: Callable[[], None] = lambda: None,
) -> None:
    """Writes an item of which other processes may write parts.

    Args:
      new: directory of the item; it is made. In a bucket it has no marker yet.
      snapshot: describes every leaf; its pieces are those of this process.
      settings: how.
      process: index of this process.
      begin_others: called when `new` is there; lets other processes begin to write their parts, and returns which ones do.
      end_others: waits for them.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
    """
    began = time.time_ns()
    if not stores.is_bucket(new):
        os.mkdir(new)
    parts = begin_others()
    if not parts:
        writer.write(new, snapshot, settings)
    else:
        write_part(new, snapshot, settings, process)
        end_others()
        if layout.uses_ocdbt(settings):
            writer.merge(new, _databases(new, (process, *parts)), settings.timeout_secs)
        tree_text.write(new, snapshot, settings)
    description.write(new, began, snapshot.record)
    if not stores.is_bucket(new):  # There the marker is the commit, and comes last.
        description.mark(new, new)
        digests.write(new)


def _databases(new: str, processes: Sequence[int]) -> list[str]:
    """Returns the names of the databases that processes have written."""
    if not stores.is_bucket(new):
        return [part_name(process) for process in processes]
    token = _token(new)
    names = [part_name(process, token) for process in processes]
    # A process that has no piece writes nothing there.
    return [name for name in names if kvstore.is_ocdbt(os.path.join(new, name))]
