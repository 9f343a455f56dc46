"""What stands beside the tree of an Orbax checkpoint: who reads it, when it was written, and that it is committed."""

import json
import os
import time

from jaxckpt.storage import bounds, files
from jaxckpt.storage.documents import as_dict, as_int, damage, parse

FILE = "_CHECKPOINT_METADATA"
MARKER = "commit_success.txt"
# What Orbax writes for a PyTree; it reads the name of the handler and does without it as well.
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def write(directory: str, began: int) -> None:
    """Writes the description of a checkpoint that is committed now.

    Args:
      directory: of the checkpoint.
      began: when its save began, in nanoseconds since the epoch.

    Raises:
      OSError: with errno.
    """
    metadata = {
        "item_handlers": _HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": began,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": {},
    }
    files.write(os.path.join(directory, FILE), json.dumps(metadata).encode())


def mark(directory: str, final: str) -> None:
    """Writes Orbax's marker of a committed checkpoint.

    Args:
      directory: where.
      final: the path that the marker names.

    Raises:
      OSError: with errno.
    """
    files.write(os.path.join(directory, MARKER), f"Checkpoint commit was successful to {final}".encode())


def commit_seconds(path: str) -> float:
    """Returns when a checkpoint was committed, in seconds since the epoch, as Orbax recorded it.

    Raises:
      CorruptCheckpointError: its description does not say so.
      OSError: it cannot be read.
    """
    where = os.path.join(path, FILE)
    with damage(where):
        document = as_dict(parse(files.read(where, bounds.NOTE_FILE_BYTES)), "it")
        # Until the year 2262, as the times of files.
        return as_int(document.get("commit_timestamp_nsecs"), "commit_timestamp_nsecs", 1) / 1e9
