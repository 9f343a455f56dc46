"""The content of an Orbax item, written by several processes.

Each writes a database of its own into the directory of the item, as Orbax lets them do, and one of them makes the whole out of it.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence

from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import kvstore, writer
from jaxckpt.storage.commit import claims
from jaxckpt.storage.commit.committers import committer_of
from jaxckpt.storage.item import layout, tree_text
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
    if committer_of(path).in_place and not layout.uses_ocdbt(settings):
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
    if committer_of(new).in_place:
        check_part(new, settings)
        token = _token(new)
        directory = os.path.join(new, part_name(process, token))
        with _not_abandoned(new, token, directory):
            writer.write_arrays(directory, entries, settings, groups)
    elif not layout.uses_ocdbt(settings):
        os.stat(new)
        writer.write_arrays(new, entries, settings, groups)
        stores.sync_tree(new)
    else:
        directory = os.path.join(new, part_name(process))
        os.mkdir(directory)
        writer.write_arrays(directory, entries, settings, groups)
        stores.sync_tree(directory)


def _token(new: str) -> str:
    """Returns what tells the save that is at work on a directory of a bucket from others."""
    note = claims.read(new)
    if note is None:
        raise FileNotFoundError(errno.ENOENT, "No save is at work there any more", new)
    return note.owner.token


@contextlib.contextmanager
def _not_abandoned(new: str, token: str, directory: str) -> Iterator[None]:
    """Removes `directory` if the save that it belongs to was given up while what runs inside wrote there."""
    try:
        yield
    finally:
        note = claims.read(new)
        if note is None or note.owner.token != token:
            stores.remove_tree(directory)
            raise FileNotFoundError(errno.ENOENT, "The save was given up meanwhile", new)


def _has_pieces(entry: Entry) -> bool:
    return isinstance(entry.content, ArrayContent) and len(entry.content.pieces) > 0


def write_jointly(
    new: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    process: int,
    begin_others: Callable[[], Sequence[int]],
    end_others: Callable[[], None],
) -> None:
    """Writes an item into its directory together with other processes.

    Args:
      new: directory of the item, which exists.
      snapshot: describes every leaf; its pieces are those of this process.
      settings: how.
      process: index of this process.
      begin_others: lets the other processes begin to write their parts, and returns which ones do.
      end_others: waits for them.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
    """
    parts = begin_others()
    write_part(new, snapshot, settings, process)
    end_others()
    if layout.uses_ocdbt(settings):
        writer.merge(new, _databases(new, (process, *parts)), settings.timeout_secs)
    tree_text.write(new, snapshot, settings)


def _databases(new: str, processes: Sequence[int]) -> list[str]:
    """Returns the names of the databases that processes have written."""
    if not committer_of(new).in_place:
        return [part_name(process) for process in processes]
    token = _token(new)
    names = [part_name(process, token) for process in processes]
    # A process that has no piece writes nothing there.
    return [name for name in names if kvstore.is_ocdbt(os.path.join(new, name))]
