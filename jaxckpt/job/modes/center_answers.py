"""Restoring with an IO process, its side: it opens the checkpoint, and answers the requests of its peers."""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxckpt._lib.boxes import slices_of
from jaxckpt.job.modes import bundles
from jaxckpt.job.modes.descriptions import infos_message, leaves_message
from jaxckpt.job.modes.local_answers import LocalAnswers
from jaxckpt.job.modes.remote import PAGE, runs_of
from jaxckpt.job.modes.shared_reads import SharedReads
from jaxckpt.job.modes.wanted import BoxKey
from jaxckpt.job.protocol.messages import (
    Announce,
    AskBoxes,
    AskInfos,
    AskMemory,
    AskStored,
    AskTexts,
    Pieces,
    Put,
    Shared,
    Stream,
    Texts,
)
from jaxckpt.job.protocol.parts import Message, Request
from jaxckpt.job.session.session import Answer, PeerHandlers
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.source import OpenCheckpoint

# The size of a bundle is in its key.
_BUNDLE = ArrayInfo((), np.dtype(np.uint8), ())
# Most bytes of answers that are being read or sent.
_ANSWER_BYTES = 64 << 20
# Most descriptions that are kept for other peers. Each describes at most `PAGE` leaves.
_DESCRIPTIONS = 8

_Asked = TypeVar("_Asked", bound=Request[Any])


class CenterAnswers:
    """The IO process's side: answers the requests of its peers about an open checkpoint."""

    def __init__(self, stored: OpenCheckpoint, reads: SharedReads, local_peers: Sequence[int] = ()) -> None:
        """Prepares the answers.

        Args:
          stored: the open checkpoint.
          reads: reads what several processes want.
          local_peers: indices of the peers that are on this host.
        """
        self._stored = stored
        self._reads = reads
        self._local = LocalAnswers(stored, local_peers)
        self._by_name = stored.tree.by_name
        # A leaf with several names comes several times; the first time under its own.
        self._lines = (*stored.tree.leaves, *stored.tree.aliases)
        # The answers that describe the checkpoint, by request, and the lock for making one. Peers ask for the same at the same time.
        self._descriptions: dict[Request[Any], Message] = {}
        self._describing = threading.Lock()
        self._changed = threading.Condition()
        # Bytes of the answer that is being read or sent, by peer.
        self._granted: dict[int, int] = {}

    def handlers(self) -> PeerHandlers:
        """Returns the functions that answer the requests of the peers."""
        return {
            AskStored: functools.partial(self._once, self._leaves),
            AskInfos: functools.partial(self._once, self._infos),
            AskTexts: self._texts,
            Announce: self._announce,
            AskBoxes: self._read,
            AskMemory: self._local.share,
            Put: lambda process, request: self._local.put(
                process, request, self._array_infos, functools.partial(self._fill, process)
            ),
            Stream: lambda process, request: self._local.stream(
                process, request, self._array_infos, functools.partial(self._hold, process)
            ),
        }

    def close(self) -> None:
        """Frees the memory that is kept for answers. Idempotent."""
        self._local.close()
        self._reads.close()

    def _once(self, describe: Callable[[_Asked], Message], process: int, request: _Asked) -> Answer:
        """Answers a request for a description. It is made for the first peer that asks, and the others get the same one."""
        with self._describing:
            found = self._descriptions.pop(request, None) or describe(request)
            # The one that was asked for last comes last.
            self._descriptions[request] = found
            if len(self._descriptions) > _DESCRIPTIONS:
                del self._descriptions[next(iter(self._descriptions))]
        return found, None

    def _leaves(self, request: AskStored) -> Message:
        leaves = self._lines
        start = request.position
        following = start + PAGE if start + PAGE < len(leaves) else None
        record = {} if start else self._stored.record
        return leaves_message(leaves[start : start + PAGE], following, record, len(self._stored.tree.leaves))

    def _infos(self, request: AskInfos) -> Message:
        leaves = self._stored.tree.leaves
        asked = [leaves[position] for position in bundles.positions_of(request.runs, len(leaves))]
        infos = self._stored.infos(asked)
        return infos_message([infos[leaf.param_name] for leaf in asked])

    def _array_infos(self, names: Collection[str]) -> Mapping[str, ArrayInfo]:
        found = self._stored.infos([self._by_name[name] for name in names if name != bundles.NAME])
        if bundles.NAME in names:
            found[bundles.NAME] = _BUNDLE
        return found

    def _texts(self, process: int, request: AskTexts) -> Answer:
        wanted = set(request.names)
        leaves = [leaf for leaf in self._stored.tree.leaves if leaf.param_name in wanted]
        return Texts({leaf.param_name: self._stored.string(leaf) for leaf in leaves}), None

    def _read(self, process: int, request: AskBoxes) -> Answer:
        boxes = request.boxes
        infos = self._array_infos({name for name, _, _ in boxes})
        nbytes = sum(math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes)
        shared = [key for key in boxes if self._reads.is_shared(process, key)]
        rest = [key for key in boxes if not self._reads.is_shared(process, key)]
        # First the tiles, then the room for the answer: what waits for room must not keep others from taking theirs.
        with self._reads.taken(shared) as parts:
            self._grant(process, nbytes)
            found = dict(zip(shared, map(np.ascontiguousarray, parts), strict=True))
            del parts
        arrays = self._stored.read([(name, slices_of(start, shape)) for name, start, shape in rest]) if rest else []
        found |= zip(rest, map(np.ascontiguousarray, arrays), strict=True)
        return Pieces(), [found[key] for key in boxes]

    def _announce(self, process: int, request: Announce) -> Answer:
        flags = self._reads.announce(process, request.boxes, request.small)
        return Shared(runs_of(flags), self._reads.small), None

    def _fill(self, process: int, boxes: Sequence[BoxKey], targets: Sequence[np.ndarray]) -> None:
        """Fills arrays with parts of stored arrays, which a process wants."""
        rest, into = [], []
        shared, places = [], []
        for key, target in zip(boxes, targets, strict=True):
            name, start, shape = key
            if self._reads.is_shared(process, key):
                shared.append(key)
                places.append(target)
            else:
                rest.append((name, slices_of(start, shape)))
                into.append(target)
        if rest:
            self._stored.read(rest, into)
        with self._reads.taken(shared) as parts:
            for place, part in zip(places, parts, strict=True):
                place[...] = part

    def _hold(self, process: int, key: BoxKey) -> contextlib.AbstractContextManager[np.ndarray] | None:
        """Returns a context with a part that a process and others want; None if no other process wants it."""
        return self._taken(key) if self._reads.is_shared(process, key) else None

    @contextlib.contextmanager
    def _taken(self, key: BoxKey) -> Iterator[np.ndarray]:
        with self._reads.taken([key]) as (part,):
            yield part

    def _grant(self, process: int, nbytes: int) -> None:
        """Waits until there is room for an answer. The wait is bounded: a peer that does not take its answer is given up at the timeout.

        Args:
          process: index of the peer.
          nbytes: bytes of the answer.
        """
        with self._changed:
            while self._granted and sum(self._granted.values()) + nbytes > _ANSWER_BYTES:
                self._changed.wait(1.0)
            self._granted[process] = nbytes

    def sent(self, process: int) -> None:
        """Notes that the answer to a peer has been sent, or could not be, so that its memory is free.

        Args:
          process: index of the peer.
        """
        with self._changed:
            self._granted.pop(process, None)
            self._changed.notify_all()
