"""Writes an Orbax item from several processes.

Each process writes data files of its own into the directory of the item, as in Orbax, and a database that lists them. One of them merges
the databases. It does not make one for itself first, if it can help it.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage import faults, stores
from jaxckpt.storage.arrays import kvstore, writer
from jaxckpt.storage.commit import leases
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.item import layout, tree_text
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot
from jaxckpt.storage.settings import WriteSettings


def part_name(process: int, token: str = "") -> str:
    """Returns Orbax's name for the database of one process.

    Args:
      process: index of the process.
      token: in a bucket, tells this save from other saves to the same path; otherwise empty.
    """
    return f"ocdbt.process_{process}" + (f"_{token}" if token else "")


def check_part(path: str, settings: WriteSettings) -> None:
    """Refuses settings with which several processes cannot write together. Call it before anything is written.

    Args:
      path: path of the checkpoint.
      settings: how it will be written.

    Raises:
      ValueError: the checkpoint is in a bucket, and each chunk would be an object of its own.
    """
    if committer_of(path).in_place and not layout.uses_ocdbt(settings):
        # A process may go on writing after the others have given up on it, and a bucket cannot take its directory away. With one object
        # for each chunk, its data would get into the next checkpoint under that name.
        raise ValueError(
            f"{path}: to write into a bucket, several processes need a max_shard_size of 64 MiB or more, got {settings.max_file_size}. "
            "Choose a larger one, or give experimental_io_device."
        )


def save_token(new: str) -> str:
    """Returns what tells the save of this process that works on a directory from another one that has its name later.

    Args:
      new: directory of the item.

    Returns:
      The token of its lease in a bucket. Empty elsewhere: the name of a temporary directory is used once.

    Raises:
      FileNotFoundError: the save does not work there any more.
    """
    if not committer_of(new).in_place:
        return ""
    lease = leases.read(new)
    # This process may have been suspended for so long that another one took its save for dead, and works here now.
    if lease is None or not lease.owner.is_this_process:
        raise FileNotFoundError(errno.ENOENT, "The save was given up meanwhile", new)
    return lease.owner.token


def write_part(new: str, snapshot: Snapshot, settings: WriteSettings, process: int, token: str) -> None:
    """Writes the pieces of this process, and syncs them.

    Args:
      new: directory of the item, which exists.
      snapshot: the snapshot, with the pieces of this process.
      settings: how to write them.
      process: index of this process.
      token: what `save_token` returned to the process that began the save. This process may have been suspended since, and another save
        may have the directory now.

    Raises:
      OSError: with errno; ENOENT if the others have given up on this process.
      TimeoutError: after `settings.timeout_secs`.
    """
    settings = layout.limited(settings, stores.store_of(new).largest_file)
    with _os_errors(new):
        name = part_name(process, token)
        _write_part(new, _with_pieces(snapshot), settings, name, token, snapshot.groups, snapshot.transfer)


@contextlib.contextmanager
def _os_errors(new: str) -> Iterator[None]:
    """Turns errors of TensorStore about files into OSErrors.

    Args:
      new: directory of the item.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else faults.os_error(error, new)
        if found is None:
            raise
        raise found from error


def _write_part(
    new: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    name: str,
    token: str,
    groups: Sequence[Sequence[Entry]] | None,
    transfer: Transfer,
) -> None:
    if committer_of(new).in_place:
        check_part(new, settings)
        directory = os.path.join(new, name)
        _require_save(new, token)
        with _not_abandoned(new, token, directory):
            writer.write_arrays(directory, entries, settings, groups, transfer)
    elif not layout.uses_ocdbt(settings):
        os.stat(new)
        writer.write_arrays(new, entries, settings, groups, transfer)
        stores.sync_tree(new)
    else:
        directory = os.path.join(new, name)
        os.mkdir(directory)
        writer.write_arrays(directory, entries, settings, groups, transfer)
        stores.sync_tree(directory)


def _require_save(new: str, token: str) -> None:
    """Raises FileNotFoundError unless the save with a token works on a directory in a bucket."""
    lease = leases.read(new)
    if lease is None or lease.owner.token != token:
        raise FileNotFoundError(errno.ENOENT, "The save was given up meanwhile", new)


@contextlib.contextmanager
def _not_abandoned(new: str, token: str, directory: str) -> Iterator[None]:
    """Runs a block that writes into `directory`. Afterwards removes it if its save was given up meanwhile.

    Args:
      new: directory of the item.
      token: token of the save.
      directory: directory in `new` into which the block writes.

    Raises:
      FileNotFoundError: the save was given up.
    """
    try:
        yield
    finally:
        try:
            _require_save(new, token)
        except FileNotFoundError:
            stores.remove_tree(directory)
            raise


def _with_pieces(snapshot: Snapshot) -> list[Entry]:
    return [
        entry for entry in snapshot.entries if isinstance(entry.content, ArrayContent) and len(entry.content.pieces) > 0
    ]


def write_jointly(
    new: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    process: int,
    token: str,
    begin_others: Callable[[], Sequence[int]],
    end_others: Callable[[], None],
) -> None:
    """Writes an item into its directory together with other processes.

    Args:
      new: directory of the item, which exists.
      snapshot: the snapshot. It describes every leaf, but has only the pieces of this process.
      settings: how to write it.
      process: index of this process.
      token: what `save_token` returned for `new`, which the other processes were told.
      begin_others: tells the other processes to begin writing their parts, and returns the indices of those that do.
      end_others: waits until these have finished.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
    """
    others = begin_others()

    def parts() -> list[str]:
        end_others()
        return _databases(new, others, token)

    if not _write_whole(new, snapshot, settings, process, token, parts):
        write_part(new, snapshot, settings, process, token)
        end_others()
        if layout.uses_ocdbt(settings):
            writer.merge(new, _databases(new, (process, *others), token), settings.timeout_secs)
    with quiet_gc():
        tree_text.write(new, snapshot, settings)


def _write_whole(
    new: str,
    snapshot: Snapshot,
    settings: WriteSettings,
    process: int,
    token: str,
    parts: Callable[[], Sequence[str]],
) -> bool:
    """Writes the pieces of this process, and the index of those of all processes, at once.

    A database of its own would have an index too, which would be written, read and written again: for thousands of small arrays, that takes
    as long as all the rest.

    Args:
      new: directory of the item.
      snapshot: as for `write_jointly`.
      settings: how to write it.
      process: index of this process.
      token: of the save.
      parts: waits for the other processes, and returns the names of their databases.

    Returns:
      Whether it was possible. If not, nothing has been written.
    """
    if committer_of(new).in_place:
        return False
    settings = layout.limited(settings, stores.store_of(new).largest_file)
    with _os_errors(new):
        return writer.write_with_parts(
            new, _with_pieces(snapshot), settings, part_name(process, token), parts, snapshot.groups, snapshot.transfer
        )


def _databases(new: str, processes: Sequence[int], token: str) -> list[str]:
    """Returns the names of the databases that these processes have written."""
    names = [part_name(process, token) for process in processes]
    if not committer_of(new).in_place:
        return names
    # In a bucket, a process without pieces does not write a database.
    return [name for name in names if kvstore.is_ocdbt(os.path.join(new, name))]
