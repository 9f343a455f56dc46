"""The settings of a save, as plain values without Orbax."""

from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class WriteSettings:
    """The layout of arrays on disk, and the bounds of a write.

    Attributes:
      asynchronous: whether Orbax's asynchronous checkpointer drives the write.
      io_process: index of the process that does all file access; None if `experimental_io_device` does not choose one.
      compression: "zstd", or None for uncompressed chunks.
      chunk_byte_size: size of the largest chunk, in bytes before compression. A chunk is written, checksummed and read as a unit.
      target_data_file_size: a data file is closed once it has this many bytes.
      max_file_size: the largest size of a data file in bytes; None for no limit.
      memory_limit_bytes: the largest number of bytes that a write holds in memory besides the snapshot.
      timeout_secs: time limit of every wait, in seconds.
    """

    asynchronous: bool = False
    io_process: int | None = None
    compression: Literal["zstd"] | None = None
    chunk_byte_size: int = 16 * MIB
    target_data_file_size: int = 64 * MIB
    max_file_size: int | None = None
    memory_limit_bytes: int = 256 * MIB
    timeout_secs: float = 1200.0
