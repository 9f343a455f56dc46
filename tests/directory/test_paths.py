"""A path means one place to every call: ``..``, links, relative paths, and names that are none."""

import os
import random
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt import storage
from jaxckpt.cli import main
from jaxckpt.directory import free_numbers, paths
from jaxckpt.storage.commit import temporary
from jaxckpt.storage.stores import local

SMALL_FILES = jaxckpt.CheckpointOptions(experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1 << 20))


def checkpoint(value: float) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(value=np.full(4, value))


def restored(path: str | None) -> float:
    target = checkpoint(-1.0)
    target.restore(path).assert_consumed()
    return float(target.value[0])


def values_of_all_calls(prefix: str, path: str) -> dict[str, float]:
    """The value that each call finds, given the prefix of a save and a path of its checkpoint."""
    directory, name = os.path.split(prefix)
    managed = checkpoint(-1.0)
    manager = jaxckpt.CheckpointManager(managed, directory, 3, checkpoint_name=name)
    found = {
        "restore": restored(path),
        "manager.latest_checkpoint": restored(manager.latest_checkpoint),
        "manager.checkpoints": restored(manager.checkpoints[-1]),
        "restore_or_initialize": restored(manager.restore_or_initialize()),
        "its values": float(managed.value[0]),
        "latest_checkpoint": restored(jaxckpt.latest_checkpoint(directory)),
        "get_checkpoint_state": restored(jaxckpt.get_checkpoint_state(directory).model_checkpoint_path),
        "checkpoints_iterator": restored(next(jaxckpt.checkpoints_iterator(directory, timeout=0))),
        "load_checkpoint": float(jaxckpt.load_checkpoint(path).get_tensor("value")[0]),
        "of the directory": float(jaxckpt.load_checkpoint(directory).get_tensor("value")[0]),
        "load_variable": float(jaxckpt.load_variable(path, "value")[0]),
    }
    assert jaxckpt.verify(path).ok
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``here``, with a link ``here/link`` to ``far/away/target``."""
    (tmp_path / "here").mkdir()
    (tmp_path / "far/away/target").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to("../far/away/target")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("options", [None, SMALL_FILES], ids=["one file", "many files"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_parent_of_what_does_not_exist(relative: bool, options: jaxckpt.CheckpointOptions, place: Path) -> None:
    prefix = ("" if relative else f"{place}/here/") + "run/../sub/none/../../runs/c"
    path = checkpoint(1.0).save(prefix, options)
    assert path == ("runs/c-1" if relative else f"{place}/here/runs/c-1")
    assert os.path.isdir(path)
    assert sorted(os.listdir(place / "here")) == ["link", "runs"]
    assert set(values_of_all_calls(prefix, f"{prefix}-1").values()) == {1.0}
    written = checkpoint(2.0).write(f"{prefix}-exact", options)
    assert written == path.removesuffix("1") + "exact"
    assert restored(written) == restored(f"{prefix}-exact") == 2.0
    manager = jaxckpt.CheckpointManager(checkpoint(3.0), os.path.dirname(prefix), 1, checkpoint_name="c")
    assert manager.save(7, options=options) == path.removesuffix("1") + "7"
    assert sorted(os.listdir(place / "here/runs")) == ["c-7", "c-exact", "checkpoint"]


@pytest.mark.parametrize("options", [None, SMALL_FILES], ids=["one file", "many files"])
@pytest.mark.parametrize("start", ["link/..", "../here/link/..", "./link/.//../../away"])
def test_the_parent_of_a_link_is_that_of_its_target(
    start: str, options: jaxckpt.CheckpointOptions, place: Path
) -> None:
    # The path leads there if only its text counts.
    checkpoint(5.0).save("c")
    path = checkpoint(1.0).save(f"{start}/c", options)
    assert path == f"{start}/c-1"
    assert (place / "far/away/c-1").is_dir()
    assert set(values_of_all_calls(f"{start}/c", path).values()) == {1.0}
    manager = jaxckpt.CheckpointManager(checkpoint(2.0), start, 1, checkpoint_name="c")
    assert manager.save() == f"{start}/c-2"
    assert manager.checkpoints == [f"{start}/c-2"] == [manager.latest_checkpoint]
    assert sorted(os.listdir(place / "far/away")) == ["c-2", "checkpoint", "target"]
    assert sorted(os.listdir(place / "here")) == ["c-1", "checkpoint", "link"]


def test_a_link_to_the_directory_keeps_its_name(place: Path) -> None:
    path = checkpoint(1.0).save("link/c")
    assert path == "link/c-1"
    assert set(values_of_all_calls("link/c", path).values()) == {1.0}
    assert jaxckpt.latest_checkpoint("link") == "link/c-1"
    assert jaxckpt.CheckpointManager(checkpoint(0.0), "link", 1, checkpoint_name="c").checkpoints == ["link/c-1"]


def test_an_absolute_entry_of_the_state_file_by_another_way(place: Path) -> None:
    checkpoint(1.0).save("link/c")
    (place / "far/away/target/checkpoint").write_text(f'model_checkpoint_path: "{place}/here/link/../target/c-1"\n')
    for directory in ("link", f"{place}/far/away/target"):
        manager = jaxckpt.CheckpointManager(checkpoint(0.0), directory, 1, checkpoint_name="c")
        assert manager.checkpoints == [f"{directory}/c-1"] == [jaxckpt.latest_checkpoint(directory)]


def test_what_tensorstore_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also through the command line, from a directory beside the checkpoint."""
    plain = place / "plain"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(plain, {"value": np.full(4, 1.0)})
    jaxckpt.Checkpoint(value=np.full(4, 1.0)).write("../small", SMALL_FILES)
    jaxckpt.Checkpoint(value=np.full(4, 1.0)).write("../own")
    for path in ("../plain", "../small", "../own", "link/../../../plain", "none/../../small"):
        np.testing.assert_array_equal(jaxckpt.load_checkpoint(path).get_tensor("value"), np.full(4, 1.0))
        for command in ("inspect", "verify"):
            assert main([command, path]) == 0, (command, path)
            assert capsys.readouterr().err == ""


