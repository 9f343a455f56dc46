"""TensorStore specs for the key-value store of a checkpoint directory: an OCDBT database, or one file for each key."""

import os
from typing import Any

from jaxckpt.storage import stores
from jaxckpt.storage.ocdbt.model import OCDBT_MANIFEST
from jaxckpt.storage.stores.servers import CONTEXT


def check_path(path: str) -> None:
    """Raises ValueError for a path that TensorStore cannot take, because it is not UTF-8 text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: TensorStore needs paths of UTF-8 text. Rename the directory.") from None


def base(directory: str) -> dict[str, Any]:
    """Returns the TensorStore spec of the files of `directory`."""
    return stores.store_of(directory).spec(directory)


def context(concurrency: int = 16) -> Any:
    """Returns a new TensorStore context. Saves do not share caches, and few files are written at once, to save memory.

    Args:
      concurrency: the largest number of files that are read or written at once.
    """
    import tensorstore as ts

    return ts.Context(
        {
            "file_io_concurrency": {"limit": concurrency},
            "data_copy_concurrency": {"limit": max(2, min(16, os.cpu_count() or 1))},
            **CONTEXT,
            "cache_pool": {"total_bytes_limit": 0},
            "cache_pool#ocdbt": {"total_bytes_limit": 64 << 20},
        }
    )


def ocdbt(directory: str, file_size: int) -> dict[str, Any]:
    """Returns the spec of a new OCDBT database, as Orbax configures it.

    Args:
      directory: directory of the database.
      file_size: a data file is closed once it has this many bytes.
    """
    return {
        "driver": "ocdbt",
        "base": base(directory),
        "config": {"compression": None, "manifest_kind": "single", "max_inline_value_bytes": 1024},
        "target_data_file_size": file_size,
        "cache_pool": "cache_pool#ocdbt",
    }


def is_ocdbt(directory: str) -> bool:
    """Whether a checkpoint directory holds an OCDBT database."""
    return stores.is_file(os.path.join(directory, OCDBT_MANIFEST))


def existing(directory: str) -> dict[str, Any]:
    """Returns the spec of the store of an existing checkpoint directory."""
    if is_ocdbt(directory):
        return {"driver": "ocdbt", "base": base(directory), "cache_pool": "cache_pool#ocdbt"}
    return base(directory)
