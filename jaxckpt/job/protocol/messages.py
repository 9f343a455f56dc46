"""The messages that processes exchange when they have met. `jaxckpt.job.protocol.grammar` tells who may send which message when.

`jaxckpt.job.protocol.meeting_messages` has those before.

Messages hold text and numbers only. The bytes of arrays follow a message whose `with_bytes` is true.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxckpt.job.protocol.parts import BoxAt, BoxOf, Failure, GroupLine, InfoLine, Message, Request, SlotOffer


@dataclass(frozen=True)
class Done(Message):
    """The request has been carried out."""


@dataclass(frozen=True)
class Beat(Message):
    """A heartbeat: the sender is alive. Any process may send it at any time, but only the center does. It is not answered."""


@dataclass(frozen=True)
class Failed(Message):
    """The call, or a request, has failed."""

    failure: Failure


@dataclass(frozen=True)
class Decided(Message):
    """The work of the center, or the step of all processes, has succeeded. The result is a JSON value."""

    result: Any


@dataclass(frozen=True)
class Vote(Message):
    """A peer tells whether it succeeded in a step that every process does for itself: `failure` is None, or the error."""

    failure: Failure | None


@dataclass(frozen=True)
class Confirm(Request[Done]):
    """The center asks whether a peer is still there, before a step that cannot be undone (the commit)."""


@dataclass(frozen=True)
class Pieces(Message):
    """The requested bytes follow."""

    with_bytes: ClassVar[bool] = True


@dataclass(frozen=True)
class AskPieces(Request[Pieces]):
    """The center asks a peer for boxes of its snapshot. The peer frees a piece when all of it has been sent."""

    boxes: tuple[BoxAt, ...]


@dataclass(frozen=True)
class AskSmall(Request[Pieces]):
    """The center asks a peer for its small pieces from the number `first` on: `count` of them, in the order of the leaves.

    `first_box` and `last_box` are the first and the last of them, by which the peer sees that both sides mean the same pieces.
    """

    first: int
    count: int
    first_box: BoxAt
    last_box: BoxAt


@dataclass(frozen=True)
class Hosts(Message):
    """A page of host leaves: texts, by position; shape and dtype of leaves whose form depends on the value; the next page's position."""

    texts: tuple[tuple[int, str], ...]
    forms: tuple[tuple[int, tuple[int, ...], str], ...]
    next: int | None


@dataclass(frozen=True)
class AskHostValues(Request[Hosts]):
    """The center asks process 0 for its host leaves, beginning at a position in the tree."""

    position: int


@dataclass(frozen=True)
class State(Message):
    """The state of an object as a text; bytes are in base64."""

    text: str
    is_bytes: bool


@dataclass(frozen=True)
class AskState(Request[State]):
    """The center asks a peer for the state of one of its objects, such as a data iterator: that with this number in the tree."""

    number: int


@dataclass(frozen=True)
class Memory(Message):
    """The memory that a process shares with the one that asked, for the bytes that it has; None if it has no such memory."""

    offer: SlotOffer | None


@dataclass(frozen=True)
class AskMemory(Request[Memory]):
    """A process asks the one that has the bytes (in a save a peer, in a restore the center) for memory that both can use."""


@dataclass(frozen=True)
class Filled(Message):
    """So many bytes have been put into the slot."""

    nbytes: int


@dataclass(frozen=True)
class Fill(Request[Filled]):
    """The center asks a peer to put bytes of a box of its snapshot into a slot: those from `first` up to, but without, `last`.

    The bytes of a box are asked for one after the other, in one slot.
    """

    slot: int
    box: BoxAt
    first: int
    last: int


@dataclass(frozen=True)
class Seen(Message):
    """The peer tells whether it sees the mark."""

    seen: bool


@dataclass(frozen=True)
class Look(Request[Seen]):
    """The center asks a peer to look for its mark: a file at `path` that contains `token`. The peer looks for at most `secs` seconds."""

    path: str
    token: str
    secs: float


@dataclass(frozen=True)
class WritePart(Request[Done]):
    """The center asks a peer to write its part of the item at a path. The token tells the save from a later one at this path."""

    path: str
    token: str


@dataclass(frozen=True)
class Leaves(Message):
    """A page of the leaves of the checkpoint; the next page's position (None: it was the last); on the first page, the save's record; how
    many leaves there are on all pages: what comes after them are other names for some of them.

    For each leaf the last key of its path. The rest is told once for leaves that have it in common: `runs` holds, for leaves that follow
    each other, the number of their group and how many there are, in turn. Orbax's name of a leaf consists of its keys, joined by dots;
    those that do not are in `names`, by position in the page. See `jaxckpt.job.modes.descriptions`.
    """

    keys: tuple[str, ...]
    groups: tuple[GroupLine, ...]
    runs: tuple[int, ...]
    names: tuple[tuple[int, str], ...]
    next: int | None
    record: dict[str, Any]
    count: int


@dataclass(frozen=True)
class AskStored(Request[Leaves]):
    """A peer asks for the leaves of the checkpoint, beginning at a position."""

    position: int


@dataclass(frozen=True)
class Infos(Message):
    """Shapes, dtypes and chunk shapes of array leaves: those that there are; and which of them so many leaves in a row have, in turn."""

    forms: tuple[InfoLine, ...]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class AskInfos(Request[Infos]):
    """A peer asks for the shapes and dtypes of array leaves, by runs of their positions in the tree."""

    runs: tuple[int, ...]


@dataclass(frozen=True)
class Texts(Message):
    """Values of str leaves, by Orbax's name."""

    texts: dict[str, str]


@dataclass(frozen=True)
class AskTexts(Request[Texts]):
    """A peer asks for the values of str leaves, by Orbax's names."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Shared(Message):
    """Which parts the center reads for several processes: lengths of runs, in turn of those that it does not and does. `Announce.small`."""

    runs: tuple[int, ...]
    small: tuple[int, ...]


@dataclass(frozen=True)
class Announce(Request[Shared]):
    """A peer tells the boxes that it wants of a group of leaves, and runs of very small arrays. Answered when every process has told it."""

    boxes: tuple[BoxOf, ...]
    small: tuple[int, ...]


@dataclass(frozen=True)
class AskBoxes(Request[Pieces]):
    """A peer asks for boxes of stored arrays."""

    boxes: tuple[BoxOf, ...]


@dataclass(frozen=True)
class Put(Request[Filled]):
    """A peer asks the center to put boxes into a slot, one after the other."""

    slot: int
    boxes: tuple[BoxOf, ...]


@dataclass(frozen=True)
class Stream(Request[Filled]):
    """A peer asks the center to put the next bytes of a large box into a slot: those from `first` up to, but without, `last`."""

    slot: int
    box: BoxOf
    first: int
    last: int