def test_an_open_reader_stays_where_it_was_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (None, SMALL_FILES):
        checkpoint(1.0).write("c", options)
        reader = jaxckpt.load_checkpoint("c")
        monkeypatch.chdir(place)
        assert reader.get_tensor("value")[0] == 1.0
        assert reader.path == "c"
        monkeypatch.chdir(place / "here")


def test_a_save_in_the_background_stays_where_it_began(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = checkpoint(1.0)
    manager = jaxckpt.CheckpointManager(saved, "link/../runs", 1)
    for policy in (None, SMALL_FILES.experimental_sharding_callback):
        path = manager.save(options=jaxckpt.CheckpointOptions(enable_async=True, experimental_sharding_callback=policy))
        monkeypatch.chdir(place)
        manager.sync()
        monkeypatch.chdir(place / "here")
        assert restored(path) == 1.0
    assert sorted(os.listdir(place / "far/away/runs")) == ["checkpoint", "ckpt-2"]
    assert os.listdir(place / "here") == ["link"]


@pytest.mark.parametrize("prefix", ["d/", "d/.", "d/..", ".", "..", "/", "gs://bucket/run/"])
def test_a_prefix_without_a_name(prefix: str, place: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        checkpoint(1.0).save(prefix)
    assert os.listdir(place / "here") == ["link"]


@pytest.mark.parametrize("path", ["d/.", "d/..", ".", "..", "../", "/", "//"])
def test_a_path_without_a_name(path: str, place: Path) -> None:
    with pytest.raises(ValueError, match="does not end in the name of a checkpoint"):
        checkpoint(1.0).write(path)
    assert os.listdir(place / "here") == ["link"]
    for name in (".", ".."):
        with pytest.raises(ValueError, match="checkpoint_name"):
            jaxckpt.CheckpointManager(checkpoint(1.0), place, 1, checkpoint_name=name)


class Owner:
    """Stands for a save."""


def test_two_spellings_of_one_path_are_one(place: Path) -> None:
    """A number that is given to a save in flight, and its temporary directory, are known under every name."""
    real = f"{place}/far/away/target/c"
    first, second = checkpoint(1.0), checkpoint(2.0)
    assert free_numbers.reserve_unused(first, "link/c", 1) == (1, "link/c-1")
    try:
        assert free_numbers.reserve_unused(second, real, 1) == (2, f"{real}-2")
        free_numbers.release(f"{real}-2", second)
    finally:
        free_numbers.release(paths.absolute("link/c-1"), first)
    assert free_numbers.reserve_unused(first, real, 1) == (1, f"{real}-1")
    free_numbers.release(f"{real}-1", first)
    live = temporary.TemporaryDirectory(storage.CheckpointPath.of(f"{real}-1"))
    for directory in ("link", os.path.dirname(real), "link/../target"):
        assert storage.sweep(directory) == []
        (leftover,) = storage.leftovers(directory)
        assert leftover.live
    live.remove()


def test_absolute_and_spelled_agree_with_the_system(place: Path) -> None:
    (place / "here/file").touch()
    (place / "here/broken").symlink_to("nowhere/deep")
    (place / "here/sub").mkdir()
    chosen = random.Random(1)
    names = ["..", "..", ".", "", "here", "sub", "link", "target", "file", "broken", "none"]
    for _ in range(3000):
        start = chosen.choice(["", f"{place}/", "./", "../"])
        path = start + "/".join(chosen.choices(names, k=chosen.randint(1, 6)))
        if not path:
            continue
        absolute, spelled = local.absolute(path), local.spelled(path)
        assert {"", ".", ".."}.isdisjoint(absolute.strip("/").split("/")) or absolute in ("/", "//")
        assert local.absolute(spelled) == absolute
        head = spelled[: spelled.rindex("..") + 2] if ".." in spelled.split("/") else "."
        assert os.path.isdir(head), path
        if os.path.exists(path):
            assert os.path.samefile(path, absolute)
            assert spelled == path
