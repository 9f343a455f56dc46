"""Finds the directory of a checkpoint that holds its tree, or says why there is not a checkpoint at a path."""

import errno
import os
from collections.abc import Collection

from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import absent, foreign, orbax_runs, stores
from jaxckpt.storage.commit import checkpoints, in_flight, recognition
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.item import tree_metadata


def refuse_absent(path: str) -> None:
    """Raises FileNotFoundError if nothing is at a path; says whether a save of it runs, and where a broken link leads.

    Args:
      path: path of the checkpoint, for messages too.
    """
    if not committer_of(path).is_there(path):
        if (process := in_flight.saving(path)) is not None:
            raise FileNotFoundError(
                errno.ENOENT,
                f"Not committed yet: {process} is saving this checkpoint now. Wait for the save with sync(), or with "
                "checkpoints_iterator() in another program",
                path,
            )
        raise FileNotFoundError(errno.ENOENT, absent.nothing_there(path), path)
    if (target := foreign.broken_link(path)) is not None:
        what = f"This link leads to {target}, which does not exist: the checkpoint was deleted or moved. Pass one that exists"
        raise FileNotFoundError(errno.ENOENT, what, path)


def item_of(path: str, names: Collection[str] | None) -> orbax_runs.Item:
    """Returns the item that holds the tree: the checkpoint itself, or a directory in it.

    Args:
      path: path of the checkpoint, at which something is.
      names: names of the program's values, by which one of several items is chosen; None if they are not known.

    Raises:
      ValueError: the checkpoint has several items, and `names` do not say which one is meant.
      CheckpointError: something else than a checkpoint is at the path.
      CorruptCheckpointError: the metadata file of the tree is missing.
      OSError: the directory cannot be read.
    """
    if stores.is_local(path) and stores.is_directory(path):
        # If the directory may not be read, this raises OSError. Otherwise it would look like a missing checkpoint.
        stores.names(path)
    if not recognition.is_temporary(path):
        found = checkpoints.item_directories(path)
        if found:
            return orbax_runs.choose(path, found, names)
    recognised = foreign.describe(path)
    if recognised is None and stores.is_directory(path) and checkpoints.is_checkpoint(path):
        raise CorruptCheckpointError.at(
            os.path.join(path, tree_metadata.FILE),
            "this file of the checkpoint is missing. Restore another checkpoint.",
        )
    if committer_of(path).in_place and not checkpoints.is_checkpoint(path):
        raise CheckpointError(f"{path} is not a committed Orbax checkpoint: it has no commit_success.txt.")
    raise CheckpointError(f"{path} is not an Orbax checkpoint: {recognised or f'it has no {tree_metadata.FILE}.'}")
