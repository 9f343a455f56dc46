"""crc32c checksums, and values followed by their checksum, as in zarr's codec "crc32c" and in OCDBT's nodes."""

import ctypes
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import google_crc32c
import numpy as np

BYTES = 4
# The crc32c of any content that is followed by its own crc32c, and of no other: so it is with every CRC.
_OF_SEALED = 0x48674BC7
# For fewer bytes, the call through ctypes takes longer than the checksum.
_NATIVE_BYTES = 64 << 10


def _native() -> Callable[[int, int, int], int] | None:
    """Returns the function that `google_crc32c` calls, of the C library that it brings. None if it is not there.

    It takes a checksum, an address and a number of bytes. `google_crc32c` keeps Python's lock while it computes the checksum of an array,
    so that all other Python threads wait, the program's too. `ctypes` lets the lock go.
    """
    try:
        function = ctypes.CDLL(importlib.import_module("google_crc32c._crc32c").__file__).crc32c_extend
    except (ImportError, OSError, AttributeError, TypeError):
        # Another version, or one in pure Python.
        return None
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    probe = np.arange(256, dtype=np.uint8)
    if function(7, probe.ctypes.data, probe.size) != google_crc32c.extend(7, probe.tobytes()):
        return None
    return function


_native_extend = _native()


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
        if _native_extend is not None and block.nbytes >= _NATIVE_BYTES and block.flags.c_contiguous:
            return _native_extend(checksum, block.ctypes.data, block.nbytes)
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
    return len(seal) == BYTES and bool(google_crc32c.value(content) == int.from_bytes(seal, "little"))


def are_sealed(values: Iterable[bytes]) -> bool:
    """Whether each of thousands of values is a content followed by its checksum. All of them are longer than a checksum."""
    return set(map(google_crc32c.value, values)) <= {_OF_SEALED}
