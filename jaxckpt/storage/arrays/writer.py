"""Writes entries into the key-value store of one directory. Blocks the calling thread until everything is on disk.

jaxckpt's own code writes uncompressed arrays into local OCDBT databases. TensorStore writes the rest: compressed arrays, chunks in files
of their own, all arrays in buckets, and all arrays at all if `engine` says so.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.storage import stores
from jaxckpt.storage.arrays import engine, kvstore, own_writer, tensorstore_writer
from jaxckpt.storage.item import layout, tree_text
from jaxckpt.storage.item.content import Entry, Snapshot
from jaxckpt.storage.ocdbt.model import UnknownFormatError
from jaxckpt.storage.settings import WriteSettings

# The subdirectory with the data files of a database.
_DATA = "d"
# A function that writes the arrays and the tree of a snapshot into an existing directory, as `write` does.
Fill: TypeAlias = Callable[[str, Snapshot, WriteSettings], None]


def write(directory: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot into an existing, empty directory as an Orbax PyTree item: arrays, strings, tree metadata.

    Args:
      directory: directory of the item.
      snapshot: the snapshot to write.
      settings: how to write it.

    Raises:
      OSError: with errno, e.g. ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: the error that the source of a piece raised.
    """
    write_arrays(directory, snapshot.entries, settings, snapshot.groups, snapshot.transfer)
    with quiet_gc():
        tree_text.write(directory, snapshot, settings)


def write_arrays(
    directory: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    groups: Sequence[Sequence[Entry]] | None = None,
    transfer: Transfer | None = None,
) -> None:
    """Writes the arrays among `entries`, and nothing else: into a database, or one file for each chunk if `max_file_size` is small.

    Several processes may write different chunks of the same arrays at the same time. Each writes a database into a directory of its own,
    and `merge` then puts them together. Or all of them write files into the same directory.

    Args:
      directory: directory for the arrays; made if it does not exist.
      entries: the leaves. Those that are not arrays are left out.
      settings: how to write them.
      groups: the array entries in groups that share no data files; see `Snapshot.groups`.
      transfer: counts the bytes; None if they are not counted.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: the error that the source of a piece raised.
    """
    transfer = transfer or Transfer()
    stores.make_directory(directory)
    deadline = Deadline(settings.timeout_secs, f"Writing {directory}")
    in_database = layout.uses_ocdbt(settings)
    if _is_own(directory, settings):
        own_writer.write(directory, entries, groups, settings, deadline, transfer)
        return
    # TensorStore begins a new data file with every transaction, so groups do not share files. Arrays without elements are not in a group.
    for group in (entries,) if groups is None else (*groups, own_writer.without_pieces(entries)):
        tensorstore_writer.write(directory, group, settings, deadline, transfer)
    # TensorStore does not make a database without keys, but readers of a local item expect one. In a bucket they do not.
    if in_database and stores.is_local(directory) and not kvstore.is_ocdbt(directory):
        tensorstore_writer.write_nothing(directory, settings, deadline)


def write_with_parts(
    directory: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    part: str,
    others: Callable[[], Sequence[str]],
    groups: Sequence[Sequence[Entry]] | None = None,
    transfer: Transfer | None = None,
) -> bool:
    """Writes arrays into a database, as `write_arrays` does, which also has what is in the databases of other processes.

    The new database refers to the data files of the others, which stay where they are.

    Args:
      directory: directory of the item, which exists.
      entries: as for `write_arrays`.
      settings: as for `write_arrays`.
      part: name of the subdirectory for the data files of `entries`.
      others: waits until the databases of the others are there, and returns the names of their subdirectories. If several hold a key, the
        first one wins, but not over `entries`.
      groups: as for `write_arrays`.
      transfer: as for `write_arrays`.

    Returns:
      Whether it was possible. If not, nothing is left, and each process has to write a database: TensorStore has to write or read one.

    Raises:
      CorruptCheckpointError: a part is damaged.
      BaseException: as `write_arrays`, or the error of `others`.
    """
    if not _is_own(directory, settings):
        return False
    deadline = Deadline(settings.timeout_secs, f"Writing {directory}")
    try:
        own_writer.write(directory, entries, groups, settings, deadline, transfer or Transfer(), others, part)
    except UnknownFormatError:
        for name in (part, _DATA):
            stores.remove_tree(os.path.join(directory, name))
        return False
    return True


def _is_own(directory: str, settings: WriteSettings) -> bool:
    """Whether jaxckpt's own code writes the database of a directory."""
    is_plain = layout.uses_ocdbt(settings) and settings.compression is None
    return engine.is_own() and is_plain and stores.is_local(directory)


def merge(directory: str, parts: Sequence[str], timeout_secs: float = 1200.0) -> None:
    """Merges the databases in subdirectories into one. The new database refers to their data files, which stay where they are.

    Args:
      directory: directory of the new database and of the parts.
      parts: names of the subdirectories, such as ``ocdbt.process_0``. If several parts hold a key, the first one wins.
      timeout_secs: time limit of the merge in seconds.

    Raises:
      OSError: with errno; ENOENT if a part is missing.
      CorruptCheckpointError: a part is damaged.
      TimeoutError: after `timeout_secs`.
    """
    deadline = Deadline(timeout_secs, f"Merging {directory}")
    if engine.is_own() and stores.is_local(directory):
        try:
            own_writer.merge(directory, parts, deadline)
            return
        except UnknownFormatError:
            # TensorStore reads more formats.
            pass
    tensorstore_writer.merge(directory, parts, deadline)
