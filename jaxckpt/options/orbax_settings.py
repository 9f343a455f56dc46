"""`OrbaxSettings`: settings of Orbax beyond TensorFlow's options."""

from dataclasses import dataclass
from typing import Literal

from jaxckpt._lib.arguments import byte_count, mismatch, seconds
from jaxckpt.storage.settings import WriteSettings


@dataclass(frozen=True, kw_only=True)
class OrbaxSettings:
    """Settings of Orbax beyond TensorFlow's options. The defaults are the fastest values that were measured.

    Every combination of valid fields works. If `max_shard_size` or `memory_limit_bytes` is smaller than `chunk_byte_size`,
    chunks become smaller. ``print(jaxckpt.to_orbax(options))`` shows the resulting sizes.

    Attributes:
      timeout_secs: longest time in seconds for every wait of a save or restore, such as the wait for a process that does not join.
      exit_timeout_secs: how many seconds the program's exit waits for an asynchronous save before it gives up. Ctrl-C ends this
        wait earlier.
      compression: None (raw bytes) or "zstd". With zstd, float weights hardly shrink, and a save takes 2 to 4 times as long. It can be
        worthwhile for integers and sparse data.
      chunk_byte_size: largest size of a stored chunk in bytes, before compression; at least 16. Chunks are larger only if the parts of a
        divided array have extents, such as prime numbers, that would lead to many tiny chunks. A chunk is written, checksummed and
        read as a unit, several chunks in parallel.
      target_data_file_size: a data file is closed once it holds this many bytes. A larger chunk gets its own file.
      memory_limit_bytes: the largest number of bytes that a save holds in the background beyond the snapshot; at least 16. A restore reads
        arrays in steps of so many bytes, and hands them over to the devices; it never divides the part of one device.
      read_once_per_job: whether, in a job of several processes, one process reads what several want, and passes it on to the others.
        None decides by the place of the checkpoint: True in buckets and on disks of other machines (NFS, Lustre, FUSE, ...), where
        reading is slower than the connections between the processes; False on disks of this machine. With `experimental_io_device` it
        is always so.

    Raises:
      TypeError: a field has the wrong type (a bool is not a number).
      ValueError: a field is out of range; the message names the field.
    """

    timeout_secs: float = WriteSettings.timeout_secs
    exit_timeout_secs: float = 600.0
    compression: Literal["zstd"] | None = WriteSettings.compression
    chunk_byte_size: int = WriteSettings.chunk_byte_size
    target_data_file_size: int = WriteSettings.target_data_file_size
    memory_limit_bytes: int = WriteSettings.memory_limit_bytes
    read_once_per_job: bool | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_secs", "exit_timeout_secs"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        # A chunk holds at least one element, which has 16 bytes at most.
        for name, least in {"chunk_byte_size": 16, "target_data_file_size": 1, "memory_limit_bytes": 16}.items():
            object.__setattr__(self, name, byte_count(name, getattr(self, name), least))
        if self.read_once_per_job is not None and not isinstance(self.read_once_per_job, bool):
            raise mismatch(TypeError, "read_once_per_job", "True, False or None", repr(self.read_once_per_job))
        if self.compression not in (None, "zstd"):
            kind = ValueError if isinstance(self.compression, str) else TypeError
            raise mismatch(kind, "compression", 'None (no compression) or "zstd"', repr(self.compression))
