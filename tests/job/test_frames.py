"""Frames and messages: what is said is heard, and any other bytes, however they are cut, are one documented error in bounded memory."""

import dataclasses
import json
import struct
import tracemalloc
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxckpt.job.protocol import frames, grammar, meeting_messages, messages, parts
from jaxckpt.job.protocol.frames import FrameReader, ProtocolError
from jaxckpt.job.protocol.meeting_messages import Card
from jaxckpt.job.protocol.messages import AskPieces, Beat, Decided, Done, Filled, Leaves, Look, Memory, Pieces
from jaxckpt.job.protocol.parts import Message

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type that messages have."""
    if hint is Any:
        return JSON
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{each.name: values(hints[each.name]) for each in dataclasses.fields(hint)})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=3)
    if origin is tuple and Ellipsis in arguments:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(each) for each in arguments))
    if arguments:
        return st.one_of(*(values(each) for each in arguments))
    if hint is type(None):
        return st.none()
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return {int: st.integers(-(2**63), 2**63), bool: st.booleans(), str: st.text(max_size=20)}[hint]


MESSAGES = st.sampled_from(sorted(grammar.MESSAGES)).flatmap(lambda name: values(grammar.MESSAGES[name]))
ARRAYS = st.lists(st.binary(max_size=40) | st.sampled_from([b"x" * 5000, b"y" * 40_000]), max_size=5)


def written(message: Message, arrays: Sequence[np.ndarray] = (), *, checked: bool = False) -> bytes:
    if not message.with_bytes:
        return frames.encoded(message)
    head = frames.encoded(message, sum(array.nbytes for array in arrays), checked=checked)
    return head + b"".join(bytes(block) for block in frames.blocks(arrays, checked=checked))


def feed(reader: FrameReader, content: memoryview, cuts: Iterator[int]) -> memoryview:
    """Gives a reader bytes until it has a message, as many at a time as the cuts say; returns the rest."""
    while reader.message() is None:
        if not content:
            raise EOFError
        room = reader.room()
        count = min(len(room), len(content), next(cuts))
        room[:count], content = content[:count], content[count:]
        reader.received(count)
    return content


def cut(sizes: list[int]) -> Iterator[int]:
    yield from sizes
    while True:
        yield 1 << 30


CUTS = st.lists(st.integers(1, 5000), max_size=30) | st.just([1] * 3000)


@given(st.lists(st.tuples(MESSAGES, ARRAYS), max_size=6), st.booleans(), CUTS)
@settings(deadline=None)
def test_what_is_said_is_heard(said: list[tuple[Message, list[bytes]]], checked: bool, cuts: list[int]) -> None:
    arrays = [[np.frombuffer(each, np.uint8) for each in contents] for _, contents in said]
    content = b"".join(written(message, each, checked=checked) for (message, _), each in zip(said, arrays, strict=True))
    reader, rest, sizes = FrameReader(), memoryview(content), cut(cuts)
    for (message, contents), sent in zip(said, arrays, strict=True):
        into = [np.zeros_like(each) for each in sent]
        reader.start(into)
        rest = feed(reader, rest, sizes)
        heard = reader.message()
        assert heard is not None
        assert heard == message
        if message.with_bytes:
            assert [each.tobytes() for each in into] == contents
    assert not rest


@pytest.mark.parametrize("cuts", [[1] * 200, [3] * 200, [4] * 200, [100]])
def test_frames_that_arrive_together_or_in_bits(cuts: list[int]) -> None:
    content = memoryview(
        written(Filled(7)) + written(Beat()) + written(Pieces(), [np.arange(9, dtype=np.uint8)]) + written(Done())
    )
    reader, sizes, into = FrameReader(), cut(cuts), [np.zeros(9, np.uint8)]
    heard = []
    for _ in range(4):
        reader.start(into)
        content = feed(reader, content, sizes)
        heard.append(reader.message())
    assert heard == [Filled(7), Beat(), Pieces(), Done()]
    assert into[0].tolist() == list(range(9))


SPOILT = st.tuples(MESSAGES, ARRAYS, st.booleans()).flatmap(
    lambda drawn: st.builds(
        _spoil,
        st.just(written(drawn[0], [np.frombuffer(each, np.uint8) for each in drawn[1]], checked=drawn[2])),
        st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
        st.integers(0, 1 << 16),
    )
)


def _spoil(content: bytes, changes: list[tuple[int, int]], end: int) -> bytes:
    changed = bytearray(content)
    for position, value in changes:
        changed[position % len(changed)] = value
    return bytes(changed[: end % (len(changed) + 1)] if end % 3 == 0 else changed)


def _frame(text: str | bytes) -> bytes:
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("!I", len(content)) + content


@given(
    st.binary(max_size=300)
    | st.binary(max_size=60).map(_frame)
    | JSON.map(lambda value: _frame(json.dumps(value)))
    | SPOILT,
    CUTS,
)
@example(_frame('{"t":"Pieces","n":40,"sum":true}') + b"\0" * 44, [1] * 100)
@example(b"\xff\xff\xff\xff" + b"x" * 100, [])
@settings(deadline=None, max_examples=examples(400))
def test_any_bytes_are_messages_or_one_error(content: bytes, cuts: list[int]) -> None:
    """As many bytes of memory as have arrived, and those of the places that were given; never as many as are claimed."""
    reader, into, rest, sizes = FrameReader(), [np.zeros(40, np.uint8)], memoryview(content), cut(cuts)
    try:
        while True:
            reader.start(into, max_head=1 << 30)
            rest = feed(reader, rest, sizes)
            assert type(reader.message()) in grammar.MESSAGES.values()
    except (ProtocolError, EOFError):
        pass


def test_a_length_alone_costs_no_memory() -> None:
    reader = FrameReader()
    content = struct.pack("!I", 512 << 20) + b"[" * 100_000
    tracemalloc.start()
    try:
        reader.start(max_head=1 << 30)
        with pytest.raises(EOFError):
            feed(reader, memoryview(content), cut([]))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[
            ("", "not a message"),
            ("nul", "not a message"),
            ("[" * 100_000, "not a message"),
            ('{"a":' * 100_000, "not a message"),
        ],
        *[("[]", "not an object"), ("3", "not an object"), ("null", "not an object")],
        *[("{}", "'None', a message that does not exist"), ('{"t":"get"}', "'get', a message that does not exist")],
        *[
            ('{"t":["Done"]}', "does not exist"),
            ('{"t":"Request"}', "does not exist"),
            ('{"t":"Message"}', "not exist"),
        ],
        *[('{"t":"Filled","at":1}', "ill-formed Filled: its fields are at"), ('{"t":"Done","x":1}', "ill-formed Done")],
        *[('{"t":"Filled","nbytes":true}', "ill-formed Filled: its 'nbytes': True is not of type int")],
        *[
            ('{"t":"Filled","nbytes":1.0}', "ill-formed Filled"),
            ('{"t":"Filled","nbytes":"1"}', "ill-formed Filled"),
        ],
        *[
            ('{"t":"Look","path":"","token":"","secs":NaN}', "'secs': nan"),
            ('{"t":"Look","path":"","token":"","secs":1e999}', "'secs'"),
        ],
        *[('{"t":"Look","path":"","token":"","secs":1' + "0" * 400 + "}", "'secs'")],
        *[
            (
                '{"t":"AskPieces","boxes":[[1,[2],[3],[4]]]}',
                "ill-formed AskPieces: its 'boxes': a list is not a list of 3",
            )
        ],
        *[
            ('{"t":"AskPieces","boxes":[[1,[2],["3"]]]}', "ill-formed AskPieces"),
            ('{"t":"AskPieces","boxes":{}}', "AskPieces"),
        ],
        *[
            ('{"t":"Failed","failure":null}', "ill-formed Failed"),
            ('{"t":"Failed","failure":{"text":"x"}}', "ill-formed Failed"),
        ],
        *[
            ('{"t":"Memory","offer":{"pid":1}}', "ill-formed Memory: its 'offer'"),
            ('{"t":"Card","call":[]}', "ill-formed Card"),
        ],
        *[
            ('{"t":"Done","n":0}', "Done with bytes, although"),
            ('{"t":"Pieces"}', "Pieces with None bytes"),
        ],
        *[
            ('{"t":"Pieces","n":' + each + "}", "Pieces with")
            for each in ("-1", "65", '"64"', "64.0", "true", "NaN", "[64]", "null")
        ],
        *[('{"t":"Filled","nbytes":' + "9" * 5000 + "}", "not a message")],
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else None,
)
def test_heads_that_are_no_messages(text: str, why: str) -> None:
    reader = FrameReader()
    reader.start([np.zeros(64, np.uint8)])
    with pytest.raises(ProtocolError) as caught:
        feed(reader, memoryview(_frame(text)), cut([]))
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_have_no_place() -> None:
    reader = FrameReader()
    reader.start()
    with pytest.raises(ProtocolError, match="Pieces, a message with bytes, which is not expected"):
        feed(reader, memoryview(written(Pieces(), [np.zeros(3, np.uint8)])), cut([]))


def test_a_head_that_is_too_long() -> None:
    reader = FrameReader()
    reader.start(max_head=10)
    with pytest.raises(ProtocolError, match="a head of 11 bytes; at most 10 are allowed"):
        feed(reader, memoryview(_frame("x" * 11)), cut([]))


def test_every_changed_bit_of_checked_bytes_is_found() -> None:
    content = written(Pieces(), [np.arange(5, dtype=np.uint8)], checked=True)
    for position in range(len(content) - 9, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            reader = FrameReader()
            reader.start([np.zeros(5, np.uint8)])
            with pytest.raises(ProtocolError, match="checksums differ"):
                feed(reader, memoryview(bytes(changed)), cut([]))


def test_sequences_are_heard_as_tuples() -> None:
    said = [
        AskPieces(((1, (0, 0), (2, 3)), (2, (), ()))),
        Leaves(
            ("0",),
            ((("a",), 2, "jax.Array", None, None), (None, 0, "string", "x", "y")),
            (0, 1),
            ((0, "b"),),
            None,
            {"x": [1]},
            2,
        ),
        Memory(None),
        Decided([1, {"a": [2]}]),
    ]
    for message in said:
        reader = FrameReader()
        reader.start()
        feed(reader, memoryview(written(message)), cut([]))
        assert reader.message() == message


def test_what_does_not_fit_into_json() -> None:
    @dataclasses.dataclass
    class Own:
        x: int = 1

    for value in (object(), Own(), {1, 2}):
        with pytest.raises(TypeError):
            frames.encoded(Decided(value))


# -- the table ----------------------------------------------------------------------------------------------------------------------


def _classes() -> list[type[Message]]:
    return [
        each
        for module in (meeting_messages, messages)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Message) and each.__module__ == module.__name__
    ]


def test_every_message_is_in_the_table() -> None:
    assert set(_classes()) == set(grammar.MESSAGES.values())
    assert len({each.__name__ for each in _classes()}) == len(_classes())


def test_the_table_answers_what_the_types_say() -> None:
    requests = [each for each in _classes() if issubclass(each, parts.Request)]
    assert set(requests) == set(grammar.ANSWERS)
    for request in requests:
        (base,) = (each for each in request.__orig_bases__ if typing.get_origin(each) is parts.Request)  # type: ignore[attr-defined]
        assert typing.get_args(base) == (grammar.ANSWERS[request],)


def test_every_request_is_said_by_one_side_of_a_phase() -> None:
    for request in grammar.ANSWERS:
        said = [
            (phase, side)
            for phase, sides in grammar.SAYS.items()
            for side, all_of in sides.items()
            if request in all_of
        ]
        phases = [phase for phase, _ in said]
        assert phases, request
        assert len(set(phases)) == len(phases), request


def test_no_field_has_the_name_of_a_part_of_the_head() -> None:
    for each in (*_classes(), parts.Failure, parts.Address, parts.SlotOffer):
        assert not {"t", "n", "sum"} & {field.name for field in dataclasses.fields(each)}


def test_messages_are_values() -> None:
    assert Card({}, "a", "b", {}, None, None) == Card({}, "a", "b", {}, None, None)
    assert Look("a", "b", 1.0) != Look("a", "b", 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Filled(1).nbytes = 3  # type: ignore[misc]
