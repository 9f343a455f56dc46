"""The description of an Orbax checkpoint (its handler, its times, and jaxckpt's record of the save), and its commit marker.

The file ``_CHECKPOINT_METADATA`` is Orbax's. Orbax's checkpointer writes it if it drives the save. Its ``custom_metadata`` belongs to the
program; jaxckpt keeps its record of the save there, as one object under the key ``jaxckpt``.
"""

import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import as_dict, as_int, damage, parse
from jaxckpt.storage import stores

FILE = "_CHECKPOINT_METADATA"
# Key in a record: the value of Checkpoint.save_counter.
COUNTER = "save_counter"
# Key in a record: the training step, if the save knew it.
STEP = "step"
MARKER = "commit_success.txt"
# Orbax writes this handler name for a PyTree. It reads the name, but does not need it.
_OWN = "jaxckpt"
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def custom(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ``custom_metadata`` that holds a record; an empty dict for an empty record."""
    return {_OWN: dict(record)} if record else {}


def write(directory: str, began: int, record: Mapping[str, Any]) -> None:
    """Writes the description of a checkpoint, with the present time as its commit time.

    Args:
      directory: directory of the checkpoint.
      began: when its save began, in nanoseconds since the epoch.
      record: see `Snapshot.record`.

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
    """Returns the record of a checkpoint; an empty one if it has none, because plain Orbax or jaxckpt 0.1 wrote it.

    Args:
      path: path of the description, for messages.
      content: content of the description.

    Raises:
      CorruptCheckpointError: neither `write` nor Orbax writes such a content.
    """
    with damage(path):
        found = as_dict(as_dict(parse(content), "it").get("custom_metadata") or {}, "custom_metadata")
        record = as_dict(found.get(_OWN, {}), f"custom_metadata.{_OWN}")
        check(record)
        return record


def check(record: Mapping[str, Any]) -> None:
    """Raises DamagedError if a record holds what no save notes."""
    as_int(record.get(COUNTER, 0), COUNTER)


def mark(directory: str, final: str) -> None:
    """Writes Orbax's marker of a committed checkpoint. Its content differs from that of every other one.

    (Some storage servers make the version of an object of its content.)

    Args:
      directory: directory of the checkpoint.
      final: the path that the text of the marker names.

    Raises:
      OSError: with errno.
    """
    text = f"Checkpoint commit was successful to {final}\nCommit {secrets.token_hex(8)}\n"
    stores.write(os.path.join(directory, MARKER), text.encode())


def commit_seconds(path: str) -> float:
    """Returns when a checkpoint was committed, in seconds since the epoch, as its description says.

    Args:
      path: path of the checkpoint.

    Raises:
      CorruptCheckpointError: the description does not contain the time.
      OSError: the description cannot be read.
    """
    where = os.path.join(path, FILE)
    with damage(where):
        document = as_dict(parse(stores.read(where, bounds.NOTE_FILE_BYTES)), "it")
        # `as_int` accepts times until the year 2262, the same limit as for times of files.
        return as_int(document.get("commit_timestamp_nsecs"), "commit_timestamp_nsecs", 1) / 1e9
