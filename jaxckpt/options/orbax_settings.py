"""`OrbaxSettings`: settings of Orbax beyond TensorFlow's options."""

from dataclasses import dataclass
from typing import Literal

from jaxckpt._lib.arguments import byte_count, mismatch, seconds
from jaxckpt.storage.settings import WriteSettings


@dataclass(frozen=True, kw_only=True)
class OrbaxSettings:
    """Settings of Orbax beyond TensorFlow's options. The defaults are the best that were measured.

    Every combination of valid fields works: where `max_shard_size` or `memory_limit_bytes` leaves no room for a chunk
    of `chunk_byte_size`, chunks are smaller. ``print(jaxckpt.to_orbax(options))`` shows the sizes that result.

    Attributes:
      timeout_secs: bound in seconds for every wait of a save or restore, also for processes that do not join.
      exit_timeout_secs: how many seconds the end of the program waits for an asynchronous save before it gives up. Ctrl-C
        gives up earlier.
      compression: None (raw bytes) or "zstd". Float weights hardly shrink, and take 2 to 4 times as long; integers and
        sparse data can be worth it.
      chunk_byte_size: largest stored chunk in bytes, before compression; at least 16 (exceeded only where the parts of a divided array
        have extents, such as prime numbers, that would make many tiny chunks). A chunk is written, checksummed
        and read as a unit, several of them in parallel.
      target_data_file_size: a data file is closed once it holds this many bytes; a larger chunk gets a file of its own.
      memory_limit_bytes: most bytes that the background of a save holds beyond the snapshot; at least 16.

    Raises:
      TypeError: a field of a wrong type (a bool is not a number).
      ValueError: a field out of range; the message names it.
    """

    timeout_secs: float = WriteSettings.timeout_secs
    exit_timeout_secs: float = 600.0
    compression: Literal["zstd"] | None = WriteSettings.compression
    chunk_byte_size: int = WriteSettings.chunk_byte_size
    target_data_file_size: int = WriteSettings.target_data_file_size
    memory_limit_bytes: int = WriteSettings.memory_limit_bytes

    def __post_init__(self) -> None:
        for name in ("timeout_secs", "exit_timeout_secs"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        # A chunk holds at least one element, which has 16 bytes at most.
        for name, least in {"chunk_byte_size": 16, "target_data_file_size": 1, "memory_limit_bytes": 16}.items():
            object.__setattr__(self, name, byte_count(name, getattr(self, name), least))
        if self.compression not in (None, "zstd"):
            kind = ValueError if isinstance(self.compression, str) else TypeError
            raise mismatch(kind, "compression", 'None (no compression) or "zstd"', repr(self.compression))
