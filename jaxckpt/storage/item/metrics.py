"""The metrics of a checkpoint: the JSON item ``metrics``, which is where Orbax's CheckpointManager keeps those that it is given."""

import json
import os
from collections.abc import Mapping
from typing import Any

from jaxckpt._lib.documents import as_dict, damage
from jaxckpt.storage import stores

# The item, and in it the file that Orbax's JsonCheckpointHandler reads.
_ITEM = "metrics"
FILE = "metrics/metrics"


def write(directory: str, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of a checkpoint.

    Args:
      directory: directory of the checkpoint.
      metrics: numbers by name. NaN and infinities are written as Orbax writes them.

    Raises:
      OSError: with errno.
    """
    stores.make_directory(os.path.join(directory, _ITEM))
    stores.write(os.path.join(directory, FILE), json.dumps(dict(metrics)).encode())


def read(path: str, content: bytes) -> dict[str, Any]:
    """Returns the metrics of a checkpoint. Those that plain Orbax wrote may have values of any kind.

    Args:
      path: path of the file, for messages.
      content: content of the file.

    Raises:
      CorruptCheckpointError: the content is not a JSON object.
    """
    with damage(path):
        # Not `documents.parse`, which refuses NaN: a metric may well be NaN.
        return as_dict(json.loads(content.decode()), "it")
