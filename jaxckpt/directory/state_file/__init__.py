"""The file `checkpoint`: which checkpoints of a directory there are, and which is the latest.

It is replaced atomically, always after the checkpoint that it names was committed, so a reader needs no lock; changing
it means to read, change and write under `lock.update`. It only adds an order to what is on disk: losing it loses no
checkpoint.
"""

from jaxckpt.directory.state_file.file import FILE, check, is_own, read, write
from jaxckpt.directory.state_file.records import Records, UnreadableStateError

__all__ = ["FILE", "Records", "UnreadableStateError", "check", "is_own", "read", "write"]
