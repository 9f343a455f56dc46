"""The states of objects, such as data iterators, of all processes. They belong to their process, so they may differ.

If all processes have the same state, it is stored once, as any host leaf. Otherwise the states of the processes besides process 0 are
stored as further leaves, at the same path below a first key that names the process (`PROCESS`).
"""

import base64
import dataclasses

from jaxckpt.job.plan import HOST_OWNER
from jaxckpt.job.protocol.messages import AskState, State
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.session import Answer
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.storage.item.content import ArrayContent, Entry, Snapshot
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.names import PROCESS, Key


class States:
    """Answers the center's questions for the states of this process."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Keeps the states of a snapshot.

        Args:
          snapshot: this process's part of the snapshot.
        """
        self._states = [state for _, state in snapshot.states]

    def answer(self, request: AskState) -> Answer:
        """Returns the answer to a question for one state."""
        state = self._states[request.number]
        if isinstance(state, bytes):
            return State(base64.b64encode(state).decode(), True), None
        return State(state, False), None


def complete(snapshot: Snapshot, session: Center) -> Snapshot:
    """Returns the snapshot with the states of all processes, where they differ.

    Args:
      snapshot: the center's part of the snapshot, with the state of process 0 among its entries.
      session: the session with the peers.

    Raises:
      ProcessError: a process failed or does not answer.
    """
    new: list[Entry] = []
    for number, (path, own) in enumerate(snapshot.states):
        answers = session.ask_all(AskState(number), "sending the state of an object")
        states = {process: _value(answer) for process, answer in answers.items()}
        states[session.process] = own
        if len(set(states.values())) == 1:
            continue
        for process in sorted(states.keys() - {HOST_OWNER}):
            below = (Key(f"{PROCESS}{process}"), *path)
            state = states[process]
            new.append(Entry(below, kind_of(state).take(Leaf(below, state), False)))
    if not new:
        return snapshot
    groups = snapshot.groups
    if groups is not None:
        # No two groups share a data file, and these belong to none.
        groups = (*groups, tuple(entry for entry in new if isinstance(entry.content, ArrayContent)))
    rest = snapshot.rest
    if rest is not None:
        rest = (*rest, *range(len(snapshot.entries), len(snapshot.entries) + len(new)))
    return dataclasses.replace(snapshot, entries=(*snapshot.entries, *new), groups=groups, rest=rest)


def _value(answer: State) -> str | bytes:
    return base64.b64decode(answer.text, validate=True) if answer.is_bytes else answer.text
