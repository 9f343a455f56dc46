"""Writing files and directories to stable storage (fsync). Every error names the path."""

import os


def sync(descriptor: int, path: str) -> None:
    """Writes an open file to stable storage.

    Args:
      descriptor: the file's descriptor.
      path: the file's path, for the error.

    Raises:
      OSError: the write failed; has errno and the path.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = path
        raise


def sync_and_close(descriptor: int, path: str) -> None:
    """Writes a file to stable storage, and closes it even if that fails.

    Args:
      descriptor: the file's descriptor.
      path: the file's path, for the error.

    Raises:
      OSError: the write failed; has errno and the path.
    """
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)
