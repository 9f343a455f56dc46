"""What stands beside the tree of an Orbax checkpoint: who reads it, when it was written, and that it is committed."""

import json
import os
import time

from jaxckpt.storage import files

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
