"""The state file `checkpoint` of a directory: lists its checkpoints, and names the latest.

The file is replaced atomically, and only after the checkpoint that it names was committed, so readers do not need a lock. Writers
read, change and replace it under `lock.update`. The file only adds an order to the checkpoints on disk: if it is lost, every
checkpoint can still be restored.
"""

from jaxckpt.directory.state_file.file import FILE, check, is_own, read, write
from jaxckpt.directory.state_file.records import Records, UnreadableStateError

__all__ = ["FILE", "Records", "UnreadableStateError", "check", "is_own", "read", "write"]
