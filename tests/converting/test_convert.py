"""``jaxckpt convert``: any source to checkpoints and safetensors files, and back, bit for bit."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx
from from_tensorflow import written

import jaxckpt
from jaxckpt import cli
from jaxckpt.converting import Choice, convert
from jaxckpt.tree.renaming import Rule

pytestmark = pytest.mark.sampled


class NoWatch:
    def begin(self, nbytes: int) -> None: ...

    def advance(self, nbytes: int) -> None: ...


def values() -> dict[str, Any]:
    """A value of every kind."""
    params = {"layers": [{"kernel": jnp.arange(6.0).reshape(2, 3)}, {"kernel": jnp.ones((3, 1), jnp.bfloat16)}]}
    return {
        "model": params,
        "optimizer": optax.adam(0.1).init(params),
        "key": jax.random.key(3),
        "text": "grüße",
        "data": b"\0\xff",
        "step": 7,
        "rate": 0.5,
        "flag": True,
        "scalar": np.float16(1.5),
        "host": np.array([np.nan, -0.0]),
        "nothing": np.zeros((0, 4), np.int8),
        "a/b.c~d": np.uint64(2**64 - 1),
        "holes": [None, {}, ()],
    }


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A checkpoint with a value of every kind."""
    return jaxckpt.Checkpoint(**values()).save(tmp_path / "ckpt")


def structure(path: Path | str) -> Any:
    return jax.tree.structure(jaxckpt.load_checkpoint(path).tree())


def run(*arguments: object) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_to_a_checkpoint_and_to_safetensors_and_back(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "copy") == 0
    assert run(source, tmp_path / "x.safetensors") == 0
    captured = capsys.readouterr()
    assert "x.safetensors: " in captured.out
    assert "holes/1: an empty container" in captured.err
    assert run(tmp_path / "x.safetensors", tmp_path / "back") == 0
    for other in ("copy", "x.safetensors", "back"):
        assert cli.main(["diff", source, str(tmp_path / other)]) == 0, other
        capsys.readouterr()
        a, b = (jaxckpt.load_checkpoint(path) for path in (source, tmp_path / other))
        assert [a.metadata(name).kind for name in a.keys()] == [b.metadata(name).kind for name in a.keys()]
        fresh = values()
        fresh |= {"step": 0, "text": "", "data": b"", "model": jax.tree.map(jnp.zeros_like, fresh["model"])}
        checkpoint = jaxckpt.Checkpoint(**fresh)
        checkpoint.restore(tmp_path / other).assert_consumed()
        assert (checkpoint.save_counter, checkpoint.step, checkpoint.text, checkpoint.data) == (
            1,
            7,
            "grüße",
            b"\0\xff",
        )
        np.testing.assert_array_equal(checkpoint.model["layers"][0]["kernel"], np.arange(6.0).reshape(2, 3))
    assert jaxckpt.verify(tmp_path / "copy").ok
    assert jaxckpt.verify(tmp_path / "back").ok
    # Containers come back too, but for what a safetensors file has no place for.
    assert structure(tmp_path / "copy") == structure(source)
    assert isinstance(jaxckpt.load_checkpoint(tmp_path / "back").tree()["model"]["layers"], list)


def test_the_library_reads_what_is_written(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "x.safetensors", "--filter", "model/*")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {"model/layers/0/kernel", "model/layers/1/kernel"}
        np.testing.assert_array_equal(file.get_tensor("model/layers/0/kernel"), np.arange(6.0).reshape(2, 3))


def test_plain_orbax_reads_what_is_written(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "copy", "--filter", "model/*")
    restored = ocp.StandardCheckpointer().restore(tmp_path / "copy")
    np.testing.assert_array_equal(restored["model"]["layers"][0]["kernel"], np.arange(6.0).reshape(2, 3))


