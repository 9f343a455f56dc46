"""Small chunks that lie one after the other are read together: in few calls, and none of them unchecked."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocdbt_databases import open_index

import jaxckpt
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage.arrays import pread
from jaxckpt.storage.arrays.chunks import Read
from jaxckpt.storage.ocdbt.model import Place

COUNT = 200


def state() -> dict[str, np.ndarray]:
    """Arrays of 1 to 60 kB, some of which lie with others in a file, and larger ones between them."""
    rng = np.random.default_rng(0)
    found = {f"leaf_{number:03d}": rng.random(int(rng.integers(150, 7_000))) for number in range(COUNT)}
    found["leaf_100_large"] = rng.random((300, 1000))
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return Path(jaxckpt.Checkpoint(model=state()).write(tmp_path / "c"))


def restored(path: Path) -> dict[str, np.ndarray]:
    checkpoint = jaxckpt.Checkpoint(model={name: np.zeros_like(array) for name, array in state().items()})
    checkpoint.read(path).assert_consumed()
    return checkpoint.model


def places(path: Path) -> dict[str, Place]:
    """Returns where the only chunk of every small array is."""
    values = open_index(path).entries()
    found = {key.decode().removeprefix("model.").partition("/")[0]: value for key, value in values if b"/c/" in key}
    return {name: place for name, place in found.items() if "large" not in name}


def test_few_calls_read_many_chunks(saved: Path) -> None:
    with mock.patch.object(pread, "_content", wraps=pread._content) as reading:
        found = restored(saved)
    for name, array in state().items():
        np.testing.assert_array_equal(found[name], array)
    assert 1 <= reading.call_count <= COUNT / 10


@pytest.mark.slow
def test_a_damaged_chunk_among_others_is_named(saved: Path) -> None:
    for name, place in list(places(saved).items())[::17]:
        path = saved / place.file
        content = path.read_bytes()
        for at in (place.offset, place.offset + place.length // 2, place.offset + place.length - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(CorruptCheckpointError, match=name):
                restored(saved)
        path.write_bytes(content)
    restored(saved)


def test_a_file_that_ends_among_them(saved: Path) -> None:
    _, place = max(places(saved).items(), key=lambda found: (found[1].file, found[1].offset))
    os.truncate(saved / place.file, place.offset + 10)
    with pytest.raises(CorruptCheckpointError):
        restored(saved)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3 << 20), st.integers(5, 200 << 10)), min_size=1, max_size=60
    )
)
def test_what_is_read_together(spans: list[tuple[str, int, int]]) -> None:
    reads = [Read("", Place(file, offset, length), (), np.dtype("u1"), False, []) for file, offset, length in spans]
    reads.sort(key=lambda read: read.place)
    batches = list(pread._batches(reads))
    assert [read for batch in batches for read in batch] == reads
    for batch in batches:
        assert len({read.place.file for read in batch}) == 1
        if len(batch) == 1:
            continue
        assert all(read.place.length <= 64 << 10 for read in batch)
        ends = [read.place.offset + read.place.length for read in batch]
        assert max(ends) - batch[0].place.offset <= 1 << 20
        read_for_nothing = sum(max(0, after.place.offset - end) for end, after in zip(ends, batch[1:], strict=False))
        assert read_for_nothing <= len(batch) * (16 << 10)
