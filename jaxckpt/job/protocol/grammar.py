"""The table of messages: who may send which message when, on one connection. Any other message is an error of its sender.

When a connection is made, a *dialer* connects to a *listener*. At the beginning of a call of the job, the *leader* (process 0) talks to
its *members*, all other processes. Afterwards the *center*, which does the file access, talks to its *peers*, all other processes.

In each phase, a side sends the messages of `SAYS` of its own accord. If such a message is a request, the other side answers with the
message of `ANSWERS`, or with `Failed`. Answers come in the order of the requests.

The phases: every new connection begins with CONNECT. MEET follows on the connection to the leader. If another process is the center,
GATHER follows on the connection to that process. Then any number of WORK and EACH follow: one for each step of the call.
"""

import enum
from collections.abc import Mapping

from jaxckpt.job.protocol import meeting_messages as meet
from jaxckpt.job.protocol import messages as say
from jaxckpt.job.protocol.parts import Message


class Phase(enum.Enum):
    """The phases of a connection."""

    CONNECT = "both sides prove that they belong to the job"
    MEET = "the processes agree about the call"
    GATHER = "peers wait until all of them have connected to the center"
    WORK = "the center works, and asks peers for what it needs"
    EACH = "every process works, and peers ask the center for what they need"


class Side(enum.Enum):
    """The two sides of a connection: the process that others connect to, and one of the others."""

    LISTENER = "the listener, the leader, the center"
    DIALER = "a dialer, a member, a peer"


_Table = Mapping[Phase, Mapping[Side, tuple[type[Message], ...]]]

SAYS: _Table = {
    Phase.CONNECT: {
        Side.LISTENER: (meet.Hello, meet.Welcome),
        Side.DIALER: (meet.Proof,),
    },
    Phase.MEET: {
        Side.LISTENER: (meet.AskLines, meet.Agreed, say.Failed),
        Side.DIALER: (meet.Card,),
    },
    Phase.GATHER: {
        Side.LISTENER: (meet.Begun, say.Failed),
        Side.DIALER: (),
    },
    Phase.WORK: {
        Side.LISTENER: (
            *(say.Confirm, say.Decided, say.Failed),
            *(say.AskMemory, say.Fill, say.AskPieces, say.AskSmall, say.AskHostValues),
            *(say.AskState, say.Look, say.WritePart),
        ),
        Side.DIALER: (),
    },
    Phase.EACH: {
        Side.LISTENER: (say.Decided, say.Failed),
        Side.DIALER: (
            say.Vote,
            *(say.AskStored, say.AskInfos, say.AskTexts, say.Announce, say.AskBoxes),
            *(say.AskMemory, say.Put, say.Stream),
        ),
    },
}

ANSWERS: Mapping[type[Message], type[Message]] = {
    meet.AskLines: meet.Lines,
    say.Confirm: say.Done,
    say.AskMemory: say.Memory,
    say.Fill: say.Filled,
    say.AskPieces: say.Pieces,
    say.AskSmall: say.Pieces,
    say.AskHostValues: say.Hosts,
    say.AskState: say.State,
    say.Look: say.Seen,
    say.WritePart: say.Done,
    say.AskStored: say.Leaves,
    say.AskInfos: say.Infos,
    say.AskTexts: say.Texts,
    say.Announce: say.Shared,
    say.AskBoxes: say.Pieces,
    say.Put: say.Filled,
    say.Stream: say.Filled,
}

_ALL: tuple[type[Message], ...] = (
    # Both sides send it at any time, and the connection itself handles it.
    say.Beat,
    *(each for sides in SAYS.values() for said in sides.values() for each in said),
    *ANSWERS.values(),
)
MESSAGES: Mapping[str, type[Message]] = {each.__name__: each for each in _ALL}


def answers_to(request: Message) -> tuple[type[Message], ...]:
    """Returns the classes of messages that may answer a request.

    Args:
      request: the request.
    """
    return (ANSWERS[type(request)], say.Failed)