@pytest.mark.slow
def test_an_nnx_program(tmp_path: Path) -> None:
    model = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1))])
    source = jaxckpt.Checkpoint(model=model).write(tmp_path / "nnx")
    for target in ("copy", "x.safetensors"):
        run(source, tmp_path / target)
        other = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(2)), nnx.Linear(3, 1, rngs=nnx.Rngs(3))])
        jaxckpt.Checkpoint(model=other).read(tmp_path / target).assert_consumed()
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(other))
    assert structure(tmp_path / "copy") == structure(source)


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
@pytest.mark.parametrize("name", written.NAMES)
def test_from_tensorflow(name: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = written.golden(name)
    patterns = (
        ["--filter", "*[!124]", "--filter", "*16", "--filter", "*32", "--filter", "*64"] if name == "dtypes" else []
    )
    if name == "dtypes" and target == "out.safetensors":
        patterns = [
            "--filter",
            "*loat16",
            "--filter",
            "*int*6*",
            "--filter",
            "*int8",
            "--filter",
            "bool",
            "--filter",
            "special",
        ]
    if name == "dtypes" and target == "out":
        patterns = [
            "--filter",
            "*loat*",
            "--filter",
            "*nt8",
            "--filter",
            "*nt?[24]",
            "--filter",
            "*complex*",
            "--filter",
            "int4",
        ]
    assert run(checkpoint.prefix, tmp_path / target, *patterns) == 0
    error = capsys.readouterr().err
    a, b = (jaxckpt.load_checkpoint(path) for path in (checkpoint.prefix, tmp_path / target))
    left_out = set(a.keys()) - set(b.keys())
    if name != "dtypes":
        nested = {key for key in a.keys() if ".OPTIMIZER_SLOT" in key or "/Adam" in key}
        strings = {key for key in a.keys() if a.metadata(key).kind == "TensorFlow string"}
        assert left_out == nested | strings
        assert all(f"  {key}: " in error for key in left_out)
    for key in b.keys():
        one, other = a.get_tensor(key), b.get_tensor(key)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if "save_counter" in b:
        fresh = jaxckpt.Checkpoint()
        fresh.restore(tmp_path / target).expect_partial()
        assert fresh.save_counter == a.get_tensor("save_counter")


def test_slots_become_leaves_by_renaming(tmp_path: Path) -> None:
    prefix = written.golden("keras2_legacy").prefix
    rules = ["--rename", "optimizer/m/model=moments/mu", "--rename", "optimizer/v/model=moments/nu"]
    assert run(prefix, tmp_path / "out", *rules) == 0
    a, b = jaxckpt.load_checkpoint(prefix), jaxckpt.load_checkpoint(tmp_path / "out")
    assert len(a) == len(b)
    slot = a.get_tensor("model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/v")
    assert b.get_tensor("moments/nu/layer_with_weights-0/kernel").tobytes() == slot.tobytes()


def test_keras_3_gets_the_models_names_by_renaming(tmp_path: Path) -> None:
    prefix = written.golden("keras3").prefix
    rules = [
        f"model/_functional/_operations/{number}=model/{name}"
        for number, name in ((1, "hidden"), (2, "norm"), (3, "out"))
    ]
    assert (
        run(
            prefix,
            tmp_path / "out",
            *(word for rule in rules for word in ("--rename", rule)),
            "--filter",
            "model/_functional/*",
        )
        == 0
    )
    found = jaxckpt.load_checkpoint(tmp_path / "out")
    assert found.keys() == [
        *("model/hidden/_kernel", "model/hidden/bias", "model/norm/beta", "model/norm/gamma", "model/norm/moving_mean"),
        *("model/norm/moving_variance", "model/out/_kernel", "model/out/bias"),
    ]
    weights = jaxckpt.load_variable(prefix, "optimizer/_trainable_variables/0")
    assert found.get_tensor("model/hidden/_kernel").tobytes() == weights.tobytes()


def test_cast(source: str, tmp_path: Path) -> None:
    for target in ("out", "out.safetensors"):
        assert run(source, tmp_path / target, "--cast", "bfloat16") == 0
        found = jaxckpt.load_checkpoint(tmp_path / target)
        kinds = {
            name: str(found.dtype(name))
            for name in ("model/layers/0/kernel", "host", "rate", "step", "key", "data", "flag")
        }
        assert kinds == {
            **dict.fromkeys(["model/layers/0/kernel", "host", "rate"], "bfloat16"),
            "step": "int64",
            "key": "uint32",
            "data": "uint8",
            "flag": "bool",
        }
        np.testing.assert_array_equal(found.get_tensor("model/layers/0/kernel"), np.arange(6).reshape(2, 3))


def test_a_value_that_the_cast_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jaxckpt.Checkpoint(fine=np.ones(3, np.float32), big=np.array([1e30], np.float32)).write(tmp_path / "a")
    for target in ("out", "out.safetensors"):
        assert run(source, tmp_path / target, "--cast", "float16") == 1
        assert "big: " in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a"]


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_an_existing_target(target: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, tmp_path / target, "--filter", "step") == 0
    assert run(source, tmp_path / target) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert jaxckpt.load_checkpoint(tmp_path / target).keys() == ["save_counter", "step"]
    assert run(source, tmp_path / target, "--filter", "model/*", "--overwrite") == 0
    assert "step" not in jaxckpt.load_checkpoint(tmp_path / target)
    # What is not of that form is never replaced.
    if target == "out":
        (tmp_path / "notes").write_text("notes")
        assert run(source, tmp_path / "notes", "--overwrite") == 1
        assert (tmp_path / "notes").read_text() == "notes"
    else:
        (tmp_path / "d.safetensors").mkdir()
        assert run(source, tmp_path / "d.safetensors", "--overwrite") == 1
        assert (tmp_path / "d.safetensors").is_dir()
    assert run(source, source, "--overwrite") == 1
    assert jaxckpt.verify(source).ok


@pytest.mark.parametrize("ending", [".safetensor", ".safetensros", ".SafeTensors"])
def test_a_mistyped_ending(ending: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(source, f"{tmp_path}/x{ending}") == 1
    error = capsys.readouterr().err
    assert f"mistyped '.safetensors'. Give '{tmp_path}/x.safetensors'" in error
    assert sorted(tmp_path.iterdir()) == before
    # A slash insists on a checkpoint; other endings are only names.
    for target in (f"x{ending}/", "x.save", "x.tensors"):
        assert run(source, f"{tmp_path}/{target}") == 0
        assert (tmp_path / target / "_METADATA").exists()


def test_other_names_that_the_target_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {f"model.layers.{number}.weight": np.full(2, number, np.float32) for number in range(2)}
    safetensors.numpy.save_file({**weights, "bias": np.ones(2, np.float32)}, tmp_path / "theirs.safetensors")
    assert jaxckpt.load_checkpoint(tmp_path / "theirs.safetensors").has_tensor("model/layers/1/weight")
    assert run(tmp_path / "theirs.safetensors", tmp_path / "dots") == 0
    error = capsys.readouterr().err
    assert "2 leaves can be read from the source under another name too, such as 'model/layers/0/weight'" in error
    assert "--rename model=model" in error
    assert not jaxckpt.load_checkpoint(tmp_path / "dots").has_tensor("model/layers/1/weight")
    assert run(tmp_path / "theirs.safetensors", tmp_path / "slashes", "--rename", "model=model") == 0
    assert capsys.readouterr().err == ""
    assert jaxckpt.load_checkpoint(tmp_path / "slashes").has_tensor("model/layers/1/weight")


def test_several_files(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def several(limit: int, *, overwrite: bool = False) -> str:
        return convert(
            source, f"{tmp_path}/x.safetensors", Choice(), NoWatch(), overwrite=overwrite, shard_bytes=limit
        ).target

    index = several(40)
    assert index == f"{tmp_path}/x.safetensors.index.json"
    files = sorted(path.name for path in tmp_path.glob("x*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"x-00001-of-{len(files):05d}.safetensors"
    assert cli.main(["diff", source, f"{tmp_path}/x.safetensors"]) == 0
    with pytest.raises(FileExistsError):
        several(40)
    # Files of the same names: the old ones stay until the new index is there, and go then.
    several(40, overwrite=True)
    assert len(list(tmp_path.glob("x*.safetensors"))) == len(files)
    assert cli.main(["diff", source, index]) == 0
    assert several(1 << 30, overwrite=True) == f"{tmp_path}/x.safetensors"
    assert [path.name for path in tmp_path.glob("*x*safetensors*")] == ["x.safetensors"]
    assert cli.main(["diff", source, f"{tmp_path}/x.safetensors"]) == 0


def test_a_target_that_touches_its_source(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = convert(source, f"{tmp_path}/x.safetensors", Choice(), NoWatch(), shard_bytes=40).target
    shard = sorted(tmp_path.glob("x-*.safetensors"))[0]
    step = jaxckpt.Checkpoint(value=np.ones(2)).write(tmp_path / "step")
    item = jaxckpt.Checkpoint(value=np.zeros(3), more=np.ones(1)).write(os.path.join(step, "state"))
    os.symlink(source, tmp_path / "link")
    os.symlink(index, tmp_path / "link.safetensors.index.json")

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    for given, target, why in [
        # What is replaced holds the source.
        (index, "x.safetensors", "a part of it"),
        (tmp_path / "x.safetensors", "x.safetensors", "a part of it"),
        (tmp_path / "link.safetensors.index.json", "x.safetensors", "a part of it"),
        (shard, "x.safetensors", "a part of it"),
        (item, "step", "holds the source"),
        (tmp_path / "link", "ckpt-1", "the source itself"),
        (source, "link", "the source itself"),
        # The target would be within the source.
        (source, "ckpt-1/x.safetensors", "lies in the source"),
        (source, "link/d/inner", "lies in the source"),
    ]:
        assert run(given, tmp_path / target, "--overwrite") == 1, (given, target)
        assert why in capsys.readouterr().err
        assert content() == before
    # Beside the source, nothing is in the way.
    assert run(source, f"{source}-copy") == 0
    assert run(item, f"{step}/other", "--filter", "value") == 0


def test_files_of_others_stay_that_an_index_names(source: str, tmp_path: Path) -> None:
    """An index may name any file of its directory. Only those with the name of the target are replaced with it."""
    other = tmp_path / "other.safetensors"
    assert run(source, other, "--filter", "model/*") == 0
    names = dict.fromkeys(safetensors.safe_open(other, "np").keys(), other.name)
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    before = other.read_bytes()
    assert run(source, tmp_path / "x.safetensors", "--overwrite") == 0
    assert other.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*safetensors*")) == ["other.safetensors", "x.safetensors"]


def test_nothing_stays_of_several_files_that_cannot_all_be_placed(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, []

    def failing(old: str, new: str) -> None:
        if len(done) == 2:
            raise OSError(errno.EIO, "Input/output error", new)
        done.append(new)
        replace(old, new)

    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "replace", failing)
        convert(source, f"{tmp_path}/x.safetensors", Choice(), NoWatch(), shard_bytes=40)
    assert len(done) == 2
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--filter", "absent*"], "'absent*' fits no leaf"),
        (["--rename", "absent=x"], "'absent=x' fits no leaf"),
        (["--rename", "model/layers/0=model/layers/1"], "would both be 'model/layers/1/kernel'"),
        (["--rename", "step="], "leaves nothing of the name 'step'"),
        (["--rename", "step=__metadata__"], "__metadata__: a safetensors file cannot hold a leaf of this name"),
        (["--cast", "complex128", "--rename", "host=h"], None),
    ],
    ids=["filter", "rename", "twice", "nothing", "metadata", "cast"],
)
def test_refusals(
    arguments: list[str], match: str | None, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(source, tmp_path / "x.safetensors", *arguments)
    assert code == (0 if match is None else 1)
    if match is not None:
        assert match in capsys.readouterr().err
        assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "arguments", [["--rename", "x"], ["--cast", "string"], ["--cast", "nonsense"], ["--rename", "=x"]]
)
def test_wrong_usage(arguments: list[str], source: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run(source, tmp_path / "x", *arguments)
    assert caught.value.code == 2


def test_dtypes_that_the_target_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jaxckpt.Checkpoint(four=np.zeros(3, ml_dtypes.int4)).write(tmp_path / "a")
    assert run(source, tmp_path / "x.safetensors") == 1
    assert "four: safetensors does not have the dtype int4" in capsys.readouterr().err
    assert run(source, tmp_path / "x.safetensors", "--cast", "int8") == 0
    assert run(written.golden("dtypes").prefix, tmp_path / "out", "--filter", "uint4") == 1
    assert "uint4: cannot store dtype uint4" in capsys.readouterr().err


def test_json_names_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written.golden("strings").prefix, tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["left_out"]) == {"array", "none"}
    assert found["leaves"] == 6


def test_damage_leaves_nothing(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in Path(source, "d").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    before = sorted(os.listdir(tmp_path))
    for target in ("out", "out.safetensors"):
        assert run(source, tmp_path / target) == 1
        assert "damaged" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_tensorflow_checkpoint_is_never_the_target(tmp_path: Path, source: str) -> None:
    (tmp_path / "ckpt-3.index").touch()
    assert run(source, tmp_path / "ckpt-3", "--overwrite") == 1
    assert not (tmp_path / "ckpt-3").exists()


_PEAK = """
import sys
from jaxckpt.converting import Choice, convert
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
class Watch:
    def begin(self, nbytes): self.before = peak()
    def advance(self, nbytes): pass
watch = Watch()
convert(sys.argv[1], sys.argv[2], Choice(), watch)
print(peak() - watch.before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_leaf(tmp_path: Path, program: Callable[..., str]) -> None:
    """24 leaves of 16 MiB each: far fewer are in memory at once."""
    state = {f"leaf{number}": np.full(4 << 20, number, np.float32) for number in range(24)}
    source = jaxckpt.Checkpoint(**state).write(tmp_path / "a")
    file = tmp_path / "b.safetensors"
    peaks = [int(program(_PEAK, *paths)) for paths in ((source, file), (file, tmp_path / "c"))]
    print(peaks)
    assert max(peaks) < 200 << 10
    assert cli.main(["diff", str(source), str(tmp_path / "c")]) == 0


@pytest.fixture
def program() -> Callable[..., str]:
    """Runs a program in a process of its own, and returns what it prints."""

    def run(text: str, *arguments: object) -> str:
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", text, *map(str, arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        return done.stdout

    return run


_ENDLESS = """
import sys
from jaxckpt.converting import Choice, convert
class Watch:
    def begin(self, nbytes): pass
    def advance(self, nbytes): print("written", flush=True); sys.stdin.readline()
convert(sys.argv[1], sys.argv[2], Choice(), Watch(), overwrite=True, shard_bytes=40)
"""


@pytest.mark.slow
def test_killed_while_it_replaces_safetensors_files(source: str, tmp_path: Path) -> None:
    """The old files stay whole."""
    target = tmp_path / "x.safetensors"
    old = convert(source, str(target), Choice(["model/*"]), NoWatch(), shard_bytes=8).target
    before = {path.name: path.read_bytes() for path in tmp_path.glob("x*")}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, source, str(target)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "written\n"
            process.stdin.write("\n")
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("x*")} == before
    assert jaxckpt.verify(old).ok


def test_rules() -> None:
    def renamed(rule: str, name: str) -> str | None:
        path = Rule.parse(rule).apply([(key, 0) for key in name.split("/")])
        return None if path is None else "/".join(key.text for key in path)

    assert renamed("a=b", "a") == "b"
    assert renamed("a=b", "a/x") == "b/x"
    assert renamed("a=b", "ab/x") is None
    assert renamed("a/=b/c/", "a/x") == "b/c/x"
    assert renamed("a=", "a/x") == "x"
    assert renamed("a~1b=c", "a/b") is None
