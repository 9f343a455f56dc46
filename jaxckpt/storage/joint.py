"""An Orbax checkpoint written without Orbax's checkpointer, whose barriers and operation counter belong to jobs that save together.

Several processes each write a database of their own into the directory of the item, as Orbax lets them do, and one of them makes the
whole out of it; or one process writes everything.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

from jaxckpt.storage import commit, digests, layout, tree_metadata, writer
from jaxckpt.storage.content import ArrayContent, Entry, Snapshot
from jaxckpt.storage.settings import WriteSettings

# What Orbax writes for a PyTree; it reads the name of the handler and does without it as well.
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
CHECKPOINT_METADATA = "_CHECKPOINT_METADATA"
COMMIT_SUCCESS = "commit_success.txt"


def part_name(process: int) -> str:
    """Returns the name of the database of one process, as Orbax calls it."""
    return f"ocdbt.process_{process}"


def write_part(new: str, snapshot: Snapshot, settings: WriteSettings, process: int) -> None:
    """Writes the pieces that a process has, and syncs them.

    Args:
      new: directory of the item, which exists.
      snapshot: the process's part.
      settings: how.
      process: index of this process.

    Raises:
      OSError: with errno.
      TimeoutError: after `settings.timeout_secs`.
    """
    entries = [entry for entry in snapshot.entries if _has_pieces(entry)]
    if not layout.uses_ocdbt(settings):
        os.stat(new)  # It is gone if the others have given up on this process.
        writer.write_arrays(new, entries, settings)
        commit.sync_tree(new)
        return
    directory = os.path.join(new, part_name(process))
    os.mkdir(directory)
    writer.write_arrays(directory, entries, settings)
    commit.sync_tree(directory)


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
      new: directory of the item; it is made.
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
    os.mkdir(new)
    parts = begin_others()
    if not parts:
        writer.write(new, snapshot, settings)
    else:
        write_part(new, snapshot, settings, process)
        end_others()
        if layout.uses_ocdbt(settings):
            writer.merge(new, [part_name(part) for part in (process, *parts)], settings.timeout_secs)
        tree_metadata.write(
            new, snapshot, use_ocdbt=layout.uses_ocdbt(settings), chunk_limit=layout.largest_chunk(settings)
        )
    metadata = {
        "item_handlers": _HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": began,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": {},
    }
    _write_text(os.path.join(new, CHECKPOINT_METADATA), json.dumps(metadata))
    _write_text(os.path.join(new, COMMIT_SUCCESS), f"Checkpoint commit was successful to {new}")
    digests.write(new)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
