"""What a process is about to do, as the others have to know it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """What a process is about to do. The same on every process, or none of them does it.

    Attributes:
      action: the method, such as "save".
      subject: what it is called with, as the caller wrote it: a path.
      center: index of the process that does the file access.
      timeout: bound in seconds for every wait.
      details: whatever else must agree, by the name that a message should use.
    """

    action: str
    subject: str
    center: int
    timeout: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action}({self.subject!r})"

    def detail_texts(self) -> dict[str, str]:
        """Returns the details as they are compared."""
        return {name: _text(value) for name, value in self.details.items()}


@dataclass(frozen=True)
class Contribution:
    """What a process brings to a meeting besides the call itself.

    Attributes:
      digest: of the tree: names, kinds, shapes, dtypes and shardings.
      leaves: name and description of every leaf, asked for only where digests differ.
      host_digest: of the contents of host leaves.
      host_contents: name and digest of every host leaf, asked for only where they differ.
      facts: what the center tells everyone; of no meaning on the others.
    """

    digest: str = ""
    leaves: Callable[[], Sequence[tuple[str, str]]] = tuple
    host_digest: str = ""
    host_contents: Callable[[], Sequence[tuple[str, str]]] = tuple
    facts: Mapping[str, Any] = field(default_factory=dict)


def named(processes: Any) -> str:
    """Returns processes in words, as the beginning of a sentence."""
    listed = sorted(processes)
    text = ", ".join(map(str, listed[:20])) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    return f"Process {text}" if len(listed) == 1 else f"Processes {text}"


def _text(value: Any) -> str:
    """Returns the text of a value: for a dataclass what its `repr` says, without the `repr`.

    That one keeps a list of what it is in the middle of. An interrupt can leave an object on it, which is "..." from then on.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return str(value)
    told = (f"{each.name}={getattr(value, each.name)!r}" for each in fields(value) if each.repr)
    return f"{type(value).__qualname__}({', '.join(told)})"
