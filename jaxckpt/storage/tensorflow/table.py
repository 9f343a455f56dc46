"""Parses a table of LevelDB, in which TensorFlow stores the index of a checkpoint. Pure.

A table is a sequence of blocks of sorted keys and values. Each block is followed by a byte for its compression and a masked crc32c. The
last 48 bytes tell where the block is that lists all other blocks.
"""

from collections.abc import Iterator

from jaxckpt._lib import bounds, checksum
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.tensorflow.wire import varint

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
# Behind each block: its compression, and its crc32c.
_TRAILER_BYTES = 5
_COMPRESSIONS = {1: "snappy", 2: "zstd"}
_PART_BYTES = 64
_MASK_DELTA = 0xA282EAD8


def masked(crc: int) -> int:
    """Returns the number that LevelDB and TensorFlow store for a crc32c.

    Args:
      crc: the crc32c.
    """
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFF_FFFF


def entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table, in the order of the keys.

    Args:
      content: content of the file.

    Raises:
      DamagedError: the content is not an undamaged table.
    """
    if content[-len(MAGIC) :] != MAGIC or len(content) < _FOOTER_BYTES:
        raise DamagedError("it does not end as a table of LevelDB does, so it is cut off or something else")
    footer = content[-_FOOTER_BYTES:]
    budget = _Budget(len(content))
    offset, at = varint(footer, 0)
    size, at = varint(footer, at)
    # This block is empty in files of TensorFlow's, so only its checksum matters.
    for _ in _block(content, offset, size, budget):
        continue
    offset, at = varint(footer, at)
    size, at = varint(footer, at)
    if any(footer[at : -len(MAGIC)]):
        raise DamagedError("its end is damaged")
    last: bytes | None = None
    # Each block of the file is read once at most, so a table cannot be larger in memory than `budget` allows.
    end = 0
    for _, handle in _block(content, offset, size, budget):
        offset, at = varint(handle, 0)
        size, _ = varint(handle, at)
        if offset < end:
            raise DamagedError("its blocks overlap")
        end = offset + size
        for key, value in _block(content, offset, size, budget):
            if last is not None and key <= last:
                raise DamagedError("its keys are not sorted")
            last = key
            yield key, value


class _Budget:
    """The number of bytes that keys may still take. Keys share prefixes on disk, so they are larger in memory."""

    def __init__(self, nbytes: int) -> None:
        self._left = bounds.EXPANDED_KEY_BYTES + bounds.EXPANDED_KEY_RATIO * nbytes

    def take(self, key: bytes) -> None:
        # Each part of a name becomes an object.
        self._left -= len(key) + _PART_BYTES * key.count(b"/")
        if len(key) > bounds.KEY_BYTES or self._left < 0:
            raise DamagedError("its keys are too long")


def _block(content: bytes, offset: int, size: int, budget: _Budget) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of one block.

    Args:
      content: content of the file.
      offset: first byte of the block.
      size: number of its bytes, without those behind it.
      budget: bounds the size of all keys.
    """
    if offset + size + _TRAILER_BYTES > len(content) or size < 4:
        raise DamagedError("a block lies outside of it")
    block, kind = content[offset : offset + size], content[offset + size]
    stored = int.from_bytes(content[offset + size + 1 : offset + size + _TRAILER_BYTES], "little")
    if stored != masked(checksum.crc32c(content[offset : offset + size + 1])):
        raise DamagedError("the checksum of a block does not match")
    if kind:
        name = _COMPRESSIONS.get(kind, f"number {kind}")
        raise DamagedError(
            f"its blocks are compressed ({name}), which TensorFlow never does in a checkpoint of its V2 format"
        )
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise DamagedError("a block has more restart points than bytes")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise DamagedError("an entry reaches behind the end of its block")
        key = key[:shared] + block[at : at + own]
        budget.take(key)
        at += own
        yield key, block[at : at + length]
        at += length
