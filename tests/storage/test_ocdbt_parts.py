"""Arrays of several processes: pieces that are fetched from elsewhere, and databases that are merged into one."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from ocdbt_databases import by_tensorstore, by_us, nothing_left_behind, store
from orbax.checkpoint import v1

import jaxckpt
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import StoredCheckpoint
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item import digests, layout, tree_text
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, Snapshot
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Key

pytestmark = pytest.mark.sampled

SHAPES = {"large": (64, 300), "small": (8, 3), "tiny": (4,), "cube": (4, 8, 50)}
SETTINGS = {
    "plain": WriteSettings(chunk_byte_size=5000, target_data_file_size=50_000),
    "zstd": WriteSettings(chunk_byte_size=5000, compression="zstd"),
    "files": WriteSettings(chunk_byte_size=5000, max_file_size=5000),
}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


class Lazy(Sequence[Piece]):
    """Pieces that are made as they are asked for, and cannot be indexed."""

    def __init__(self, make: Callable[[], Iterator[Piece]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Piece]:
        return self._make()

    def __len__(self) -> int:
        raise AssertionError

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError


def entry(name: str, array: np.ndarray, rows: range, source: Callable[..., Any] | None = None, step: int = 2) -> Entry:
    """An array whose pieces are `step` rows each; those in `rows` are written."""

    def pieces() -> Iterator[Piece]:
        for row in rows:
            if row % step == 0:
                start, shape = (row, *(0,) * (array.ndim - 1)), (step, *array.shape[1:])
                yield Piece(start, shape, array[row : row + step] if source is None else source)

    write_shape = (step, *array.shape[1:])
    return Entry((Key(name),), ArrayContent("np.ndarray", array.shape, array.dtype, write_shape, Lazy(pieces)))


def entries(process: int | None, *, remote: bool) -> list[Entry]:
    """What a process of two writes (None: everything)."""
    found = []
    for name, array in arrays().items():
        half = array.shape[0] // 2
        rows = range(array.shape[0]) if process is None else range(process * half, (process + 1) * half)

        def fetch(start: Any, shape: Any, array: np.ndarray = array) -> np.ndarray:
            assert array.ndim == len(start) == len(shape)
            assert np.prod(shape) * 4 <= 5000, "a whole piece was fetched"
            return array[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))].copy()

        found.append(entry(name, array, rows, fetch if remote else None))
    return found


def finish(directory: Path, settings: WriteSettings) -> Path:
    """Makes a checkpoint of arrays that have been written."""
    snapshot = Snapshot(tuple(entries(None, remote=True)))
    tree_text.write(str(directory), snapshot, settings)
    digests.write(str(directory))
    return directory


def check(directory: Path) -> None:
    """All readers find the arrays."""
    expected = arrays()
    target = {name: np.zeros_like(array) for name, array in expected.items()}
    found = ocp.PyTreeCheckpointer().restore(directory)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    found = v1.load_pytree(directory.parent, target) if directory.name == "pytree" else found
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    checkpoint = jaxckpt.Checkpoint(**target)
    checkpoint.restore(directory)
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(checkpoint, name), array)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("remote", [False, True])
def test_pieces(settings: WriteSettings, remote: bool, engine: str, tmp_path: Path) -> None:
    with nothing_left_behind():
        writer.write_arrays(str(tmp_path / "c"), entries(None, remote=remote), settings)
    check(finish(tmp_path / "c", settings))


@pytest.mark.parametrize("kind", ["plain", "zstd"])
def test_parts(kind: str, engine: str, tmp_path: Path) -> None:
    directory, settings = tmp_path / "c", SETTINGS[kind]
    parts = ["ocdbt.process_0", "ocdbt.process_1", "ocdbt.process_2"]
    for process, part in enumerate(parts):
        # The third process does not write anything.
        own = entries(process, remote=bool(process)) if process < 2 else []
        writer.write_arrays(str(directory / part), own, settings)
    before = {file: file.read_bytes() for file in directory.rglob("d/*")}
    writer.merge(str(directory), parts)
    assert {file: file.read_bytes() for file in before} == before
    new = sum(file.stat().st_size for file in (directory / "d").iterdir())
    assert new < 50_000, "data was copied"
    assert by_us(directory) == by_tensorstore(directory)
    check(finish(directory, settings))


def test_parts_in_the_index_of_another(tmp_path: Path) -> None:
    directory, settings = tmp_path / "c", SETTINGS["plain"]
    writer.write_arrays(str(directory / "ocdbt.process_1"), entries(1, remote=True), settings)
    before = {file: file.read_bytes() for file in directory.rglob("d/*")}
    events: list[str] = []

    def others() -> list[str]:
        events.append("waited")
        return ["ocdbt.process_1"]

    assert writer.write_with_parts(str(directory), entries(0, remote=False), settings, "ocdbt.process_0", others)
    assert events == ["waited"]
    assert {file: file.read_bytes() for file in before} == before
    # The data of this process lies where it would lie in a database of its own, without the index of one.
    assert sum(file.stat().st_size for file in (directory / "ocdbt.process_0" / "d").iterdir()) > 10_000
    assert not (directory / "ocdbt.process_0" / "manifest.ocdbt").exists()
    assert sum(file.stat().st_size for file in (directory / "d").iterdir()) < 50_000, "data was copied"
    assert by_us(directory) == by_tensorstore(directory)
    check(finish(directory, settings))


def test_parts_that_only_tensorstore_can_put_into_an_index(tmp_path: Path) -> None:
    """Then nothing is left, and each process writes a database."""
    part = store(tmp_path / "ocdbt.process_1", config={"manifest_kind": "numbered"})
    part.write("key", b"v" * 2000).result()
    given = str(tmp_path), entries(0, remote=False)
    assert not writer.write_with_parts(*given, SETTINGS["plain"], "ocdbt.process_0", lambda: ["ocdbt.process_1"])
    assert not writer.write_with_parts(*given, SETTINGS["zstd"], "ocdbt.process_0", pytest.fail)
    assert [file.name for file in tmp_path.iterdir()] == ["ocdbt.process_1"]


def test_an_index_without_the_parts_is_not_written(tmp_path: Path) -> None:
    def others() -> list[str]:
        raise LostError("the other process is gone")

    with nothing_left_behind(), pytest.raises(LostError):
        writer.write_with_parts(str(tmp_path), entries(0, remote=False), SETTINGS["plain"], "ocdbt.process_0", others)
    with pytest.raises(FileNotFoundError, match=r"ocdbt\.process_1"):
        writer.write_with_parts(
            str(tmp_path), entries(0, remote=False), SETTINGS["plain"], "ocdbt.process_0", lambda: ["ocdbt.process_1"]
        )
    assert not (tmp_path / "manifest.ocdbt").exists()


def test_files_of_several_processes_at_once(tmp_path: Path) -> None:
    directory, settings = tmp_path / "c", SETTINGS["files"]
    errors = []

    def work(process: int) -> None:
        try:
            writer.write_arrays(str(directory), entries(process, remote=False), settings)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    check(finish(directory, settings))


def test_parts_that_tensorstore_compressed(tmp_path: Path) -> None:
    """A form that our reader does not know: TensorStore merges."""
    for process in range(2):
        part = store(tmp_path / f"ocdbt.process_{process}", config={"compression": {"id": "zstd"}})
        part.write(f"key {process}", b"v" * 2000).result()
        part.write("both", b"%d" % process).result()
    writer.merge(str(tmp_path), ["ocdbt.process_0", "ocdbt.process_1"])
    assert by_tensorstore(tmp_path) == {"key 0": b"v" * 2000, "key 1": b"v" * 2000, "both": b"0"}


def test_merging_what_is_missing_or_damaged(engine: str, tmp_path: Path) -> None:
    writer.write_arrays(str(tmp_path / "ocdbt.process_0"), entries(0, remote=False), SETTINGS["plain"])
    with pytest.raises(FileNotFoundError, match=r"ocdbt\.process_1"):
        writer.merge(str(tmp_path), ["ocdbt.process_0", "ocdbt.process_1"])
    manifest = tmp_path / "ocdbt.process_0" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptCheckpointError, match=r"ocdbt\.process_0"):
        writer.merge(str(tmp_path), ["ocdbt.process_0"])
    assert not (tmp_path / "manifest.ocdbt").exists()


class LostError(ConnectionError):
    pass


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["tiny", "small", "large"])
def test_a_fetch_that_fails(settings: WriteSettings, name: str, tmp_path: Path) -> None:
    error = LostError(errno.ECONNRESET, "the other process is gone")

    def fetch(start: Any, shape: Any) -> np.ndarray:
        raise error

    array = arrays()[name]
    own = [*entries(None, remote=True), entry("lost", array, range(array.shape[0]), fetch)]
    with nothing_left_behind(), pytest.raises(LostError) as caught:
        writer.write_arrays(str(tmp_path / "c"), own, settings)
    assert caught.value is error


def test_data_of_another_shape(tmp_path: Path) -> None:
    array = arrays()["large"]
    own = [entry("large", array, range(64), lambda start, shape: np.zeros((1, 1), np.float32))]
    with pytest.raises(ValueError, match="large: expected data of shape"):
        writer.write_arrays(str(tmp_path / "c"), own, SETTINGS["plain"])


def test_boxes_of_arrays(tmp_path: Path) -> None:
    """Every box of an array of several chunks, cut at its edges."""
    rng = np.random.default_rng(2)
    array = rng.integers(0, 1000, (7, 9, 5))
    path = jaxckpt.Checkpoint(value=array).write(
        tmp_path / "c", jaxckpt.CheckpointOptions(orbax=jaxckpt.OrbaxSettings(chunk_byte_size=4096))
    )
    # Chunks that no writer of ours makes, to cut along every axis.
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": f"file://{path}/", "path": "value/"},
        "metadata": layout.metadata(array.shape, array.dtype, (3, 4, 5)),
    }
    made = ts.open(spec, create=True, delete_existing=True, dtype=ts.int64, shape=array.shape).result()
    made.write(array).result()
    digests.write(path, late=True)
    stored = StoredCheckpoint(path)
    (leaf,) = [leaf for leaf in stored.tree.leaves if leaf.name == "value"]
    assert stored.infos([leaf])["value"].chunk_shape == (3, 4, 5)
    for _ in range(200):
        edges = [sorted(rng.integers(0, extent + 1, 2)) for extent in array.shape]
        box = tuple(slice(int(low), int(high)) for low, high in edges)
        with nothing_left_behind():
            (found,) = stored.read([("value", box)])
        np.testing.assert_array_equal(found, array[box])
        assert found.dtype == array.dtype


def test_restored_arrays_may_be_donated(tmp_path: Path) -> None:
    """JAX takes the memory that was read into as it is; neither donation nor another restore may change it for others."""
    value = jnp.arange(100_000, dtype=jnp.float32)
    checkpoint = jaxckpt.Checkpoint(value=value)
    path = checkpoint.write(tmp_path / "c")
    checkpoint.read(path)
    first = checkpoint.value
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    second = add(first)
    checkpoint.read(path)
    np.testing.assert_array_equal(np.asarray(second), np.arange(100_000) + 1)
    np.testing.assert_array_equal(np.asarray(checkpoint.value), np.arange(100_000))
