"""The files that describe a tree are kept for the next save of the same structure: they must be those that would be made anew."""

import dataclasses
import pathlib
from typing import Any
from unittest import mock

import numpy as np
import pytest

from jaxckpt.storage.item import tree_text
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, InPack, Piece, Snapshot, StringContent
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Key

SETTINGS = WriteSettings()


def array(name: str, shape: tuple[int, ...], source: Any) -> Entry:
    piece = Piece((0,) * len(shape), shape, source)
    return Entry((Key(name),), ArrayContent("np.ndarray", shape, np.dtype(np.float32), shape, (piece,), "jax"))


PACKED = tuple(array(f"small_{number}", (2,), InPack(number, 8 * number, 8 * number + 8)) for number in range(3))


def taken(kept: dict[str, Any], text: str = "a", shape: tuple[int, ...] = (3,), **more: Any) -> Snapshot:
    rest = (
        array("large", shape, np.zeros(shape, np.float32)),
        Entry((Key("text"),), StringContent(text)),
        Entry((Key("empty"),), EmptyContent("List")),
    )
    return Snapshot((*PACKED, *rest), kept=kept, rest=(3, 4, 5), **more)


def written(directory: pathlib.Path, snapshot: Snapshot, settings: WriteSettings = SETTINGS) -> dict[str, bytes]:
    directory.mkdir()
    tree_text.write(str(directory), snapshot, settings)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_next_save_of_the_structure_writes_the_same_files(tmp_path: pathlib.Path) -> None:
    kept: dict[str, Any] = {}
    first = written(tmp_path / "first", taken(kept))
    with mock.patch.object(tree_text, "_keys", side_effect=AssertionError):
        assert written(tmp_path / "second", taken(kept)) == first


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "b"},
        {"shape": (4,)},
        {"custom_metadata": {"key": 1}},
        {"custom_metadata": {"key": True}},
        {"entries": (*PACKED, *taken({}).entries[3:5], Entry((Key("empty"),), EmptyContent("Tuple")))},
        {"entries": (*PACKED, *taken({}).entries[3:5], Entry((Key("other"),), EmptyContent("List")))},
    ],
)
def test_what_is_no_part_of_the_structure_is_written_anew(tmp_path: pathlib.Path, changed: dict[str, Any]) -> None:
    kept: dict[str, Any] = {}
    written(tmp_path / "first", taken(kept, custom_metadata={"key": 1.0}))
    entries = changed.pop("entries", None)
    second = taken(kept, **{"custom_metadata": {"key": 1.0}, **changed})
    if entries is not None:
        second = dataclasses.replace(second, entries=entries)
    found = written(tmp_path / "second", second)
    assert found == written(tmp_path / "anew", dataclasses.replace(second, kept=None))


def test_other_settings_are_written_anew(tmp_path: pathlib.Path) -> None:
    kept: dict[str, Any] = {}
    first = written(tmp_path / "first", taken(kept))
    second = written(tmp_path / "second", taken(kept), WriteSettings(max_file_size=1 << 20))
    assert second != first


def test_the_data_of_large_arrays_is_not_kept(tmp_path: pathlib.Path) -> None:
    kept: dict[str, Any] = {}
    written(tmp_path / "first", taken(kept))
    ((_, _, _, others), _) = kept["tree"]
    assert [content.pieces for _, content in others if isinstance(content, ArrayContent)] == [()]


def test_large_files_are_not_kept(tmp_path: pathlib.Path) -> None:
    kept: dict[str, Any] = {}
    written(tmp_path / "first", taken(kept, "x" * (9 << 20)))
    assert kept == {}
