"""What stands beside the tree of an Orbax checkpoint: who reads it, when it was written, and that it is committed.

``_CHECKPOINT_METADATA`` is Orbax's, and written by its checkpointer wherever that drives the save. Its ``custom_metadata`` belongs to the
program; jaxckpt keeps there, under ``jaxckpt``, one object with what it remembers of the save.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import as_dict, as_int, damage, parse
from jaxckpt.storage import stores

FILE = "_CHECKPOINT_METADATA"
# In a record: the number that Checkpoint.save_counter had.
COUNTER = "save_counter"
MARKER = "commit_success.txt"
# What Orbax writes for a PyTree; it reads the name of the handler and does without it as well.
_OWN = "jaxckpt"
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def custom(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ``custom_metadata`` that holds a record: of no record, nothing at all."""
    return {_OWN: dict(record)} if record else {}


def write(directory: str, began: int, record: Mapping[str, Any]) -> None:
    """Writes the description of a checkpoint that is committed now.

    Args:
      directory: of the checkpoint.
      began: when its save began, in nanoseconds since the epoch.
      record: what is remembered of the save; see `Snapshot.record`.

    Raises:
      OSError: with errno.
    """
    metadata = {
        "item_handlers": _HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": began,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": custom(record),
    }
    stores.write(os.path.join(directory, FILE), json.dumps(metadata).encode())


def read(path: str, content: bytes) -> dict[str, Any]:
    """Returns the record of a checkpoint; one that has none, which plain Orbax or jaxckpt 0.1 wrote, gives an empty one.

    Args:
      path: of the file, for messages.
      content: of the file.

    Raises:
      CorruptCheckpointError: it is not what `write`, or Orbax, writes.
    """
    with damage(path):
        found = as_dict(as_dict(parse(content), "it").get("custom_metadata") or {}, "custom_metadata")
        record = as_dict(found.get(_OWN, {}), f"custom_metadata.{_OWN}")
        as_int(record.get(COUNTER, 0), COUNTER)
        return record


def mark(directory: str, final: str) -> None:
    """Writes Orbax's marker of a committed checkpoint.

    Args:
      directory: where.
      final: the path that the marker names.

    Raises:
      OSError: with errno.
    """
    stores.write(os.path.join(directory, MARKER), f"Checkpoint commit was successful to {final}".encode())


def commit_seconds(path: str) -> float:
    """Returns when a checkpoint was committed, in seconds since the epoch, as Orbax recorded it.

    Raises:
      CorruptCheckpointError: its description does not say so.
      OSError: it cannot be read.
    """
    where = os.path.join(path, FILE)
    with damage(where):
        document = as_dict(parse(stores.read(where, bounds.NOTE_FILE_BYTES)), "it")
        # Until the year 2262, as the times of files.
        return as_int(document.get("commit_timestamp_nsecs"), "commit_timestamp_nsecs", 1) / 1e9
