"""The messages with which processes connect, meet and agree. `jaxckpt.job.protocol.grammar` tells who may send which message when."""

from dataclasses import dataclass
from typing import Any

from jaxckpt.job.protocol.parts import Address, Failure, Message, Request


@dataclass(frozen=True)
class Hello(Message):
    """The listener's challenge to a dialer."""

    nonce: str


@dataclass(frozen=True)
class Proof(Message):
    """The dialer's answer to the challenge, which proves that it knows the token; and its own challenge (`nonce`)."""

    process: int
    nonce: str
    mac: str


@dataclass(frozen=True)
class Welcome(Message):
    """The listener's proof that it knows the token too."""

    mac: str


@dataclass(frozen=True)
class Card(Message):
    """A member tells the leader which call it makes: texts that must agree, digests of all descriptions and of the contents of host leaves.

    The center adds its address, and facts for every process. A member that cannot take part adds the reason (`failure`).
    """

    call: dict[str, Any]
    digest: str
    hosts: str
    facts: dict[str, Any]
    address: Address | None
    failure: Failure | None


@dataclass(frozen=True)
class Lines(Message):
    """Pairs of the name of a leaf and a text; the leader compares the texts."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AskLines(Request[Lines]):
    """The leader asks for the description of every leaf or, if `contents`, for the digest of the content of every host leaf."""

    contents: bool


@dataclass(frozen=True)
class Agreed(Message):
    """All processes have come and make the same call. Has the center's facts and address, and warnings that every process issues."""

    facts: dict[str, Any]
    address: Address | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Begun(Message):
    """A center that is not the leader tells its peers that all of them have connected."""
