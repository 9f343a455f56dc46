"""Restoring with an IO process, for its peers on the same host: the IO process puts answers into memory that both share.

Each such peer has memory of its own with two slots: the IO process reads into one while the peer takes the bytes of the other. A box that
is larger than a slot comes block by block, and its checksum is verified with the last block. The peer must not use any of it before.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from jaxckpt._lib.boxes import slices_of
from jaxckpt.errors import ProcessError
from jaxckpt.job.modes.local_memory import SLOT_BYTES, SharedSlots, share_slots
from jaxckpt.job.modes.remote import UNDER_WAY
from jaxckpt.job.modes.wanted import BoxKey
from jaxckpt.job.protocol.messages import AskMemory, Filled, Memory, Put, Stream
from jaxckpt.job.session.session import Answer
from jaxckpt.storage.arrays.stored import ArrayInfo
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.storage.source import Stream as StoredStream

Infos = Callable[[Collection[str]], Mapping[str, ArrayInfo]]
Fill = Callable[[Sequence[BoxKey], Sequence[np.ndarray]], None]
Hold = Callable[[BoxKey], contextlib.AbstractContextManager[np.ndarray] | None]
# Most bytes of the slots of all peers.
_MEMORY_BYTES = 96 << 20


class LocalAnswers:
    """The IO process's answers to the peers on its host."""

    def __init__(self, stored: OpenCheckpoint, peers: Sequence[int]) -> None:
        """Creates the object. The memory is created when a peer asks for it.

        Args:
          stored: the open checkpoint.
          peers: indices of the peers that are on this host.
        """
        self._stored = stored
        # Smaller, if there are very many peers.
        self._slot_bytes = min(SLOT_BYTES, _MEMORY_BYTES // (UNDER_WAY * max(1, len(peers))))
        self._peers = frozenset(peers)
        self._lock = threading.Lock()
        self._memories: dict[int, SharedSlots] = {}
        # The large box that a peer is taking, by peer.
        self._streams: dict[int, _Stream] = {}

    def close(self) -> None:
        """Frees the memory. Idempotent."""
        with self._lock:
            memories, self._memories = self._memories, {}
            self._peers = frozenset()
            self._streams.clear()
        for memory in memories.values():
            memory.withdraw()

    def share(self, process: int, request: AskMemory) -> Answer:
        """Answers with the memory for a peer.

        Args:
          process: index of the peer.
          request: its request.
        """
        with self._lock:
            if process in self._peers and process not in self._memories:
                memory = share_slots(UNDER_WAY, self._slot_bytes)
                if memory is not None:
                    self._memories[process] = memory
            found = self._memories.get(process)
        return Memory(None if found is None else found.offer), None

    def _slot(self, process: int, slot: int, nbytes: int) -> np.ndarray:
        memory = self._memories.get(process)
        if memory is None:
            raise ProcessError(f"process {process} asked for bytes in slot {slot}, which it does not have", (process,))
        return memory.slot(slot, nbytes)

    def put(self, process: int, request: Put, infos_of: Infos, fill: Fill) -> Answer:
        """Reads small boxes into a slot, one after the other.

        Args:
          process: index of the peer.
          request: its request.
          infos_of: returns shapes and dtypes of arrays, by Orbax's names.
          fill: reads boxes into arrays.
        """
        boxes = request.boxes
        infos = infos_of({name for name, _, _ in boxes})
        sizes = [math.prod(shape) * infos[name].dtype.itemsize for name, _, shape in boxes]
        memory = self._slot(process, request.slot, sum(sizes))
        targets, at = [], 0
        for (name, _, shape), size in zip(boxes, sizes, strict=True):
            targets.append(memory[at : at + size].view(infos[name].dtype).reshape(shape))
            at += size
        fill(boxes, targets)
        return Filled(at), None

    def stream(self, process: int, request: Stream, infos_of: Infos, hold: Hold) -> Answer:
        """Puts the next bytes of a large box into a slot.

        Args:
          process: index of the peer.
          request: its request.
          infos_of: returns shapes and dtypes of arrays, by Orbax's names.
          hold: returns a context with a box that several processes want, or None for other boxes.
        """
        first, last = request.first, request.last
        target = self._slot(process, request.slot, last - first)
        if first == 0:
            self._streams[process] = self._open(request.box, infos_of, hold)
        stream = self._streams[process]
        stream.fill(target)
        if last >= stream.nbytes:
            del self._streams[process]
        return Filled(target.size), None

    def _open(self, key: BoxKey, infos_of: Infos, hold: Hold) -> "_Stream":
        name, start, shape = key
        infos_of([name])
        if (held := hold(key)) is not None:
            return _Held(held)
        found = self._stored.stream(name, slices_of(start, shape))
        if found is not None:
            return found
        return _Held(contextlib.nullcontext(self._stored.read([(name, slices_of(start, shape))])[0]))


class _Held:
    """A box that is read as a whole, and is handed out block by block."""

    def __init__(self, context: contextlib.AbstractContextManager[np.ndarray]) -> None:
        """Reads the box.

        Args:
          context: reads it, and keeps it until all of it is handed out.
        """
        self._stack = contextlib.ExitStack()
        self._bytes = np.ascontiguousarray(self._stack.enter_context(context)).reshape(-1).view(np.uint8)
        self._at = 0
        self.nbytes = self._bytes.size

    def fill(self, target: np.ndarray) -> None:
        target[...] = self._bytes[self._at : self._at + target.size]
        self._at += target.size
        if self._at >= self.nbytes:
            self._bytes = self._bytes[:0]
            self._stack.close()


_Stream = StoredStream | _Held
