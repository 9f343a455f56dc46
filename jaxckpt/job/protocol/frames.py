"""Frames: bytes ↔ messages. No socket here: `jaxckpt.job.protocol.link` moves the bytes.

A frame is the length of its head (4 bytes, the most significant first); the head, an object of JSON with the message's name as "t" and its
fields; and, for a message with bytes, as many bytes as the head's "n" says, and the crc32c of them (4 bytes) if the head's "sum" is true.

Between hosts there are checksums: TCP's own has 16 bits, and misses what happens in the memory of network devices. Within a host there is
nothing that could lose bytes, and checksums would be a tenth of the work.
"""

import dataclasses
import json
import struct
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt.job.protocol import fields
from jaxckpt.job.protocol.grammar import MESSAGES
from jaxckpt.job.protocol.parts import Message

MAX_HEAD = 64 << 20
_LENGTH = struct.Struct("!I")
_CHECKSUM = struct.Struct("!I")
# Memory for a head is taken in steps of so many bytes, as they arrive: its length alone costs nothing.
_HEAD_BLOCK = 1 << 20
# A block is checksummed while it is in the processor's cache.
_BLOCK = 1 << 20
# Copying fewer bytes is cheaper than a call of its own.
_SMALL = 32 << 10
# Is received at once where less is needed: a length with its head.
_AHEAD = 4 << 10


class WireError(ConnectionError):
    """The connection has ended, or cannot be used any more."""


class ProtocolError(WireError):
    """What arrived is not what the protocol says."""


def encoded(message: Message, nbytes: int | None = None, *, checked: bool = False) -> bytes:
    """Returns the beginning of a frame: all of it but the bytes of arrays.

    Args:
      message: what to say.
      nbytes: how many bytes of arrays follow; None if the message has none.
      checked: whether their checksum follows them.

    Raises:
      TypeError, ValueError: a field of the message does not fit into JSON.
    """
    head = {"t": type(message).__name__, **vars(message)}
    if nbytes is not None:
        head |= {"n": nbytes, "sum": checked}
    content = _encode(head).encode()
    return _LENGTH.pack(len(content)) + content


def blocks(arrays: Sequence[np.ndarray], *, checked: bool) -> Iterator[memoryview]:
    """Yields the bytes of contiguous arrays, and their checksum if `checked`; small arrays are put together."""
    checksum = 0
    for run in _runs(arrays):
        for block in _blocks_of(run):
            if checked:
                checksum = _extended(checksum, block)
            yield memoryview(block)
    if checked:
        yield memoryview(_CHECKSUM.pack(checksum))


