"""Orbax's checkpointer drives a save of one process: Orbax reports it, and commits where jaxckpt takes over."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import orbax_events
import pytest

import jaxckpt
from jaxckpt.storage import compat
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.item import digests
from jaxckpt.storage.stores import local


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_orbax_reports_the_save(tmp_path: Path, asynchronous: bool) -> None:
    checkpoint = jaxckpt.Checkpoint(a=np.arange(10))
    with orbax_events.heard() as names:
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
        checkpoint.sync()
    expected = orbax_events.ASYNCHRONOUS if asynchronous else orbax_events.SYNCHRONOUS
    assert orbax_events.of_saves(names) == dict.fromkeys(sorted(expected), 1)


def test_one_temporary_directory_one_rename_and_digests_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    renamed: list[str] = []
    written: list[str] = []

    def rename(self: Any, target: Any) -> Any:
        renamed.append(str(self))
        return original(self, target)

    def noting(directory: str, **more: Any) -> None:
        written.append(directory)
        write_digests(directory, **more)

    def sync_tree(directory: str) -> None:
        seen.append([os.path.relpath(path, tmp_path) for path in Path(directory).parents[0].iterdir()])
        sync(directory)

    original, write_digests, sync = os.rename, digests.write, local.sync_tree
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(digests, "write", noting)
    monkeypatch.setattr(local, "sync_tree", sync_tree)
    path = jaxckpt.Checkpoint(a=np.arange(10)).save(tmp_path / "ckpt")
    assert [len(names) for names in seen] == [1]
    assert renamed == []
    assert len(written) == 1
    assert jaxckpt.verify(path).ok
    assert ocp.PyTreeCheckpointer().restore(path)["a"].tolist() == list(range(10))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_cancellation_inside_of_orbax_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Orbax's asynchronous checkpointer swallows one, and says nothing."""

    def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(writer, "write_arrays", cancelled)
    checkpoint = jaxckpt.Checkpoint(a=np.arange(10))
    with pytest.raises((jaxckpt.CheckpointError, asyncio.CancelledError)):
        checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(enable_async=asynchronous))
        checkpoint.sync()
    assert os.listdir(tmp_path) == []


def test_a_version_of_orbax_that_counts_in_another_place_is_named() -> None:
    class Checkpointer:
        pass

    with pytest.raises(ImportError, match=r"jaxckpt uses .*synchronize_next_awaitable_signal_operation_id"):
        compat.uncounted(Checkpointer)
