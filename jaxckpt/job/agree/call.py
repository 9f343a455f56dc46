"""The description of a call, with which processes check that all of them make the same one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A call that a process is about to make. Unless it is the same on every process, all of them refuse it.

    Attributes:
      action: the method, such as "save".
      subject: the path that the caller passed, as it was spelled.
      center: index of the process that does the file access.
      timeout: most seconds of every wait.
      details: further values that must agree, by the names that error messages use.
    """

    action: str
    subject: str
    center: int
    timeout: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action}({self.subject!r})"

    def detail_texts(self) -> dict[str, str]:
        """Returns the details as texts, which are compared."""
        return {name: _text(value) for name, value in self.details.items()}


@dataclass(frozen=True)
class Contribution:
    """The information that a process adds to its call for a meeting. A *host leaf* is a leaf in the memory of one host.

    Attributes:
      digest: digest of the descriptions of all leaves: names, kinds, shapes, dtypes and shardings.
      leaves: returns name and description of every leaf. Called only if the digests of two processes differ.
      host_digest: digest of the contents of the host leaves.
      host_contents: returns name and digest of every host leaf. Called only if the host digests of two processes differ.
      facts: values that the center wants every process to know. Ignored on other processes.
    """

    digest: str = ""
    leaves: Callable[[], Sequence[tuple[str, str]]] = tuple
    host_digest: str = ""
    host_contents: Callable[[], Sequence[tuple[str, str]]] = tuple
    facts: Mapping[str, Any] = field(default_factory=dict)


def named(processes: Any) -> str:
    """Returns the beginning of a sentence that names processes.

    Args:
      processes: indices of the processes.
    """
    listed = sorted(processes)
    text = ", ".join(map(str, listed[:20])) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    return f"Process {text}" if len(listed) == 1 else f"Processes {text}"


def _text(value: Any) -> str:
    """Returns the text of a value. For a dataclass it is the text of its `repr`, but built without calling that `repr`.

    The `repr` of a dataclass keeps a list of the objects whose text it is building. An interrupt can leave an object in the list; from
    then on its text is "...".
    """
    if not is_dataclass(value) or isinstance(value, type):
        return str(value)
    told = (f"{each.name}={getattr(value, each.name)!r}" for each in fields(value) if each.repr)
    return f"{type(value).__qualname__}({', '.join(told)})"
