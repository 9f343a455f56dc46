"""crc32c checksums, and values followed by their checksum, as in zarr's codec "crc32c" and in OCDBT's nodes."""

from typing import Any

import google_crc32c
import numpy as np

BYTES = 4


def crc32c(content: bytes) -> int:
    """Returns the crc32c of `content`."""
    checksum: int = google_crc32c.value(content)
    return checksum


def extended(checksum: int, block: np.ndarray | bytes) -> int:
    """Returns the crc32c of the bytes so far and of the bytes that follow them.

    Args:
      checksum: crc32c of the bytes so far; 0 if there are none yet.
      block: the bytes that follow; an array must be contiguous and of uint8. They are not copied.
    """
    frozen: Any = block
    if isinstance(block, np.ndarray):
        # google_crc32c accepts read-only memory only.
        frozen = block.view()
        frozen.flags.writeable = False
    result: int = google_crc32c.extend(checksum, frozen)
    return result


def encoded(checksum: int) -> bytes:
    """Returns a checksum as the 4 bytes that are stored behind a value."""
    return checksum.to_bytes(BYTES, "little")


def sealed(content: bytes) -> bytes:
    """Returns `content`, followed by its checksum."""
    return content + crc32c(content).to_bytes(BYTES, "little")


def is_sealed(content: bytes, seal: bytes) -> bool:
    """Whether `seal` is the stored checksum of `content`."""
    return crc32c(content) == int.from_bytes(seal, "little") and len(seal) == BYTES
