"""The building blocks of messages: the base classes, and the values that messages hold."""

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

Indices = tuple[int, ...]
# A leaf (BoxAt: its position in the tree; BoxOf: Orbax's name of it), and the first index and the extent of a box along each axis.
BoxAt = tuple[int, Indices, Indices]
BoxOf = tuple[str, Indices, Indices]
# What leaves have in common: the keys of their paths but the last (None: the path is empty), which of all keys are indices (bit 0 stands
# for the first), type of the value, note, implementation of PRNG keys.
GroupLine = tuple[tuple[str, ...] | None, int, str, str | None, str | None]
# Shape, dtype and chunk shape of an array.
InfoLine = tuple[Indices, str, Indices | None]


@dataclass(frozen=True)
class Message:
    """A message from one process to another.

    Attributes:
      with_bytes: whether the bytes of arrays follow the message.
    """

    with_bytes: ClassVar[bool] = False


Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class Request(Message, Generic[Answer]):
    """A message that the other process answers."""


@dataclass(frozen=True)
class Address:
    """The address at which a process listens, and the token that proves that a dialer belongs to the job."""

    host: str
    port: int
    token: str


@dataclass(frozen=True)
class Failure:
    """The description of an error of one process, from which the others build the error that they raise.

    See `jaxckpt.job.session.failures`.

    Attributes:
      process: index of the process that raised the error first.
      processes: indices of the processes that the error is about.
      about: whether the text names these processes already.
      kind: name of the builtin or jaxckpt class that a caller would catch; "" if there is none.
      text: the message of the error.
      errno: attribute of an OSError; otherwise None.
      strerror: attribute of an OSError; otherwise None.
      filename: attribute of an OSError; otherwise None.
      where: attribute of a CorruptCheckpointError; otherwise None.
      what: attribute of a CorruptCheckpointError; otherwise None.
      traceback: the traceback, as text.
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
    """Memory that a process shares with another one of its host. It consists of slots, one after the other.

    Attributes:
      pid: id of the process that shares it.
      fd: that process's file descriptor of the memory.
      proof: the bytes that follow the slots, in hexadecimal digits. The other process checks them, to be sure that it has opened the
        right file.
      count: number of slots.
      slot_bytes: bytes of each slot.
    """

    pid: int
    fd: int
    proof: str
    count: int
    slot_bytes: int
