"""What messages are made of: their two kinds, and values that they hold."""

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

Indices = tuple[int, ...]
# A leaf by its position in the tree, or by Orbax's name; the first index and the extent of a box along each axis.
BoxAt = tuple[int, Indices, Indices]
BoxOf = tuple[str, Indices, Indices]
# Path (keys, and whether a key is an index), Orbax's name, type of the value, kind, implementation of PRNG keys.
LeafLine = tuple[tuple[tuple[str, bool], ...], str, str, str | None, str | None]
# Shape, dtype and shape of a chunk.
InfoLine = tuple[Indices, str, Indices | None]


@dataclass(frozen=True)
class Message:
    """What one process says to another.

    Attributes:
      with_bytes: whether the bytes of arrays follow.
    """

    with_bytes: ClassVar[bool] = False


Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class Request(Message, Generic[Answer]):
    """A message that is answered."""


@dataclass(frozen=True)
class Address:
    """Where a process listens, and the token that proves that a caller belongs to the job."""

    host: str
    port: int
    token: str


@dataclass(frozen=True)
class Failure:
    """An error of one process, as the others raise it; see `jaxckpt.job.session.failures`.

    Attributes:
      process: where it was raised first.
      processes: those that it is about.
      about: whether the text says already which processes it is about.
      kind: name of the builtin or jaxckpt class that a caller would catch; "" if there is none.
      text: its message.
      errno, strerror, filename: of an OSError; otherwise None.
      where, what: of a CorruptCheckpointError; otherwise None.
      traceback: of the process.
    """

    process: int
    processes: tuple[int, ...]
    about: bool
    kind: str
    text: str
    errno: int | None
    strerror: str | None
    filename: str | None
    where: str | None
    what: str | None
    traceback: str


@dataclass(frozen=True)
class SlotOffer:
    """What a peer needs to open the center's memory, and where in it are the slots, of `slot_bytes` each, that belong to the peer."""

    pid: int
    fd: int
    size: int
    proof: str
    at: int
    slot_bytes: int
