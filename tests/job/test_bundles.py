"""Very small arrays travel whole, in bundles, and every process cuts its boxes out of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import bundles
from jaxckpt.job.modes.bundles import Bundles
from jaxckpt.job.modes.small_reads import SmallFirst
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.names import Key

ARRAYS = {
    "a": np.arange(8, dtype=np.float32),
    "empty": np.zeros((0, 3)),
    "b": np.arange(12, dtype=np.int8).reshape(3, 4),
    "scalar": np.array(7.0),
    "large": np.arange(5000.0),
    "odd": np.arange(5, dtype=np.uint8),
    "c": np.arange(6.0).reshape(2, 3),
}
LEAVES = tuple(StoredLeaf((Key(name),), name, "np.ndarray", None, None) for name in ARRAYS)
INFOS = {name: ArrayInfo(array.shape, array.dtype, array.shape) for name, array in ARRAYS.items()}
POSITIONS = {name: position for position, name in enumerate(ARRAYS)}


@given(st.sets(st.integers(0, 30)))
def test_positions_travel_as_runs(positions: set[int]) -> None:
    runs = bundles.runs_of(positions)
    assert bundles.positions_of(runs, 31) == sorted(positions)
    assert all(count > 0 for count in runs[1::2])


@pytest.mark.parametrize("runs", [(3,), (0, 0), (-1, 2), (0, 9), (2, 1, 1, 1), (0, 1, 1, 1), (0, 10**12), (1, -1)])
def test_runs_of_other_leaves_are_refused(runs: tuple[int, ...]) -> None:
    with pytest.raises(ProcessError, match="does not have"):
        bundles.positions_of(runs, 8)


def read(
    requests: Sequence[tuple[str, Any]], agreed: Sequence[str] | None = None
) -> tuple[SmallFirst, list[np.ndarray]]:
    """Reads as a process does. `agreed` are the very small arrays that all processes want, None for all of this one's."""
    small = SmallFirst(requests, INFOS, POSITIONS)
    runs = small.runs if agreed is None else bundles.runs_of(POSITIONS[name] for name in agreed)
    left = small.agree(runs, LEAVES)
    names = iter([LEAVES[position].param_name for position in bundles.positions_of(runs, len(LEAVES))])
    contents = []
    for _, _, (nbytes,) in small.keys:
        parts: list[np.ndarray] = []
        while sum(part.nbytes for part in parts) < nbytes:
            parts.append(ARRAYS[next(names)])
        contents.append(bundles.packed(parts))
        assert contents[-1].nbytes == nbytes
    small.take(contents)
    return small, small.all([at(*request) for request in small.rest], [at(*request) for request in left])


def at(name: str, box: Any) -> np.ndarray:
    return ARRAYS[name][(*(box or ()), ...)].copy()


REQUESTS = [
    ("c", (slice(1, 2), slice(0, 3))),
    ("a", (slice(2, 4),)),
    ("large", (slice(10, 20),)),
    ("a", (slice(6, 8),)),
    ("scalar", None),
    ("b", (slice(0, 3), slice(1, 2))),
    ("empty", None),
    ("odd", None),
]


@pytest.mark.parametrize("nbytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("agreed", [None, ["a", "odd"], []], ids=["all", "some", "none"])
def test_each_request_gets_its_box(nbytes: int, agreed: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_BUNDLE_BYTES", nbytes)
    small, found = read(REQUESTS, agreed)
    assert [name for name, _ in small.rest] == ["large", "empty"]
    for request, array in zip(REQUESTS, found, strict=True):
        expected = at(*request)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
        # It is the value of a target, which the program may change.
        assert array.flags.writeable
        assert array.flags.c_contiguous


def test_a_small_part_of_an_array_that_is_not_tiny_is_asked_for_alone() -> None:
    infos = {
        "x": ArrayInfo((1024,), np.dtype(np.float32), (1024,)),
        "tiny": ArrayInfo((64,), np.dtype(np.float32), (64,)),
    }
    part, half, one = (slice(0, 8),), (slice(0, 512),), (slice(0, 1),)
    assert bundles.very_small([("x", half), ("x", None), ("tiny", one)], infos) == [True] * 3
    # Either all requests for an array are announced as boxes, or none is.
    assert bundles.very_small([("x", part), ("x", half), ("x", None), ("tiny", one)], infos) == [False] * 3 + [True]


def test_arrays_that_were_not_wanted_are_refused() -> None:
    small = SmallFirst([("a", None)], INFOS, POSITIONS)
    with pytest.raises(ProcessError, match="does not want"):
        small.agree(bundles.runs_of([POSITIONS["b"]]), LEAVES)


def test_a_bundle_has_many_arrays_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_BUNDLE_BYTES", 52)
    made = Bundles([0, 2, 3, 5], LEAVES, INFOS)
    assert [key[2] for key in made.keys] == [(52,), (5,)]
    assert [name for name, _ in made.requests(0)] == ["a", "b", "scalar"]
