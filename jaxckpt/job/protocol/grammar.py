"""Who may say which message when, on one connection. A message that the table does not allow is an error of whoever said it.

A *listener* is called, a *caller* calls. As a call of the job begins, the *leader* (process 0) hears its *members*. Afterwards the
*center*, which does the file access, has *peers*. In a phase, each side says messages of its own accord (`SAYS`). A request among them
is answered by the message of `ANSWERS`, or by `Failed`, and answers come in the order of the requests.

The order of the phases: CONNECT on every new connection. On the one to the leader then MEET, and, if another process is the center, on
the one to that process GATHER. Then any number of WORK and EACH, as the steps of the call are.
"""

import enum
from collections.abc import Mapping

from jaxckpt.job.protocol import messages as say
from jaxckpt.job.protocol.parts import Message


class Phase(enum.Enum):
    """What is going on on a connection."""

    CONNECT = "proving who is who"
    MEET = "agreeing about the call"
    GATHER = "waiting until all have connected to the center"
    WORK = "the center works, and asks peers for what it needs"
    EACH = "every process works, and peers ask the center for what they need"


class Side(enum.Enum):
    """Who speaks: the process that others connect to, or one of those."""

    HUB = "the listener, the leader, the center"
    SPOKE = "a caller, a member, a peer"


_Table = Mapping[Phase, Mapping[Side, tuple[type[Message], ...]]]

SAYS: _Table = {
    Phase.CONNECT: {
        Side.HUB: (say.Hello, say.Welcome),
        Side.SPOKE: (say.Proof,),
    },
    Phase.MEET: {
        Side.HUB: (say.AskLines, say.Agreed, say.Failed),
        Side.SPOKE: (say.Card,),
    },
    Phase.GATHER: {
        Side.HUB: (say.Begun, say.Failed),
        Side.SPOKE: (),
    },
    Phase.WORK: {
        Side.HUB: (
            *(say.Confirm, say.Decided, say.Failed),
            *(say.AskMemory, say.AskConsent, say.Borrow, say.AskLent, say.AskPieces, say.AskHostValues),
            *(say.Look, say.WritePart),
        ),
        Side.SPOKE: (),
    },
    Phase.EACH: {
        Side.HUB: (say.Decided, say.Failed),
        Side.SPOKE: (
            say.Vote,
            *(say.AskStored, say.AskInfos, say.AskTexts, say.AskBoxes),
            *(say.AskSlots, say.Put, say.Stream),
        ),
    },
}

ANSWERS: Mapping[type[Message], type[Message]] = {
    say.AskLines: say.Lines,
    say.Confirm: say.Done,
    say.AskMemory: say.MemoryOffer,
    say.AskConsent: say.Done,
    say.Borrow: say.Lent,
    say.AskLent: say.Pieces,
    say.AskPieces: say.Pieces,
    say.AskHostValues: say.Hosts,
    say.Look: say.Seen,
    say.WritePart: say.Done,
    say.AskStored: say.Leaves,
    say.AskInfos: say.Infos,
    say.AskTexts: say.Texts,
    say.AskBoxes: say.Pieces,
    say.AskSlots: say.Slots,
    say.Put: say.Filled,
    say.Stream: say.Filled,
}

_ALL: tuple[type[Message], ...] = (
    # Said by everybody at any time, and heard by the connection itself.
    say.Beat,
    *(each for sides in SAYS.values() for said in sides.values() for each in said),
    *ANSWERS.values(),
)
MESSAGES: Mapping[str, type[Message]] = {each.__name__: each for each in _ALL}


def answers_to(request: Message) -> tuple[type[Message], ...]:
    """Returns what may be said in answer to a request."""
    return (ANSWERS[type(request)], say.Failed)
