"""What stands beside the tree of an Orbax checkpoint: who reads it, when it was written, and that it is committed.

``_CHECKPOINT_METADATA`` is Orbax's, and written by its checkpointer wherever that drives the save. Its ``custom_metadata`` belongs to the
program; jaxckpt keeps there, under ``jaxckpt``, one object with what it remembers of the save.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import files

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
    files.write(os.path.join(directory, FILE), json.dumps(metadata).encode())


def read(path: str, content: bytes) -> dict[str, Any]:
    """Returns the record of a checkpoint; one that has none, which plain Orbax or jaxckpt 0.1 wrote, gives an empty one.

    Args:
      path: of the file, for messages.
      content: of the file.

    Raises:
      CorruptCheckpointError: it is not what `write`, or Orbax, writes.
    """
    try:
        record = (json.loads(content).get("custom_metadata") or {}).get(_OWN, {})
        if not isinstance(record, dict):
            raise TypeError(f"custom_metadata.{_OWN} is a {type(record).__name__}")
        counter = record.get(COUNTER, 0)
        if type(counter) is not int or not 0 <= counter < 2**63:
            raise ValueError(f"{COUNTER} is {counter!r}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{path}: this file is damaged ({type(error).__name__}: {error}). Restore another checkpoint."
        ) from error
    return record


def mark(directory: str, final: str) -> None:
    """Writes Orbax's marker of a committed checkpoint.

    Args:
      directory: where.
      final: the path that the marker names.

    Raises:
      OSError: with errno.
    """
    files.write(os.path.join(directory, MARKER), f"Checkpoint commit was successful to {final}".encode())
