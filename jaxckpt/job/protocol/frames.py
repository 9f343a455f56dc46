"""Frames: converts messages to bytes and back. It does not use sockets: `jaxckpt.job.protocol.link` sends and receives the bytes.

A frame consists of

* the length of its head: 4 bytes, the most significant first;
* the head: a JSON object with the name of the message as "t", and the fields of the message;
* only for a message with bytes: the bytes of arrays (the head's "n" is their number) and, if the head's "sum" is true, their crc32c
  (4 bytes, the most significant first).

Bytes that are sent to another host have the checksum: TCP's own has only 16 bits, and does not notice errors in the memory of network
devices. Within a host such errors do not happen, and checksums would cost a tenth of the time.
"""

import dataclasses
import json
import struct
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from jaxckpt._lib.checksum import extended
from jaxckpt.job.protocol import fields
from jaxckpt.job.protocol.grammar import MESSAGES
from jaxckpt.job.protocol.parts import Message

MAX_HEAD = 64 << 20
_LENGTH = struct.Struct("!I")
_CHECKSUM = struct.Struct("!I")
# Memory for a head is allocated in steps of so many bytes, as they arrive: a sender cannot make us allocate more by claiming a length.
_HEAD_BLOCK = 1 << 20
# A block is checksummed while it is in the processor's cache.
_BLOCK = 1 << 20
# Arrays of at most so many bytes are copied together: the copy is cheaper than a system call for each of them.
_SMALL = 32 << 10
# At least so many bytes are received at once, so that the length and a short head come with one system call.
_AHEAD = 4 << 10


class WireError(ConnectionError):
    """The connection has ended, or cannot be used any more."""


class ProtocolError(WireError):
    """The other side sent bytes that violate the protocol."""


def encoded(message: Message, nbytes: int | None = None, *, checked: bool = False) -> bytes:
    """Returns the beginning of a frame, without the bytes of arrays.

    Args:
      message: the message.
      nbytes: how many bytes of arrays follow; None if the message has no bytes.
      checked: whether their checksum follows them.

    Raises:
      TypeError: a field of the message does not fit into JSON.
      ValueError: a field of the message does not fit into JSON.
    """
    head = {"t": type(message).__name__, **vars(message)}
    if nbytes is not None:
        head |= {"n": nbytes, "sum": checked}
    content = _encode(head).encode()
    return _LENGTH.pack(len(content)) + content


def blocks(arrays: Sequence[np.ndarray], *, checked: bool) -> Iterator[memoryview]:
    """Yields the bytes of arrays in blocks; small arrays are joined.

    Args:
      arrays: contiguous arrays.
      checked: whether to yield their checksum at the end.
    """
    checksum = 0
    for run in _runs(arrays):
        for block in _blocks_of(run):
            if checked:
                checksum = extended(checksum, block)
            yield memoryview(block)
    if checked:
        yield memoryview(_CHECKSUM.pack(checksum))


