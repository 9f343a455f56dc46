"""The content of a state file, in a form that is easy to change. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field


class UnreadableStateError(ValueError):
    """A state file does not hold what a state file holds.

    Attributes:
      version: generation of the object, if it lies in a bucket.
    """

    version: bytes | None = None


@dataclass
class Records:
    """The content of a state file, in a form that is easy to change.

    Names are relative to the directory of the file; absolute for what lies elsewhere.

    Attributes:
      entries: name → when it was registered (seconds since the epoch), oldest first; the last one is the latest
        checkpoint.
      kept: names of checkpoints that retention never deletes. One that is in `entries` as well leaves them without
        being deleted.
      last_preserved: registration time of the last checkpoint that `keep_checkpoint_every_n_hours` preserved; 0.0 for
        not known.
      borders: name before the number → of these checkpoints only what was committed after that time is adopted; the
        name "" stands for every name.
      version: generation of the object in a bucket that says so; None if there is none.
      unsealed: the file that says so does not end with a checksum: jaxckpt 0.1 wrote it, TensorFlow, or the user.
      edited: the user wrote or changed the file: its checksum is wrong, or it has no checksum and entries without times.
      tensorflow: names in the file that are TensorFlow's checkpoints. A file that names one is never replaced.
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
        """Makes `name` the latest. It is a new checkpoint, also where an older one of that name was kept."""
        self.entries.pop(name, None)
        self.entries[name] = timestamp
        self.kept.discard(name)

    def border(self, prefix: str) -> float:
        """Returns until when a checkpoint ``<prefix>-<number>`` must have been committed not to be adopted."""
        return max(self.borders.get("", -math.inf), self.borders.get(prefix, -math.inf))

    def raise_border(self, prefix: str, to: float) -> None:
        """Makes `border` of `prefix` at least `to`."""
        if to > self.border(prefix):
            self.borders[prefix] = to

    def forget(self, names: Collection[str]) -> None:
        """Takes names out of all lists."""
        self.entries = {name: at for name, at in self.entries.items() if name not in names}
        self.kept.difference_update(names)
