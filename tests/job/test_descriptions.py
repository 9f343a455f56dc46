"""What a peer makes of the center's columns is what the center has, and columns that do not fit together are refused."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.errors import ProcessError
from jaxckpt.job.modes import descriptions
from jaxckpt.job.protocol.messages import Infos, Leaves
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.tree_metadata import StoredLeaf

LEAVES = st.builds(
    StoredLeaf,
    st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=70).map(tuple),
    st.text(max_size=5),
    st.sampled_from(["jax.Array", "string", "None"]),
    st.none() | st.just("bytes"),
    st.none() | st.just("threefry2x32"),
)
INFOS = st.builds(
    ArrayInfo,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from([np.float32, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4]).map(np.dtype),
    st.none() | st.just((1, 2)),
)


@given(st.lists(LEAVES, max_size=8))
def test_leaves(leaves: list[StoredLeaf]) -> None:
    message = descriptions.leaves_message(leaves, 7, {"x": 1}, 5)
    assert (message.next, message.record, message.count) == (7, {"x": 1}, 5)
    assert descriptions.leaves_of(message) == leaves


@given(st.lists(INFOS, max_size=8))
def test_infos(infos: list[ArrayInfo]) -> None:
    names = [str(number) for number in range(len(infos))]
    found = descriptions.infos_of(descriptions.infos_message(infos), names)
    assert list(found) == names
    for one, other in zip(found.values(), infos, strict=True):
        assert (one.shape, one.dtype, one.chunk_shape) == (other.shape, other.dtype, other.chunk_shape)


def test_what_many_leaves_have_in_common_is_told_once() -> None:
    leaves = [StoredLeaf((("a", False), (str(n), True)), f"a.{n}", "jax.Array", None, None) for n in range(100)]
    assert len(descriptions.leaves_message(leaves, None, {}, 0).groups) == 1
    infos = [ArrayInfo((2,), np.dtype(np.float32), (2,)) for _ in range(100)]
    assert len(descriptions.infos_message(infos).forms) == 1


def test_names_that_follow_from_paths_are_not_told() -> None:
    leaves = [StoredLeaf((("a", False), (str(n), True)), f"a.{n}", "jax.Array", None, None) for n in range(3)]
    leaves[1] = leaves[1]._replace(param_name="other")
    assert descriptions.leaves_message(leaves, None, {}, 0).names == ((1, "other"),)


KIND = ("jax.Array", None, None)
GOOD = Leaves(
    ("0", "b", ""), ((("a",), 2, *KIND), ((), 0, *KIND), (None, 0, *KIND)), (0, 1, 1, 1, 2, 1), ((2, "c"),), None, {}, 3
)


def test_a_message() -> None:
    assert descriptions.leaves_of(GOOD) == [
        StoredLeaf((("a", False), ("0", True)), "a.0", *KIND),
        StoredLeaf((("b", False),), "b", *KIND),
        StoredLeaf((), "c", *KIND),
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": ("0",)},
        {"keys": ("0", "b", "c", "d")},
        {"groups": ()},
        {"groups": ((("a",), -1, *KIND),) * 3},
        {"runs": (0, 1, 1, 1, 2)},
        {"runs": (0, 1, 1, 1)},
        {"runs": (0, 1, 1, 1, 3, 1)},
        {"runs": (0, 1, 1, 1, -1, 1)},
        {"runs": (0, 4, 1, -1)},
        {"names": ((3, "c"),)},
        {"names": ((-1, "c"),)},
    ],
)
def test_parts_that_do_not_fit_together(changed: dict[str, Any]) -> None:
    with pytest.raises(ProcessError, match="The center described"):
        descriptions.leaves_of(dataclasses.replace(GOOD, **changed))


@pytest.mark.parametrize("runs", [(0, 1), (0, 3), (0, 1 << 60), (0, 1, 1, 1), (-1, 2), (0, 3, 0, -1), (0,)])
def test_descriptions_of_other_arrays(runs: tuple[int, ...]) -> None:
    with pytest.raises(ProcessError, match="The center described"):
        descriptions.infos_of(Infos((((2,), "float32", None),), runs), ["a", "b"])
