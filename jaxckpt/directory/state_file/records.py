"""The records of a state file: its content in a form that is easy to change. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field


class UnreadableStateError(ValueError):
    """The file is not a valid state file.

    Attributes:
      version: generation (version number) of the object, if the file lies in a bucket.
    """

    version: bytes | None = None


@dataclass
class Records:
    """The content of a state file, in a form that is easy to change.

    Names are relative to the directory of the file. Checkpoints elsewhere have absolute paths as names.

    Attributes:
      entries: the listed names, oldest first, each with the time of its registration (seconds since the epoch). The last one is
        the latest checkpoint.
      kept: names of checkpoints that retention never deletes. If such a name is in `entries` too, retention only removes it from
        there.
      last_preserved: registration time of the last checkpoint that `keep_checkpoint_every_n_hours` preserved; 0.0 if unknown.
      borders: by the part of the name before the number, a time (seconds since the epoch): only checkpoints committed after it are
        adopted. The key "" stands for every name.
      version: generation (version number) of the object from which the records were read; None outside of buckets, or if the
        object did not exist.
      unsealed: whether the file lacks the checksum at its end: jaxckpt 0.1, TensorFlow or the user wrote it.
      edited: whether the user wrote or changed the file: its checksum is wrong, or it lacks both a checksum and the times of its
        entries.
      tensorflow: names in the file that are TensorFlow checkpoints. A file with such names is never replaced.
    """

    entries: dict[str, float] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    last_preserved: float = 0.0
    borders: dict[str, float] = field(default_factory=dict)
    version: bytes | None = field(default=None, compare=False)
    unsealed: bool = field(default=False, compare=False)
    edited: bool = field(default=False, compare=False)
    tensorflow: list[str] = field(default_factory=list, compare=False)

    @property
    def latest(self) -> str | None:
        """The name of the latest checkpoint."""
        return next(reversed(self.entries), None)

    def add(self, name: str, timestamp: float) -> None:
        """Makes a new checkpoint the latest. An older one of the same name no longer counts as kept.

        Args:
          name: the checkpoint's name.
          timestamp: time of its registration, in seconds since the epoch.
        """
        self.entries.pop(name, None)
        self.entries[name] = timestamp
        self.kept.discard(name)

    def border(self, prefix: str) -> float:
        """Returns the time (seconds since the epoch) until which commits of ``<prefix>-<number>`` are not adopted; -inf if unset."""
        return max(self.borders.get("", -math.inf), self.borders.get(prefix, -math.inf))

    def raise_border(self, prefix: str, to: float) -> None:
        """Makes the border of a prefix at least a given time.

        Args:
          prefix: the part of the name before the number; "" for every name.
          to: the time, in seconds since the epoch.
        """
        if to > self.border(prefix):
            self.borders[prefix] = to

    def forget(self, names: Collection[str]) -> None:
        """Removes names from `entries` and `kept`."""
        self.entries = {name: at for name, at in self.entries.items() if name not in names}
        self.kept.difference_update(names)
