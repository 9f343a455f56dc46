"""A path that is not a checkpoint: the error says what is there, and with what it can be read."""

import os
import pickle
import shutil
from pathlib import Path

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt.storage import foreign

STATE = {"params": {"kernel": np.ones((2, 3), np.float32)}}


def error_of(path: object) -> Exception:
    """Returns the error of opening a path, which is the same for every way to open it, and changes nothing."""
    target = jaxckpt.Checkpoint(x=1)
    errors = []
    for opened in (target.restore, target.read, jaxckpt.load_checkpoint, jaxckpt.verify):
        with pytest.raises((jaxckpt.CheckpointError, OSError)) as info:
            opened(path)
        errors.append(info.value)
    assert len({(type(error), str(error)) for error in errors}) == 1
    assert target.x == 1
    return errors[0]


def refused(path: object) -> str:
    """Returns what the error says of a path at which there is something else."""
    error = error_of(path)
    assert type(error) is jaxckpt.CheckpointError
    text = str(error)
    start = f"{os.fspath(path)} is not an Orbax checkpoint: "
    assert text.startswith(start)
    return text.removeprefix(start)


def keras_header(name: bytes) -> bytes:
    return b"PK\x03\x04" + b"\0" * 22 + len(name).to_bytes(2, "little") + b"\0\0" + name


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("state.msgpack", flax.serialization.to_bytes(STATE), "flax.serialization.msgpack_restore"),
        (
            "checkpoint_7",
            flax.serialization.msgpack_serialize({str(n): n for n in range(40)}),
            "it is a checkpoint of flax.training.checkpoints (msgpack). To convert it, load it with",
        ),
        ("model.eqx", b"\x93NUMPY\x01\x00", "equinox.tree_deserialise_leaves"),
        ("model.st", (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32"', "a name that ends in .safetensors"),
        ("model.pt", keras_header(b"archive/data.pkl"), "torch.load"),
        ("model.bin", keras_header(b"archive/.format_version"), "torch.load"),
        ("old.pt", pickle.dumps({"w": 1}), "torch.load"),
        ("model.keras", keras_header(b"metadata.json"), "keras.models.load_model"),
        ("model.h5", b"\x89HDF\r\n\x1a\n\x00", "h5py"),
        ("other.zip", keras_header(b"x.txt"), "it is a zip file"),
        ("checkpoint", b'model_checkpoint_path: "ckpt-3"\n', "it is a state file"),
        ("notes.txt", b"notes", "it is a file; a checkpoint is a directory."),
        ("empty", b"", "it is an empty file."),
        ("ones", b"\xff" * 600, "it is a file; a checkpoint is a directory."),
    ],
)
def test_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refused(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_numpy_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    np.save(tmp_path / "a.npy", np.ones(3))
    assert refused(tmp_path / "a.npz") == "it is an .npz file of numpy. Read it with numpy.load."
    assert refused(tmp_path / "a.npy") == "it is an array of numpy. Read it with numpy.load."


def test_tensorflow(tmp_path: Path) -> None:
    for name in ("ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-12.index", "ckpt-12.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"\x00\x00\x00")
    prefix = f"{tmp_path}/ckpt-3"
    # There is no file of that name: it is TensorFlow's name for several.
    with pytest.raises(jaxckpt.CorruptCheckpointError, match=r"ckpt-3.index: this file is damaged"):
        jaxckpt.load_checkpoint(prefix)
    for part in (f"{prefix}.index", f"{prefix}.data-00000-of-00001"):
        assert refused(part).startswith(f"it is a part of the TensorFlow checkpoint {prefix}.")
    assert f"Pass one of them, such as '{tmp_path}/ckpt-12'" in refused(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-3"\n')
    assert "it is a directory of TensorFlow checkpoints (ckpt-3, ckpt-12)" in str(foreign.describe(str(tmp_path)))
    assert f"such as '{prefix}'" in str(foreign.describe(str(tmp_path)))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert "tf.saved_model.load" in refused(tmp_path / "saved")


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "it is an empty directory."
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("notes")
    assert refused(tmp_path / "notes") == "it has no _METADATA."
    (tmp_path / "flax").mkdir()
    for step in (9, 10):
        (tmp_path / "flax" / f"checkpoint_{step}").write_bytes(flax.serialization.to_bytes(STATE))
    assert "it is a directory of Flax checkpoints (checkpoint_9, checkpoint_10)" in refused(tmp_path / "flax")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").write_bytes((60).to_bytes(8, "little") + b'{"w":1}')
    assert refused(tmp_path / "hub").startswith(
        "it is a directory with the file model.safetensors; it is a safetensors file"
    )
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "x.pt").write_text("something")
    assert refused(tmp_path / "torch") == "it is a directory with the file x.pt."


def test_a_directory_in_which_no_save_has_been_finished(tmp_path: Path) -> None:
    (tmp_path / "run" / "ckpt.jaxckpt-tmp-01234567-1-2-89abcdef" / "checkpoint").mkdir(parents=True)
    found = refused(tmp_path / "run")
    assert "no checkpoint has been committed in this directory: a save (ckpt) still runs, or was not finished" in found
    assert f"`jaxckpt list {tmp_path / 'run'}`" in found


def test_a_directory_of_checkpoints(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(x=1)
    for _ in range(3):
        latest = checkpoint.save(tmp_path / "ckpt")
    for call in (checkpoint.restore, checkpoint.read, jaxckpt.verify):
        with pytest.raises(jaxckpt.CheckpointError) as info:
            call(tmp_path)
        assert str(info.value) == (
            f"{tmp_path} is not an Orbax checkpoint: it is a directory of checkpoints (ckpt-1, ckpt-2, ckpt-3). "
            f"The latest is {latest!r}, which jaxckpt.latest_checkpoint({str(tmp_path)!r}) returns; pass that."
        )
    # Named by the state file, which may name an older one.
    state = (tmp_path / "checkpoint").read_text()
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\n')
    with pytest.raises(jaxckpt.CheckpointError, match=f"The latest is '{tmp_path}/ckpt-2'"):
        checkpoint.restore(tmp_path)
    (tmp_path / "checkpoint").write_text(state)
    shutil.rmtree(latest)
    with pytest.raises(jaxckpt.CheckpointError, match=f"without a state file .* such as '{tmp_path}/ckpt-2'"):
        checkpoint.restore(tmp_path)


def test_a_run_of_orbax(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 10):
            manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(STATE), config=ocp.args.JsonSave({"lr": 1}))
            )
    assert jaxckpt.load_checkpoint(tmp_path / "run").path == str(tmp_path / "run" / "10")
    assert jaxckpt.load_checkpoint(tmp_path / "run" / "10").keys() == ["params/kernel"]
    item = tmp_path / "run" / "10" / "config"
    assert refused(item) == (
        f"it is a JSON item of Orbax. Read it with orbax.checkpoint.JsonCheckpointHandler, or json.load of {item}/metadata."
    )
    # A checkpoint of nothing else is whole, not damaged.
    shutil.rmtree(tmp_path / "run" / "10" / "state")
    assert refused(tmp_path / "run" / "10").startswith("it has no tree, only JSON items (config). Read them with")
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "json", args=ocp.args.JsonSave({"lr": 1}))
    assert refused(tmp_path / "json").startswith("it is a JSON item of Orbax.")


