"""What a checkpoint says about its save: step, metrics, times and sizes. Read without opening its tree, checked against the digests."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import as_int, damage
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import faults, stores
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.item import description, digests, metrics
from jaxckpt.storage.item.account import Account
from jaxckpt.storage.stores.inside import Inside


class SaveFacts(NamedTuple):
    """What a checkpoint says about its save.

    Attributes:
      step: the training step; None if the save did not know it.
      metrics: the metrics by name; None if the save was given none.
      account: what was measured; None if plain Orbax or an earlier jaxckpt wrote the checkpoint, or `jaxckpt convert`.
    """

    step: int | None
    metrics: Mapping[str, Any] | None
    account: Account | None = None


NO_FACTS = SaveFacts(None, None)


def read_facts(path: str) -> SaveFacts:
    """Reads what a checkpoint says about its save. It may be one that Orbax's CheckpointManager wrote, with its metrics.

    Args:
      path: path of a committed checkpoint.

    Raises:
      CheckpointError: `path` is not a checkpoint.
      CorruptCheckpointError: a file that it needs is damaged.
      OSError: a file cannot be read.
    """
    home = committer_of(path).home(path)
    if home is None:
        raise CheckpointError(f"{path} is not a committed checkpoint.")
    inside = Inside(stores.absolute(home))
    noted: digests.Digests | None = None
    account: Account | None = None
    if stores.is_file(os.path.join(inside.directory, digests.FILE)):
        noted, account = digests.read_with_account(inside)
    record: Mapping[str, Any] = {}
    if noted is not None and description.FILE in noted:
        content = _read(inside, description.FILE, path)
        digests.check(inside.directory, description.FILE, content, noted)
        record = description.read(os.path.join(inside.directory, description.FILE), content)
    return SaveFacts(_step(record, inside.directory), _metrics(inside, noted, path), account)


def _step(record: Mapping[str, Any], directory: str) -> int | None:
    step = record.get(description.STEP)
    if step is None:
        return None
    with damage(os.path.join(directory, description.FILE)):
        return as_int(step, description.STEP, -(1 << 63))


def _metrics(inside: Inside, noted: digests.Digests | None, path: str) -> Mapping[str, Any] | None:
    if noted is None:
        # Plain Orbax wrote the checkpoint.
        where = os.path.join(inside.directory, metrics.FILE)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), damage(where):
            return metrics.read(where, inside.read(metrics.FILE, bounds.NOTE_FILE_BYTES))
        return None
    if metrics.FILE not in noted:
        return None
    content = _read(inside, metrics.FILE, path)
    digests.check(inside.directory, metrics.FILE, content, noted)
    return metrics.read(os.path.join(inside.directory, metrics.FILE), content)


def _read(inside: Inside, name: str, path: str) -> bytes:
    """Returns the content of a file that the digests name."""
    where = os.path.join(inside.directory, name)
    with damage(where):
        try:
            return inside.read(name, bounds.NOTE_FILE_BYTES)
        except OSError as error:
            fault = faults.reading(error, where, path)
            raise fault from (None if fault is error else error)
