"""How arrays are divided into chunks."""

import itertools
import json
import math

import hypothesis
import numpy as np
import pytest
import tensorstore as ts
from examples import examples
from hypothesis import strategies as st

from jaxckpt.storage.item import layout
from jaxckpt.storage.settings import WriteSettings


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape and the shape of the pieces that tile it."""
    pieces = draw(st.lists(st.integers(1, 40), max_size=4))
    counts = [draw(st.integers(1, 4)) for _ in pieces]
    return tuple(count * extent for count, extent in zip(counts, pieces, strict=True)), tuple(pieces)


@hypothesis.given(grid=grids(), itemsize=st.sampled_from([1, 2, 4, 8, 16]), limit=st.integers(16, 4096))
@hypothesis.settings(max_examples=examples(500))
def test_chunks_are_small_enough_and_never_cross_pieces(
    grid: tuple[tuple[int, ...], tuple[int, ...]], itemsize: int, limit: int
) -> None:
    shape, pieces = grid
    chunks = layout.chunk_shape(shape, pieces, itemsize, limit)
    assert len(chunks) == len(shape)
    assert all(chunk >= 1 for chunk in chunks)
    assert math.prod(chunks) * itemsize <= limit
    for whole, piece, chunk in zip(shape, pieces, chunks, strict=True):
        assert chunk <= piece
        # Borders of pieces are borders of chunks.
        if piece != whole:
            assert piece % chunk == 0


@hypothesis.given(
    grid=grids(), itemsize=st.sampled_from([1, 2, 4, 8]), limit=st.integers(16, 4096), is_strict=st.booleans()
)
@hypothesis.settings(max_examples=examples(300))
def test_no_two_pieces_write_one_chunk(
    grid: tuple[tuple[int, ...], tuple[int, ...]], itemsize: int, limit: int, is_strict: bool
) -> None:
    shape, pieces = grid
    hypothesis.assume(math.prod(shape) <= 20_000)
    chunks = layout.chunk_shape(shape, pieces, itemsize, limit, is_strict=is_strict)
    owners: dict[tuple[int, ...], tuple[int, ...]] = {}
    for start in itertools.product(*(range(0, whole, piece) for whole, piece in zip(shape, pieces, strict=True))):
        spans = [
            range(first // chunk, -(-(first + piece) // chunk))
            for first, piece, chunk in zip(start, pieces, chunks, strict=True)
        ]
        for index in itertools.product(*spans):
            assert owners.setdefault(index, start) == start
    assert len(owners) == math.prod(-(-whole // chunk) for whole, chunk in zip(shape, chunks, strict=True))


@hypothesis.given(grid=grids(), itemsize=st.sampled_from([1, 4, 8]))
def test_what_fits_is_one_chunk_a_piece(grid: tuple[tuple[int, ...], tuple[int, ...]], itemsize: int) -> None:
    shape, pieces = grid
    assert layout.chunk_shape(shape, pieces, itemsize, math.prod(pieces) * itemsize + 16) == pieces


@hypothesis.given(extent=st.integers(1, 10**9), limit=st.integers(16, 10**6))
def test_no_array_is_cut_into_many_more_chunks_than_needed(extent: int, limit: int) -> None:
    (chunk,) = layout.chunk_shape((extent,), (extent,), 1, limit)
    assert -(-extent // chunk) == -(-extent // limit)


@pytest.mark.parametrize(
    ("pieces", "most"),
    [
        ((2543, 1024), 4),
        ((4_999_999,), 2),
        ((2 * 2_499_997,), 2),
        ((5_000_000,), 5),
        ((7, 2543, 512), 14),
        ((1021, 1021, 1021), 1200),
    ],
)
def test_odd_extents_do_not_make_many_chunks(pieces: tuple[int, ...], most: int) -> None:
    """`most` chunks a piece, of which there are two along every axis."""
    shape = tuple(2 * extent for extent in pieces)
    chunks = layout.chunk_shape(shape, pieces, 4, 4 << 20, is_strict=False)
    assert math.prod(extent // chunk for extent, chunk in zip(pieces, chunks, strict=True)) <= most


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_zero_size(shape: tuple[int, ...]) -> None:
    chunks = layout.chunk_shape(shape, shape, 4, 16)
    assert all(chunk >= 1 for chunk in chunks)


def test_an_element_larger_than_the_limit() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        layout.chunk_shape((3,), (3,), 16, 15)


@hypothesis.given(
    max_file_size=st.one_of(st.none(), st.integers(8, 2**40)),
    chunk=st.integers(16, 2**40),
    target=st.integers(1, 2**40),
)
def test_a_data_file_never_outgrows_its_limit(max_file_size: int | None, chunk: int, target: int) -> None:
    """OCDBT closes a file once it holds its target: it grows by at most one more chunk, with its checksum."""
    settings = WriteSettings(max_file_size=max_file_size, chunk_byte_size=chunk, target_data_file_size=target)
    if max_file_size is None:
        assert layout.uses_ocdbt(settings)
        assert layout.largest_chunk(settings) == chunk
        return
    largest = layout.largest_chunk(settings) + layout.CHECKSUM_BYTES
    assert largest <= max_file_size
    if layout.uses_ocdbt(settings):
        assert layout.target_data_file_size(settings) + largest <= max_file_size


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize(
    "name", ["float32", "int8", "bool", "complex64", "bfloat16", "int4", "float8_e4m3fn", "uint64"]
)
def test_tensorstore_understands_the_metadata(name: str, compression: str | None) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    metadata = layout.metadata((5, 3), dtype, (5, 3), compression)
    assert json.loads(layout.metadata_json((5, 3), dtype, (5, 3), compression)) == metadata
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata}
    array = ts.open(spec, create=True, open=True).result()
    assert array.shape == (5, 3)
    assert array.dtype.numpy_dtype == dtype
    value = np.arange(15).reshape(5, 3).astype(dtype)
    array.write(value).result()
    assert array.read().result().tobytes() == value.tobytes()
