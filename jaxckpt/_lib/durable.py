"""Bringing files and directories to stable storage; an error names the path."""

import os


def sync(descriptor: int, path: str) -> None:
    """Brings an open file to stable storage.

    Args:
      descriptor: of the file.
      path: of the file, for the error.

    Raises:
      OSError: with errno and the path.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = path
        raise


def sync_and_close(descriptor: int, path: str) -> None:
    """Brings a file to stable storage, and closes it in any case. Arguments and errors as for `sync`."""
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)