class FrameReader:
    """Turns bytes into messages, one frame after the other.

    Use: `start`; then, until `message` returns one, put bytes into `room` and tell `received` how many.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_AHEAD))
        # What has been received and not been used.
        self._ahead = self._buffer[:0]
        self._steps: Generator[memoryview, None, Message] | None = None
        self._missing = memoryview(b"")
        self._message: Message | None = None

    def start(self, into: Sequence[np.ndarray] | None = None, *, max_head: int = MAX_HEAD) -> None:
        """Begins a frame.

        Args:
          into: contiguous arrays, which the bytes of the message go to; together they have to be as large. None if the message may have
            no bytes.
          max_head: bytes; a longer head is an error.
        """
        self._message = None
        self._steps = _frame(into, max_head)
        self._step()

    def message(self) -> Message | None:
        """Returns the message of the frame; None as long as bytes are missing.

        Raises:
          ProtocolError: this is not a frame, a message that does not exist or does not have such fields, or one with other bytes than
            those that `start` was told of.
        """
        while self._message is None and (count := min(len(self._missing), len(self._ahead))):
            self._missing[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            self._filled(count)
        return self._message

    def room(self) -> memoryview:
        """Returns memory for the next bytes."""
        return self._buffer if len(self._missing) < _AHEAD else self._missing

    def received(self, count: int) -> None:
        """Takes note that the first `count` bytes of `room` have been filled. Raises as `message`."""
        if len(self._missing) < _AHEAD:
            self._ahead = self._buffer[:count]
        else:
            self._filled(count)

    def _filled(self, count: int) -> None:
        self._missing = self._missing[count:]
        if not self._missing:
            self._step()

    def _step(self) -> None:
        assert self._steps is not None
        try:
            self._missing = next(self._steps)
        except StopIteration as end:
            self._steps, self._missing, self._message = None, memoryview(b""), end.value


def _frame(into: Sequence[np.ndarray] | None, max_head: int) -> Generator[memoryview, None, Message]:
    """Yields memory, to be filled with the next bytes of a frame, and returns the message."""
    prefix = bytearray(_LENGTH.size)
    yield memoryview(prefix)
    (size,) = _LENGTH.unpack(prefix)
    if size > max_head:
        raise ProtocolError(f"a head of {size} bytes, where {max_head} are allowed")
    content = bytearray()
    while len(content) < size:
        block = bytearray(min(size - len(content), _HEAD_BLOCK))
        yield memoryview(block)
        content += block
    head = _head(content)
    nbytes, checked = head.pop("n", None), head.pop("sum", False)
    message = decoded(head)
    name = type(message).__name__
    if not message.with_bytes:
        if nbytes is not None:
            raise ProtocolError(f"{name} with bytes, which it does not have")
        return message
    if into is None:
        raise ProtocolError(f"{name}, whose bytes have no place here")
    wanted = sum(target.nbytes for target in into)
    if type(nbytes) is not int or nbytes != wanted:
        raise ProtocolError(f"{name} with {str(nbytes)[:40]} bytes instead of {wanted}")
    checksum = 0
    for run in _runs(into):
        whole = run[0] if len(run) == 1 else np.empty(sum(target.nbytes for target in run), np.uint8)
        flat = whole.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            yield part.data
            if checked is True:
                checksum = _extended(checksum, part)
        if len(run) > 1:
            _distribute(flat, run)
    if checked is True:
        found = bytearray(_CHECKSUM.size)
        yield memoryview(found)
        if _CHECKSUM.unpack(found) != (checksum,):
            raise ProtocolError(f"the bytes of {name} are not those that were sent: their checksums differ")
    return message


def _head(content: bytearray) -> dict[str, Any]:
    try:
        head = _decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no message ({error})") from None
    if not isinstance(head, dict):
        raise ProtocolError("no message (not an object)")
    return head


def decoded(head: dict[str, Any]) -> Message:
    """Returns the message that an object of JSON describes.

    Args:
      head: its name as "t", and its fields. It is changed.

    Raises:
      ProtocolError: there is no such message, or its fields are others; names both.
    """
    name = head.pop("t", None)
    cls = MESSAGES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ProtocolError(f"{str(name)[:40]!r}, a message that does not exist")
    try:
        message: Message = fields.build(cls, head)
    except fields.UnfitError as error:
        raise ProtocolError(f"an ill-formed {name}: {error}") from None
    return message


def _fields_of(value: Any) -> dict[str, Any]:
    # Values that messages are made of; a dataclass of the program in a result is an error, as for any JSON.
    if dataclasses.is_dataclass(value) and type(value).__module__ == Message.__module__:
        return vars(value)
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


_encode = json.JSONEncoder(separators=(",", ":"), default=_fields_of).encode
_decode = json.JSONDecoder().decode


def _distribute(flat: np.ndarray, targets: Sequence[np.ndarray]) -> None:
    at = 0
    for target in targets:
        target.reshape(-1).view(np.uint8)[:] = flat[at : at + target.nbytes]
        at += target.nbytes


def _extended(checksum: int, block: Any) -> int:
    import google_crc32c

    if isinstance(block, np.ndarray):
        # google_crc32c takes nothing that can be written to.
        block.flags.writeable = False
    extended: int = google_crc32c.extend(checksum, block)
    return extended


def _blocks_of(run: Sequence[np.ndarray]) -> Iterator[Any]:
    if len(run) > 1:
        yield b"".join([part.tobytes() for part in run])
        return
    flat = np.ascontiguousarray(run[0]).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _runs(arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Groups neighbours that are small; the others stay alone, and empty ones are left out."""
    run: list[np.ndarray] = []
    held = 0
    for array in arrays:
        if array.nbytes == 0:
            continue
        if array.nbytes > _SMALL or held + array.nbytes > _BLOCK:
            if run:
                yield run
            run, held = [], 0
        if array.nbytes > _SMALL:
            yield [array]
        else:
            run.append(array)
            held += array.nbytes
    if run:
        yield run
