"""crc32c, and values that their checksum follows, as in zarr's codec of that name and in OCDBT's nodes."""

from typing import Any

import google_crc32c
import numpy as np

BYTES = 4


def crc32c(content: bytes) -> int:
    """Returns the crc32c of bytes."""
    checksum: int = google_crc32c.value(content)
    return checksum


def extended(checksum: int, block: np.ndarray) -> int:
    """Returns the crc32c of what has been read so far and of the bytes that follow it.

    Args:
      checksum: of what came before; 0 for nothing.
      block: contiguous bytes, of uint8. Nothing is copied.
    """
    # google_crc32c refuses what can be written to.
    frozen: Any = block.view()
    frozen.flags.writeable = False
    result: int = google_crc32c.extend(checksum, frozen)
    return result


def encoded(checksum: int) -> bytes:
    """Returns a checksum as it is stored behind a value."""
    return checksum.to_bytes(BYTES, "little")


def sealed(content: bytes) -> bytes:
    """Returns `content`, followed by its checksum."""
    return content + crc32c(content).to_bytes(BYTES, "little")


def is_sealed(content: bytes, seal: bytes) -> bool:
    """Whether `seal` is the stored checksum of `content`."""
    return crc32c(content) == int.from_bytes(seal, "little") and len(seal) == BYTES
