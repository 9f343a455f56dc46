"""The box of an index has what numpy's indexing takes, and not much more."""

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxckpt._lib.indexing import taken


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    return shape, draw(hnp.basic_indices(shape, allow_newaxis=True))


@given(cases())
@settings(max_examples=examples(300), deadline=None)
def test_the_same_as_numpy(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    array = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    boxes = []

    def read(box: tuple[slice, ...]) -> np.ndarray:
        assert len(box) == array.ndim
        assert all(0 <= part.start <= part.stop <= extent for part, extent in zip(box, shape, strict=True))
        boxes.append(array[(*box, ...)])
        return boxes[0]

    found, expected = taken(index, shape, "x", read), np.asarray(array[index])
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    parts = index if isinstance(index, tuple) else (index,)
    if all(not isinstance(part, slice) or part.step in (1, -1, None) for part in parts):
        assert boxes[0].size == expected.size


@pytest.mark.parametrize(
    ("index", "kind"),
    [(5, IndexError), (-3, IndexError), ((0, 0, 0), IndexError), ((..., ...), IndexError), (True, TypeError)]
    + [(each, TypeError) for each in ([0], np.array([1]), "a", 1.0, np.bool_(True))],
    ids=str,
)
def test_what_is_refused(index: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"x, an array of shape \(2, 3\)"):
        taken(index, (2, 3), "x", lambda box: np.zeros((2, 3))[box])
