"""Decompresses zstd frames of strangers: a frame never takes more memory than its caller allows."""

from typing import Any, Protocol

import numpy as np
import zstandard

from jaxckpt._lib.documents import DamagedError

_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK = 128 << 10
_READ_BYTES = 1 << 20


def decompress(frame: bytes, limit: int) -> bytes:
    """Returns the content of a single frame.

    Args:
      frame: the compressed frame.
      limit: the largest size of the content in bytes. It is compared with `largest_content`, which may be up to 128 KiB too large.

    Raises:
      DamagedError: this is not a single zstd frame, it is damaged, or its content may be larger than `limit`.
    """
    size = largest_content(frame)
    if size > limit:
        raise DamagedError(
            f"its {len(frame)} compressed bytes decompress to up to {size}, more than the limit of {limit}"
        )
    return _content(frame, size)


def decompress_exactly(frame: bytes, nbytes: int) -> bytes:
    """Returns the content of a single frame, which must have `nbytes` bytes. The frame need not say how many it has.

    Args:
      frame: the compressed frame.
      nbytes: size of the content in bytes; at least 1.

    Raises:
      DamagedError: this is not a single zstd frame, it is damaged, or its content has another size.
    """
    if frame[:4] != _MAGIC:
        raise DamagedError("its compressed content is not that of zstd")
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
    except zstandard.ZstdError as error:
        raise DamagedError("its compressed content is not readable") from error
    # Only a frame that does not claim a size may be decompressed to find it out: the library trusts a claimed size.
    if claimed not in (nbytes, zstandard.CONTENTSIZE_UNKNOWN):
        raise DamagedError(f"it decompresses to {claimed} bytes, expected {nbytes}")
    content = _content(frame, nbytes)
    if len(content) != nbytes:
        raise DamagedError(f"it decompresses to {len(content)} bytes, expected {nbytes}")
    return content


class Source(Protocol):
    """Compressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""


class Content:
    """The content of a single frame, decompressed part by part. It takes no more memory than the window of the frame, at most 128 MiB."""

    def __init__(self, source: Source) -> None:
        """Does not read yet.

        Args:
          source: the compressed bytes.
        """
        # The library needs no other method of a file.
        file: Any = source
        self._reader = zstandard.ZstdDecompressor().stream_reader(file, read_size=_READ_BYTES)

    def fill(self, target: np.ndarray) -> None:
        """Fills an array of uint8 with the next bytes. Raises DamagedError if the frame is damaged, or has fewer bytes."""
        done = 0
        while done < target.size:
            got = self._next(target[done:])
            if not got:
                raise DamagedError("it decompresses to fewer bytes than expected")
            done += got

    def end(self) -> None:
        """Raises DamagedError if the frame is damaged, or has more bytes."""
        if self._next(np.empty(1, np.uint8)):
            raise DamagedError("it decompresses to more bytes than expected")

    def _next(self, target: np.ndarray) -> int:
        try:
            got: int = self._reader.readinto(target.data)
        except zstandard.ZstdError as error:
            raise DamagedError("its compressed content is not readable") from error
        return got


def largest_content(frame: bytes) -> int:
    """Returns an upper bound for the size of a frame's content in bytes, from its headers. Raises DamagedError if it is not a frame."""
    if frame[:4] != _MAGIC or len(frame) < 6:
        raise DamagedError("its compressed content is not that of zstd")
    flags = frame[4]
    single, has_checksum = flags >> 5 & 1, flags >> 2 & 1
    size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if size_bytes:
        size = int.from_bytes(frame[at : at + size_bytes], "little")
        return size + 256 if size_bytes == 2 else size
    total = 0
    while at + 3 <= len(frame) - 4 * has_checksum:
        header = int.from_bytes(frame[at : at + 3], "little")
        kind, length = header >> 1 & 3, header >> 3
        # Kinds 0, 1 and 2 are raw, repeated and compressed blocks; kind 3 is reserved.
        if kind == 3:
            break
        total += _BLOCK if kind == 2 else length
        at += 3 + (1 if kind == 1 else length)
        if header & 1:
            return total
    raise DamagedError("its compressed content ends early")


def _content(frame: bytes, size: int) -> bytes:
    """Decompresses a frame. Its content has the size that it claims, or at most `size` bytes if it claims none."""
    try:
        # The library takes a size of 0 for "unknown". An empty frame still has to be a valid one.
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(1, size), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError("its compressed content is not readable") from error
