"""``jaxckpt verify``."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt.cli import main


@pytest.fixture
def path(tmp_path):
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    return jaxckpt.Checkpoint(weights=weights, step=1).save(tmp_path / "ckpt")


def flip_a_bit(path):
    """Flips one bit in the middle of the largest file, which holds the weights."""
    largest = max((file for file in Path(path).rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_an_undamaged_checkpoint(call, path):
    done = call("verify", path)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{path}: ok: 3 leaves, 256.0 KiB, ")
    assert "checksums match" in line


def test_damage_names_the_leaf(call, path):
    flip_a_bit(path)
    done = call("verify", path)
    assert (done.returncode, done.stderr) == (1, "")
    heading, *problems = done.stdout.splitlines()
    assert heading.startswith(f"{path}: DAMAGED: 1 problem")
    assert [line.split(":")[0] for line in problems] == ["  weights"]


def test_names_with_a_colon_are_reported_whole(tmp_path, capsys):
    weights = np.random.default_rng(0).standard_normal((256, 256))
    state = {"layer: 1": {"kernel": weights}, "layer": np.ones(3), "text: a": "some: text"}
    path = jaxckpt.Checkpoint(model=state).write(tmp_path / "run: 3")
    sound = {file: file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}

    def problems():
        assert main(["verify", "--json", path]) == 1
        (report,) = json.loads(capsys.readouterr().out)
        return [(problem["where"], problem["what"]) for problem in report["problems"]]

    flip_a_bit(path)
    ((where, what),) = problems()
    assert where == "model/layer: 1/kernel"
    assert what.startswith(f"the checkpoint {path} is damaged: ")
    assert main(["verify", path]) == 1
    assert f"  model/layer: 1/kernel: the checkpoint {path} is damaged: " in capsys.readouterr().out
    for file, content in sound.items():
        file.write_bytes(content)

    for name, what in (("_METADATA", "this file is damaged"), ("_JAXCKPT", "this file is damaged: its checksum")):
        file = Path(path) / name
        file.write_bytes(sound[file].replace(b"a", b"b", 1))
        found = problems()
        assert found[0][0] == str(file)
        assert found[0][1].startswith(what)
        file.write_bytes(sound[file])
    assert main(["verify", path]) == 0


def test_a_missing_file_is_named(path, capsys):
    victim = next(Path(path).rglob("_METADATA"))
    victim.unlink()
    assert main(["verify", path]) == 1
    assert "_METADATA" in capsys.readouterr().out


def test_json(path, capsys):
    assert main(["verify", "--json", path]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["checksummed"] is True
    assert report["leaves"] == 3
    assert report["problems"] == []
    flip_a_bit(path)
    assert main(["verify", "--json", path]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert [problem["where"] for problem in report["problems"]] == ["weights"]


def test_a_checkpoint_without_checksums_is_said_to_have_none(tmp_path, capsys):
    path = tmp_path / "plain"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": jnp.ones((3,))})
    assert main(["verify", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"{path}: readable" in text
    assert "no checksums" in text


def test_a_directory_stands_for_its_latest(path, capsys):
    assert main(["verify", str(Path(path).parent)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ok")


def test_one_bad_path_does_not_hide_the_others(path, tmp_path, capsys):
    other = jaxckpt.Checkpoint(x=1).write(tmp_path / "other")
    missing = str(tmp_path / "missing")
    assert main(["verify", path, missing, other]) == 1
    captured = capsys.readouterr()
    assert [line.split(": ")[:2] for line in captured.out.splitlines()] == [[path, "ok"], [other, "ok"]]
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jaxckpt verify: error: {missing}: ")
    assert main(["verify", "--json", path, missing]) == 1
    reports = json.loads(capsys.readouterr().out)
    assert [report["ok"] for report in reports] == [True, False]
    assert missing in reports[1]["error"]


def test_the_bytes_that_were_read_are_told(tmp_path):
    path = jaxckpt.Checkpoint(a=np.ones(1000), b=np.zeros((0, 3)), n=1).write(tmp_path / "ckpt")
    told = []
    assert jaxckpt.verify(path, progress_bytes=lambda done, total: told.append((done, total))).ok
    assert told[0] == (0, 8008)
    assert told[-1] == (8008, 8008)