class FrameReader:
    """Turns bytes into messages, one frame after the other.

    Call `start`. Then, until `message` returns a message, put bytes into `room` and call `received` with their number.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_AHEAD))
        # Bytes that have been received and not been used yet.
        self._ahead = self._buffer[:0]
        # The arguments of `start`, until the first bytes of the frame are there.
        self._wanted: tuple[Sequence[np.ndarray] | None, int] | None = None
        self._steps: Generator[memoryview, None, Message] | None = None
        self._missing = memoryview(b"")
        self._message: Message | None = None

    def start(self, into: Sequence[np.ndarray] | None = None, *, max_head: int = MAX_HEAD) -> None:
        """Begins a frame.

        Args:
          into: contiguous arrays that receive the bytes of the message. Their total size must be that of the bytes. None if the message
            must not have bytes.
          max_head: most bytes of the head; a longer one is an error.
        """
        self._message = self._steps = None
        self._missing = memoryview(b"")
        self._wanted = into, max_head

    def message(self) -> Message | None:
        """Returns the message of the frame; None as long as bytes are missing.

        Raises:
          ProtocolError: the bytes are not a frame, the message does not exist or has other fields, or its bytes do not fit the arrays
            that `start` was given.
        """
        if self._wanted is not None and self._ahead:
            self._begin(*self._wanted)
        while self._message is None and (count := min(len(self._missing), len(self._ahead))):
            self._missing[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            self._filled(count)
        return self._message

    def room(self) -> memoryview:
        """Returns memory for the next bytes."""
        return self._buffer if len(self._missing) < _AHEAD else self._missing

    def received(self, count: int) -> None:
        """Tells the reader that the first `count` bytes of `room` have been filled. Raises as `message`."""
        if len(self._missing) < _AHEAD:
            self._ahead = self._buffer[:count]
        else:
            self._filled(count)

    def _begin(self, into: Sequence[np.ndarray] | None, max_head: int) -> None:
        self._wanted = None
        ahead = self._ahead
        size = _LENGTH.unpack_from(ahead)[0] if len(ahead) >= _LENGTH.size else max_head
        end = _LENGTH.size + size
        if size <= max_head and end <= len(ahead):
            # Most heads are short, and come as a whole.
            content, self._ahead = bytes(ahead[_LENGTH.size : end]), ahead[end:]
            self._steps = _rest(content, into)
        else:
            self._steps = _frame(into, max_head)
        self._step()

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
    """Yields memory that must be filled with the next bytes of a frame. At the end of the frame, returns the message.

    Args:
      into: as for `FrameReader.start`.
      max_head: as for `FrameReader.start`.
    """
    prefix = bytearray(_LENGTH.size)
    yield memoryview(prefix)
    (size,) = _LENGTH.unpack(prefix)
    if size > max_head:
        raise ProtocolError(f"a head of {size} bytes; at most {max_head} are allowed")
    content = bytearray()
    while len(content) < size:
        block = bytearray(min(size - len(content), _HEAD_BLOCK))
        yield memoryview(block)
        content += block
    return (yield from _rest(content, into))


def _rest(content: bytes | bytearray, into: Sequence[np.ndarray] | None) -> Generator[memoryview, None, Message]:
    """Does what `_frame` does, after the head has been received.

    Args:
      content: the head.
      into: as for `FrameReader.start`.
    """
    head = _head(content)
    nbytes, checked = head.pop("n", None), head.pop("sum", False)
    message = decoded(head)
    name = type(message).__name__
    if not message.with_bytes:
        if nbytes is not None:
            raise ProtocolError(f"{name} with bytes, although it is a message without bytes")
        return message
    if into is None:
        raise ProtocolError(f"{name}, a message with bytes, which is not expected now")
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
                checksum = extended(checksum, part)
        if len(run) > 1:
            _distribute(flat, run)
    if checked is True:
        found = bytearray(_CHECKSUM.size)
        yield memoryview(found)
        if _CHECKSUM.unpack(found) != (checksum,):
            raise ProtocolError(f"the bytes of {name} are not those that were sent: their checksums differ")
    return message


def _head(content: bytes | bytearray) -> dict[str, Any]:
    try:
        head = _decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"bytes that are not a message ({error})") from None
    if not isinstance(head, dict):
        raise ProtocolError("bytes that are not a message (not an object)")
    return head


def decoded(head: dict[str, Any]) -> Message:
    """Returns the message that a JSON object describes.

    Args:
      head: the name of the message as "t", and its fields. The dictionary is changed.

    Raises:
      ProtocolError: the message does not exist, or has other fields. The text names the message and the fields.
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
    # Only the dataclasses that are parts of messages. A dataclass of the program in a result is an error, as for any JSON.
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


def _blocks_of(run: Sequence[np.ndarray]) -> Iterator[Any]:
    if len(run) > 1:
        yield b"".join([part.tobytes() for part in run])
        return
    flat = np.ascontiguousarray(run[0]).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _runs(arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yields lists of neighbouring arrays: small arrays together, each larger array alone. Empty arrays are left out."""
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
