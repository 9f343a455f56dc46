"""Small pieces in batches: whatever the plan and the order, the IO process puts together what the peers have."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import gather, windows
from jaxckpt.job.modes.buffers import Pool
from jaxckpt.job.modes.small import OwnSmallPieces, SmallPieces
from jaxckpt.job.modes.windows import Windows
from jaxckpt.job.plan import Plan, Share
from jaxckpt.job.protocol.messages import AskSmall
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, InPack, Piece, Snapshot

PROCESSES, CENTER = 3, 1


class Device(NamedTuple):
    process_index: int


class Divided(NamedTuple):
    """A sharding: the devices, in rows and columns, divide the first two axes, or have replicas."""

    devices: tuple[Device, ...]
    rows: int
    columns: int

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, tuple[slice, ...]]:
        found = {}
        for number, device in enumerate(self.devices):
            row, column = divmod(number % (self.rows * self.columns), self.columns)
            height, width = shape[0] // self.rows, shape[1] // self.columns
            found[number, device] = (
                slice(row * height, (row + 1) * height),
                slice(column * width, (column + 1) * width),
                *(slice(None) for _ in shape[2:]),
            )
        return _Map(found)


class _Map(dict[Any, Any]):
    def items(self) -> Any:
        return [(device, index) for (_, device), index in super().items()]


class Jobs:
    """The entries of every process, and a session that asks the peers directly."""

    def __init__(self, kinds: Sequence[int], dtype: Any, packed: Callable[[], bool] = lambda: False) -> None:
        devices = tuple(Device(number % PROCESSES) for number in range(6))
        random = np.random.default_rng(len(kinds))
        self.wholes: list[np.ndarray | None] = []
        self.entries: list[list[Entry]] = [[] for _ in range(PROCESSES)]
        plans = [Plan(process, CENTER) for process in range(PROCESSES)]
        forms = [self._form(kind) for kind in kinds]
        itemsize = np.dtype(dtype).itemsize
        all_shares = [
            iter(
                plan.divide(
                    [(plan.layout(Divided(devices, *cuts), shape), itemsize) for cuts, shape in filter(None, forms)]
                )
            )
            for plan in plans
        ]
        for number, form in enumerate(forms):
            path = ((f"leaf{number}", False),)
            if form is None:
                self.wholes.append(None)
                for entries in self.entries:
                    entries.append(Entry(path, EmptyContent("List")))
                continue
            _, shape = form
            whole = random.integers(0, 100, shape).astype(dtype)
            self.wholes.append(whole)
            for entries, shares in zip(self.entries, all_shares, strict=True):
                share = next(shares)
                pieces = [Piece(*box, whole[slices(box)]) for box in share.mine()]
                # A process knows its pieces in the order of its devices.
                pieces.reverse()
                content = ArrayContent("np.ndarray", shape, whole.dtype, share.grid, tuple(pieces), share=share)
                entries.append(Entry(path, content))
        self.packs = [pack(entries, packed) for entries in self.entries]
        self.peers = {
            process: OwnSmallPieces(self.entries[process], self.packs[process])
            for process in range(PROCESSES)
            if process != CENTER
        }
        self.process = CENTER
        self.asked: list[tuple[int, AskSmall]] = []

    @staticmethod
    def _form(kind: int) -> tuple[tuple[int, int], tuple[int, int, int]] | None:
        if kind == 0:
            return None
        cuts = [(6, 1), (1, 6), (2, 3), (3, 1), (1, 1), (6, 1)][kind - 1]
        return cuts, (6, 6, 0) if kind == 6 else (6, 12, 2)

    def ask(self, process: int, request: AskSmall, doing: str, *, into: Sequence[np.ndarray]) -> None:
        self.asked.append((process, request))
        (target,) = into
        target[:] = self.peers[process].take(request)


def pack(entries: list[Entry], packed: Callable[[], bool]) -> np.ndarray:
    """Puts the pieces of some arrays into a pack, which is returned."""
    content = b""
    number = 0
    for position, entry in enumerate(entries):
        if not isinstance(entry.content, ArrayContent) or not packed():
            continue
        pieces = []
        for piece in sorted(entry.content.pieces, key=lambda piece: piece.start):
            data = piece.fetch(piece.start, piece.shape).tobytes()
            pieces.append(piece._replace(source=InPack(number, len(content), len(content) + len(data))))
            content += data
            number += 1
        entries[position] = entry._replace(content=entry.content._replace(pieces=tuple(pieces)))
    return np.frombuffer(content, np.uint8)


def slices(box: Any) -> tuple[slice, ...]:
    return tuple(slice(first, first + extent) for first, extent in zip(box.start, box.shape, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    dtype=st.sampled_from([np.uint8, np.float32, np.complex128]),
    pieces=st.sampled_from([1, 2, 7, 8192]),
    nbytes=st.sampled_from([1, 500, 1 << 20]),
    ahead=st.sampled_from([1, 10, 1000]),
    order=st.randoms(use_true_random=False),
    in_order=st.booleans(),
    singly=st.booleans(),
    packed=st.randoms(use_true_random=False),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_what_is_put_together_is_what_the_processes_have(
    kinds: list[int],
    dtype: Any,
    pieces: int,
    nbytes: int,
    ahead: int,
    order: Any,
    in_order: bool,
    singly: bool,
    packed: Any,
    share: float,
) -> None:
    job = Jobs(kinds, dtype, lambda: packed.random() < share)
    numbers = [number for number, whole in enumerate(job.wholes) if whole is not None]
    if not in_order:
        order.shuffle(numbers)
    with (
        mock.patch.object(windows, "_BATCH_PIECES", pieces),
        mock.patch.object(windows, "_BATCH_BYTES", nbytes),
        mock.patch.object(windows, "_WINDOW_PIECES", ahead),
        mock.patch.object(windows, "WHOLE_BYTES", 0 if singly else windows.WHOLE_BYTES),
    ):
        center = SmallPieces(job.entries[CENTER], job, Pool(0), None, job.packs[CENTER])  # type: ignore[arg-type]
        for number in numbers:
            whole = job.wholes[number]
            assert whole is not None
            content: Any = job.entries[CENTER][number].content
            if not singly and whole.size:
                np.testing.assert_array_equal(center.array(number), whole)
                continue
            owners: Share = content.share
            for box, owner in owners.all():
                if owner != CENTER:
                    np.testing.assert_array_equal(center.piece(number, box), whole[slices(box)])
    # Each piece has been asked for once, and nothing is kept.
    for process, peer in job.peers.items():
        assert sum(request.count for owner, request in job.asked if owner == process) == len(peer._pieces)
        assert not any(peer._pieces)
    assert center._arrays == {}
    assert center._pieces == {}


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("kinds", [[1, 1, 1], [1, 4, 1, 4, 5, 1], [2, 3, 3, 2, 6, 0, 2]])
def test_pieces_of_one_box_lie_apart_in_a_pack(kinds: list[int], every: int) -> None:
    """The own pieces of arrays that are put together are not all that the pack has."""
    number = itertools.count()
    job = Jobs(kinds, np.float32, lambda: next(number) % every == 0)
    center = SmallPieces(job.entries[CENTER], job, Pool(0), None, job.packs[CENTER])  # type: ignore[arg-type]
    for position, whole in enumerate(job.wholes):
        if whole is not None and whole.size:
            np.testing.assert_array_equal(center.array(position), whole)


def test_a_run_of_packed_pieces_is_not_copied() -> None:
    job = Jobs([1] * 50, np.float32, lambda: True)
    assert np.shares_memory(job.peers[0].take(ask_all(job, 0)), job.packs[0])
    # What has been sent is let go of.
    assert job.peers[0]._pack is None


def test_a_piece_in_a_pack_cannot_be_taken_for_another() -> None:
    job = Jobs([1, 1], np.float32, lambda: True)
    content: Any = job.entries[0][0].content
    with pytest.raises(AssertionError, match="lies in the pack of its snapshot"):
        content.pieces[0].fetch(content.pieces[0].start, content.pieces[0].shape)


def ask_all(job: Jobs, process: int) -> AskSmall:
    pieces: Any = job.peers[process]._pieces
    ends = [(position, piece.start, piece.shape) for position, piece in (pieces[0], pieces[-1])]
    return AskSmall(0, len(pieces), *ends)


def test_a_message_names_many_pieces() -> None:
    job = Jobs([1] * 500, np.float32)
    center = SmallPieces(job.entries[CENTER], job, Pool(0))  # type: ignore[arg-type]
    for number in range(500):
        center.array(number)
    assert len(job.asked) == 2


@pytest.mark.parametrize(
    "changed", [{"first": 1}, {"count": 3}, {"first": -1}, {"count": 0}, {"first": 100}, {"last_box": (0, (0,), (1,))}]
)
def test_pieces_that_are_not_the_ones_that_were_meant(changed: dict[str, Any]) -> None:
    """Otherwise one array would silently get the values of another."""
    job = Jobs([1, 1, 1], np.float32)
    peer = job.peers[0]
    ends = [(number, (row, 0, 0), (1, 12, 2)) for number in range(3) for row in (0, 3)]
    good = {"first": 0, "count": 4, "first_box": ends[0], "last_box": ends[3]}
    with pytest.raises(ProcessError, match="does not have them, or has sent them already"):
        peer.take(AskSmall(**{**good, **changed}))
    assert peer.take(AskSmall(**good)).size == 4 * 24 * 4
    with pytest.raises(ProcessError, match="has sent them already"):
        peer.take(AskSmall(**good))
    assert math.prod(ends[0][2]) == 24


def take_all(job: Jobs, kept: dict[str, Any]) -> SmallPieces:
    """Takes all arrays, as one save does."""
    job.asked.clear()
    job.peers = {process: OwnSmallPieces(job.entries[process]) for process in job.peers}
    center = SmallPieces(job.entries[CENTER], job, Pool(0), kept)  # type: ignore[arg-type]
    for number, whole in enumerate(job.wholes):
        if whole is not None:
            np.testing.assert_array_equal(center.array(number), whole)
    return center


def test_the_next_save_of_the_structure_numbers_no_piece_again() -> None:
    job = Jobs([1, 0, 2, 4, 3] * 10, np.float32)
    kept: dict[str, Any] = {}
    take_all(job, kept)
    windows_of_first, asked = kept["windows"], list(job.asked)
    with mock.patch.object(Windows, "_owned", side_effect=AssertionError):
        take_all(job, kept)
    assert kept["windows"] is windows_of_first
    assert job.asked == asked


def test_a_value_of_another_shape_in_host_memory_changes_the_numbers() -> None:
    job = Jobs([1, 1], np.float32)
    kept: dict[str, Any] = {}
    take_all(job, kept)
    before = kept["windows"]
    assert before.is_for(job.entries[CENTER])
    content: Any = job.entries[CENTER][1].content
    for shape in ((3,), (4,)):
        host = content._replace(shape=shape, share=content.share.plan.host_share(shape))
        changed = [job.entries[CENTER][0], job.entries[CENTER][1]._replace(content=host)]
        assert not before.is_for(changed)
        before = Windows(changed, CENTER)
        assert before.is_for(changed)


def test_the_windows_of_very_many_pieces_are_let_go_of() -> None:
    job = Jobs([1] * 100, np.float32)
    kept: dict[str, Any] = {}
    with mock.patch.object(windows, "_KEPT_PIECES", 75), mock.patch.object(windows, "_WINDOW_PIECES", 30):
        center = take_all(job, kept)
    assert kept == {}
    found = center._windows._found
    assert len(found) == 20
    assert found[5:] == [None] * 15


def test_arrays_that_the_io_process_has_itself_are_put_together_few_at_a_time() -> None:
    """Otherwise a save of replicated arrays would copy all of them at once."""
    job = Jobs([5, 1] + [5] * 100, np.float32)
    center = SmallPieces(job.entries[CENTER], job, Pool(0))  # type: ignore[arg-type]
    held = 0
    with mock.patch.object(windows, "_BATCH_BYTES", 10 * 6 * 12 * 2 * 4):
        for number, whole in enumerate(job.wholes):
            np.testing.assert_array_equal(center.array(number), whole)  # type: ignore[arg-type]
            held = max(held, len(center._arrays))
    assert 5 < held < 12


def half_packed(kinds: Sequence[int]) -> tuple[Jobs, dict[int, Sequence[int]]]:
    """Returns a job in which every second array is in the packs, and for each process the positions of the entries that are not."""
    job = Jobs(kinds, np.float32, itertools.cycle([True, False]).__next__)
    rest = {
        process: [at for at, entry in enumerate(entries) if not in_pack(entry)]
        for process, entries in enumerate(job.entries)
    }
    return job, rest


def in_pack(entry: Entry) -> bool:
    pieces = entry.content.pieces if isinstance(entry.content, ArrayContent) else ()
    return bool(pieces) and isinstance(pieces[0].source, InPack)


def test_a_peer_numbers_its_packed_pieces_once_for_a_structure() -> None:
    kinds = [1, 2, 0, 3, 4, 1, 2]
    keeping: dict[int, dict[str, Any]] = {process: {} for process in range(PROCESSES)}
    for _ in range(3):
        job, rest = half_packed(kinds)
        for process in job.peers:
            entries, pack = job.entries[process], job.packs[process]
            job.peers[process] = OwnSmallPieces(entries, pack, keeping[process], rest[process])
        center = SmallPieces(
            job.entries[CENTER],
            job,
            Pool(0),
            keeping[CENTER],
            job.packs[CENTER],
            rest[CENTER],  # type: ignore[arg-type]
        )
        for number, whole in enumerate(job.wholes):
            if whole is not None:
                np.testing.assert_array_equal(center.array(number), whole)
    # What is kept has no data.
    for process in job.peers:
        assert all(isinstance(piece.source, InPack) for _, piece in keeping[process]["small pieces"])


def test_all_arrays_at_once() -> None:
    job = Jobs([1, 2, 3, 4] * 3, np.float32)
    with mock.patch.object(windows, "_BATCH_BYTES", 1 << 10):
        center = SmallPieces(job.entries[CENTER], job, Pool(0))  # type: ignore[arg-type]
        for found, whole in zip(center.arrays(), job.wholes, strict=True):
            assert whole is not None
            np.testing.assert_array_equal(found, whole)


def completed(job: Jobs, rest: dict[int, Sequence[int]], kept: dict[str, Any]) -> tuple[Snapshot, Callable[[], None]]:
    snapshot = Snapshot(tuple(job.entries[CENTER]), kept=kept, pack=job.packs[CENTER], rest=tuple(rest[CENTER]))
    with mock.patch.object(gather, "HOST_OWNER", CENTER):
        return gather.complete(snapshot, job)  # type: ignore[arg-type]


def check(whole: Snapshot, job: Jobs) -> None:
    for entry, value in zip(whole.entries, job.wholes, strict=True):
        if value is None:
            assert isinstance(entry.content, EmptyContent)
            continue
        assert isinstance(entry.content, ArrayContent)
        (piece,) = entry.content.pieces
        np.testing.assert_array_equal(piece.fetch(*piece[:2]), value)


def test_the_io_process_completes_packed_entries_once_for_a_structure() -> None:
    kept: dict[str, Any] = {}
    seen = []
    for _ in range(3):
        job, rest = half_packed([1, 2, 0, 3, 1, 4])
        whole, keep = completed(job, rest, kept)
        check(whole, job)
        keep()
        seen.append(whole.entries)
    packed = [at for at in range(6) if at not in rest[CENTER]]
    assert packed
    assert all(seen[1][at] is seen[2][at] for at in packed)
    # The save is over, so nothing can be fetched any more, and what has been fetched can be freed.
    with pytest.raises(AssertionError, match="over"):
        list(seen[2][packed[0]].content.pieces)  # type: ignore[union-attr]


def test_two_saves_of_a_structure_at_the_same_time_and_one_that_fails() -> None:
    kept: dict[str, Any] = {}
    job, rest = half_packed([1, 2, 3])
    completed(job, rest, kept)[1]()
    jobs = [half_packed([1, 2, 3])[0] for _ in range(2)]
    both = [completed(other, rest, kept)[0] for other in jobs]
    sources = [each.entries[0].content.pieces for each in both]  # type: ignore[union-attr]
    assert sources[0] is not sources[1]
    # Neither of them told that it had succeeded, so nothing is kept.
    assert "completed" not in kept
