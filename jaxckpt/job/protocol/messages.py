"""All messages that processes exchange. `jaxckpt.job.protocol.grammar` says who may say which of them when.

Messages hold text and numbers only. The bytes of arrays follow a message whose `with_bytes` is true.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxckpt.job.protocol.parts import Address, BoxAt, BoxOf, Failure, InfoLine, LeafLine, Message, Request, SlotOffer


@dataclass(frozen=True)
class Done(Message):
    """What was asked for has been done."""


@dataclass(frozen=True)
class Beat(Message):
    """The sender is alive. Everybody may say so at any time; nobody answers."""


@dataclass(frozen=True)
class Hello(Message):
    """The listener's challenge."""

    nonce: str


@dataclass(frozen=True)
class Proof(Message):
    """The caller's answer to the challenge, which proves that it knows the token, and its own challenge."""

    process: int
    nonce: str
    mac: str


@dataclass(frozen=True)
class Welcome(Message):
    """The listener's proof that it knows the token too."""

    mac: str


@dataclass(frozen=True)
class Card(Message):
    """What a member is about to do: texts that must agree, by the name that a message should use; digests of the tree and of host leaves.

    The center adds the facts that it will tell everyone, and where it listens. A member that cannot take part says why.
    """

    call: dict[str, Any]
    digest: str
    hosts: str
    facts: dict[str, Any]
    address: Address | None
    failure: Failure | None


@dataclass(frozen=True)
class Lines(Message):
    """Names of leaves and what is to be compared of them."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AskLines(Request[Lines]):
    """Asks for the description of every leaf, or, with `contents`, for the digest of the content of every host leaf."""

    contents: bool


@dataclass(frozen=True)
class Agreed(Message):
    """All are there and mean the same. With the center's facts and address, and warnings that every process issues."""

    facts: dict[str, Any]
    address: Address | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Begun(Message):
    """All have connected to a center that is not the leader."""


@dataclass(frozen=True)
class Failed(Message):
    """The call, or a request, has failed."""

    failure: Failure


@dataclass(frozen=True)
class Decided(Message):
    """What the center did has succeeded; its result is a value of JSON."""

    result: Any


@dataclass(frozen=True)
class Vote(Message):
    """How a peer fared in a step that every process does for itself."""

    failure: Failure | None


@dataclass(frozen=True)
class Confirm(Request[Done]):
    """Asks whether a peer is still there, before a step that cannot be taken back."""


@dataclass(frozen=True)
class Pieces(Message):
    """The bytes that were asked for follow."""

    with_bytes: ClassVar[bool] = True


@dataclass(frozen=True)
class AskPieces(Request[Pieces]):
    """Asks a peer for boxes of its snapshot, which it lets go of."""

    boxes: tuple[BoxAt, ...]


@dataclass(frozen=True)
class Hosts(Message):
    """Host leaves: texts by position; shape and dtype of values whose form is part of the value; the next position, or None."""

    texts: tuple[tuple[int, str], ...]
    forms: tuple[tuple[int, tuple[int, ...], str], ...]
    next: int | None


@dataclass(frozen=True)
class AskHostValues(Request[Hosts]):
    """Asks process 0 for its host leaves, from a position on."""

    position: int


@dataclass(frozen=True)
class MemoryOffer(Message):
    """The peer's process id, and where in its memory there is something that proves that it is the right process."""

    pid: int
    at: int
    proof: str


@dataclass(frozen=True)
class AskMemory(Request[MemoryOffer]):
    """Asks a peer on the same host how to read its memory."""


@dataclass(frozen=True)
class AskConsent(Request[Done]):
    """Asks a peer to allow a process, by its id, to read its memory."""

    pid: int


@dataclass(frozen=True)
class Lent(Message):
    """Where in the peer's memory the bytes are, and how many."""

    at: int
    nbytes: int


@dataclass(frozen=True)
class Borrow(Request[Lent]):
    """Asks a peer to keep a box in its memory, under a number, and to let go of others, which have been read."""

    number: int
    box: BoxAt
    back: tuple[int, ...]


@dataclass(frozen=True)
class AskLent(Request[Pieces]):
    """Asks for a range of the bytes of what a peer keeps, where its memory cannot be read any more."""

    number: int
    first: int
    last: int


@dataclass(frozen=True)
class Seen(Message):
    """Whether the peer sees the mark."""

    seen: bool


@dataclass(frozen=True)
class Look(Request[Seen]):
    """Asks a peer to look for a mark with this content, for at most so many seconds."""

    path: str
    token: str
    secs: float


@dataclass(frozen=True)
class WritePart(Request[Done]):
    """Asks a peer to write its part of the item at a path."""

    path: str


@dataclass(frozen=True)
class Leaves(Message):
    """Leaves of the checkpoint, the position of the next one (None: that was all), and, on the first page, its record."""

    leaves: tuple[LeafLine, ...]
    next: int | None
    record: dict[str, Any]


@dataclass(frozen=True)
class AskStored(Request[Leaves]):
    """Asks the center for leaves of the checkpoint, from a position on."""

    position: int


@dataclass(frozen=True)
class Infos(Message):
    """Shape, dtype and chunks of array leaves, by Orbax's name."""

    infos: dict[str, InfoLine]


@dataclass(frozen=True)
class AskInfos(Request[Infos]):
    """Asks the center about array leaves, by Orbax's name."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Texts(Message):
    """Values of str leaves, by Orbax's name."""

    texts: dict[str, str]


@dataclass(frozen=True)
class AskTexts(Request[Texts]):
    """Asks the center for str leaves, by Orbax's name."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class AskBoxes(Request[Pieces]):
    """Asks the center for boxes of stored arrays."""

    boxes: tuple[BoxOf, ...]


@dataclass(frozen=True)
class Slots(Message):
    """The peer's slots; None if this system has none."""

    offer: SlotOffer | None


@dataclass(frozen=True)
class AskSlots(Request[Slots]):
    """Asks a center on the same host for memory that both can use."""


@dataclass(frozen=True)
class Filled(Message):
    """So many bytes are in the slot."""

    nbytes: int


@dataclass(frozen=True)
class Put(Request[Filled]):
    """Asks the center to put boxes into a slot, one after the other."""

    slot: int
    boxes: tuple[BoxOf, ...]


@dataclass(frozen=True)
class Stream(Request[Filled]):
    """Asks the center to put the next bytes of a large box, a range of them, into a slot."""

    slot: int
    box: BoxOf
    first: int
    last: int
