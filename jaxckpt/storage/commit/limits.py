"""Refuses a save that its settings cannot hold, before any file is made."""

import os

from jaxckpt.storage.arrays import kvstore
from jaxckpt.storage.item import description, digests, layout, strings, tree_metadata
from jaxckpt.storage.item.content import ArrayContent, Snapshot
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.settings import WriteSettings

# Names of a checkpoint's own files, which the directory of an array cannot have.
_FILES = {
    *(tree_metadata.FILE, strings.FILE, tree_metadata.SHARDINGS, tree_metadata.ARRAY_METADATAS, digests.FILE),
    *(OCDBT_MANIFEST, description.FILE, description.MARKER, "", ".", ".."),
}


def check(path: str, snapshot: Snapshot, settings: WriteSettings) -> None:
    """Refuses a snapshot that the settings cannot hold.

    Args:
      path: path of the checkpoint.
      snapshot: the snapshot to save.
      settings: how it will be written.

    Raises:
      ValueError: the path is not UTF-8 text; or, naming the leaf, one element is larger than a data file may be, or a key cannot be
        part of a file name.
    """
    kvstore.check_path(path)
    if settings.max_file_size is None:
        return
    for entry in snapshot.entries:
        if not isinstance(entry.content, ArrayContent):
            continue
        needed = entry.content.dtype.itemsize + layout.CHECKSUM_BYTES
        if needed > settings.max_file_size:
            raise ValueError(
                f"{entry.name}: one element and its checksum have {needed} bytes, more than max_shard_size={settings.max_file_size}. "
                "Choose a larger max_shard_size."
            )
        name = entry.param_name
        if not layout.uses_ocdbt(settings) and (
            "/" in name or "\0" in name or name in _FILES or len(os.fsencode(name)) > 255
        ):
            raise ValueError(
                f"{entry.name}: with max_shard_size={settings.max_file_size} every array gets files of its own, whose names "
                "cannot hold this leaf's path. Rename the key, or choose a max_shard_size of 64 MiB or more."
            )