def test_orbax_before_it_described_its_trees(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(STATE))
    assert refused(tmp_path / "old").startswith("it is of Orbax before 0.5")
    # What the advice says works.
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "old")
    assert np.array_equal(restored["params"]["kernel"], STATE["params"]["kernel"])


def test_a_save_that_was_not_finished(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(x=1).write(tmp_path / "ckpt")
    for name in ("ckpt-2.orbax-checkpoint-tmp-17", "ckpt-2.jaxckpt-tmp-0123abcd-17-18-0123abcd"):
        shutil.copytree(path, tmp_path / name)
        for call in (jaxckpt.Checkpoint(x=1).restore, jaxckpt.load_checkpoint):
            with pytest.raises(ValueError, match=r"unfinished saves\. .*to restore, take a committed checkpoint"):
                call(tmp_path / name)
        for call in (jaxckpt.verify, jaxckpt.Reader):
            with pytest.raises(jaxckpt.CheckpointError, match="temporary directory of a save that was not finished"):
                call(str(tmp_path / name))


def test_broken_links(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(x=1).write(tmp_path / "ckpt")
    (tmp_path / "best").symlink_to("ckpt")
    assert jaxckpt.load_checkpoint(tmp_path / "best").get_tensor("x") == 1
    shutil.rmtree(path)
    error = error_of(tmp_path / "best")
    assert isinstance(error, FileNotFoundError)
    assert error.filename == f"{tmp_path}/best"
    assert error.strerror.startswith("This link leads to ckpt, which does not exist")


def test_what_is_neither_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "it is neither a file nor a directory."
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert refused(tmp_path / "zero") == "it is neither a file nor a directory."
    for name in ("checkpoint", "metadata", "model.safetensors", "checkpoint_3"):
        (tmp_path / "run").mkdir()
        os.mkfifo(tmp_path / "run" / name)
        assert foreign.describe(str(tmp_path / "run")) != "it is an empty directory."
        shutil.rmtree(tmp_path / "run")


def test_damage_of_our_own_is_still_damage(tmp_path: Path) -> None:
    path = Path(jaxckpt.Checkpoint(x=np.ones(5), text="a").write(tmp_path / "ckpt"))
    (path / "_METADATA").unlink()
    with pytest.raises(jaxckpt.CorruptCheckpointError, match="_METADATA: this file of the checkpoint is missing"):
        jaxckpt.load_checkpoint(path)


def test_a_missing_path_mentions_the_number(tmp_path: Path) -> None:
    error = error_of(tmp_path / "ckpt")
    assert isinstance(error, FileNotFoundError)
    assert "save() appends a number ('ckpt-1')" in str(error)
