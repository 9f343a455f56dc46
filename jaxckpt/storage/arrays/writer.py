"""Entries → the key-value store of one directory. Runs on the thread that writes; blocks until everything is on disk.

The own code writes into an OCDBT database what is not compressed. TensorStore writes the rest: compressed chunks, chunks in files of their
own, everything in buckets, and everything at all where `engine` says so.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxckpt._lib.deadline import Deadline
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.storage import stores
from jaxckpt.storage.arrays import engine, kvstore, own_writer, tensorstore_writer
from jaxckpt.storage.item import layout, tree_text
from jaxckpt.storage.item.content import Entry, Snapshot
from jaxckpt.storage.ocdbt.model import UnknownFormatError
from jaxckpt.storage.settings import WriteSettings

# Writes the arrays and the tree of a snapshot into a directory that is there, as `write` does.
Fill: TypeAlias = Callable[[str, Snapshot, WriteSettings], None]


def write(directory: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Writes a snapshot into an existing, empty directory as an Orbax PyTree item: arrays, strings, tree metadata.

    Args:
      directory: where to.
      snapshot: what.
      settings: how.

    Raises:
      OSError: with errno, e.g. ENOSPC.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: whatever the source of a piece raised.
    """
    write_arrays(directory, snapshot.entries, settings, snapshot.groups)
    with quiet_gc():
        tree_text.write(directory, snapshot, settings)


def write_arrays(
    directory: str,
    entries: Sequence[Entry],
    settings: WriteSettings,
    groups: Sequence[Sequence[Entry]] | None = None,
) -> None:
    """Writes the arrays among `entries`, and nothing else: a database, or a file a chunk if `max_file_size` is small.

    Several processes may write different chunks of the same arrays: databases into directories of their own, which `merge` then puts
    together, and files into the same directory, at the same time.

    Args:
      directory: where to; made if it is not there.
      entries: what.
      settings: how.
      groups: the same in groups that share no data files; see `Snapshot.groups`.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
      BaseException: whatever the source of a piece raised.
    """
    stores.make_directory(directory)
    deadline = Deadline(settings.timeout_secs, f"Writing {directory}")
    in_database = layout.uses_ocdbt(settings)
    if engine.is_own() and in_database and settings.compression is None and stores.is_local(directory):
        own_writer.write(directory, entries, groups, settings, deadline)
        return
    # TensorStore begins a new data file with every transaction. An array without elements is in no group.
    for group in (entries,) if groups is None else (*groups, own_writer.without_pieces(entries)):
        tensorstore_writer.write(directory, group, settings, deadline)
    # TensorStore makes no database of nothing. In a bucket nothing looks for one.
    if in_database and stores.is_local(directory) and not kvstore.is_ocdbt(directory):
        tensorstore_writer.write_nothing(directory, settings, deadline)


def merge(directory: str, parts: Sequence[str], timeout_secs: float = 1200.0) -> None:
    """Makes one database out of those in subdirectories. It refers to their data files, which stay where they are.

    Args:
      directory: where the new database is made, and the parts are.
      parts: names of the subdirectories, such as ``ocdbt.process_0``. Where several hold a key, the first wins.
      timeout_secs: bound for everything.

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
            pass  # TensorStore knows more.
    tensorstore_writer.merge(directory, parts, deadline)
