"""A plain Orbax checkpoint with a leaf of a program's own type handler: whole, though that leaf can be read by the program alone."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt import cli


class Note:
    def __init__(self, text: str) -> None:
        self.text = text


class NoteHandler(ocp.type_handlers.TypeHandler):
    """Stores notes as files of its own."""

    def typestr(self) -> str:
        return "Note"

    async def metadata(self, infos: Any) -> Any:
        return [ocp.metadata.value.Metadata(name=info.name, directory=info.parent_dir) for info in infos]

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        for value, info in zip(values, infos, strict=True):
            folder = Path(str(info.parent_dir)) / "notes"
            folder.mkdir(exist_ok=True)
            (folder / info.name).write_text(value.text)
        return []

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        return [Note((Path(str(info.parent_dir)) / "notes" / info.name).read_text()) for info in infos]


class Derived(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays under another name."""

    def typestr(self) -> str:
        return "Special"


class Special(np.ndarray):
    """An array of the program's own."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    registry = ocp.type_handlers.create_type_handler_registry(
        (Special, Derived()),
        (Note, NoteHandler()),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (int, ocp.type_handlers.ScalarHandler()),
        (str, ocp.type_handlers.StringHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    special = np.arange(4.0).view(Special)
    tree = {"a": jnp.arange(3), "note": Note("x"), "list": [Note("y"), 2], "text": "t", "special": special}
    directory = tmp_path_factory.mktemp("notes") / "ckpt"
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, tree)
    return directory


def test_all_other_leaves_restore_and_read(path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=jnp.zeros(3, jnp.int32), text="", special=np.zeros(4), list=[None, 0])
    status = checkpoint.restore(path)
    assert sorted(status.unexpected) == ["list/0", "note"]
    status.expect_partial()
    assert np.array_equal(checkpoint.a, [0, 1, 2])
    assert np.array_equal(checkpoint.special, np.arange(4.0))
    assert (checkpoint.text, checkpoint.list) == ("t", [None, 2])
    reader = jaxckpt.load_checkpoint(path)
    assert np.array_equal(reader.get_tensor("special"), np.arange(4.0))
    assert dict(jaxckpt.list_variables(path))["note"] == ()
    assert reader.metadata("note").kind == "Note"
    with pytest.warns(UserWarning, match="these leaves are None.*note"):
        tree = reader.tree()
    assert tree["list"] == [None, 2]
    assert tree["note"] is None


def test_asking_for_it_is_an_error_that_names_it(path: Path) -> None:
    reader = jaxckpt.load_checkpoint(path)
    old = np.zeros(3)
    checkpoint = jaxckpt.Checkpoint(a=jnp.zeros(3, jnp.int32), note=old)
    for call in (
        lambda: reader.get_tensor("note"),
        lambda: reader.dtype("note"),
        lambda: jaxckpt.load_variable(path, "note"),
        lambda: checkpoint.restore(path),
    ):
        with pytest.raises(jaxckpt.CheckpointError, match=r"^note: .*type handler for 'Note'") as caught:
            call()
        assert type(caught.value) is jaxckpt.CheckpointError
    assert checkpoint.note is old
    assert not np.any(checkpoint.a)


def test_it_is_whole(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = jaxckpt.verify(path)
    assert report.ok
    assert sorted(report.unread) == ["list/0", "note"]
    assert "list/0" in str(report)
    assert cli.main(["verify", str(path)]) == 0
    assert "note" in capsys.readouterr().out
    assert cli.main(["inspect", str(path)]) == 0
    assert "Note" in capsys.readouterr().out
