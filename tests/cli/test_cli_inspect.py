"""``jaxckpt inspect``."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import jaxckpt
from jaxckpt.cli import folding, main, statistics
from jaxckpt.leaf_kinds.described import LeafMetadata


@pytest.fixture
def directory(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("x", None)
    values = {
        "layers": [jnp.full((2, 3), number, jnp.bfloat16) for number in range(11)],
        "sharded": jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), jax.NamedSharding(mesh, spec)),
        "host": np.zeros((5,), np.int8),
        "key": jax.random.key(0),
        "name": "grüß",
        "raw": b"\0\1\2",
        "a/b": 1.5,
    }
    jaxckpt.Checkpoint(model=values, step=7).save(tmp_path / "ckpt")
    return tmp_path


def test_text(call, directory):
    done = call("inspect", directory / "ckpt-1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{directory}/ckpt-1"
    cells = {line.split()[0]: line.split() for line in lines[1:]}
    assert cells["sharded"][1:4] == ["(8,", "4)", "float32"]
    assert "NamedSharding(x=4, y=2; PartitionSpec('x', None))" in done.stdout
    assert cells["host"] == ["host", "(5,)", "int8", "5", "5", "B", "np.ndarray"]
    assert cells["key"][-3:] == ["PRNG", "key", "(threefry2x32)"]
    assert cells["name"] == ["name", "6", "B", "str"]
    assert cells["raw"][-1] == "bytes"
    assert cells["a~1b"][-1] == "scalar"
    # Eleven equal leaves on one line, with their sums.
    assert cells["layers/0..10"][1:8] == ["(2,", "3)", "bfloat16", "66", "132", "B", "jax.Array,"]
    unfolded = call("inspect", "--unfold", directory / "ckpt-1").stdout.splitlines()
    assert [line.strip().split()[0] for line in unfolded if "bfloat16" in line] == [str(index) for index in range(11)]
    # Neither the text nor the save counter is an array.
    total = 11 * 12 + 128 + 5 + 8 + 3 + 8 + 8
    assert lines[-1].startswith(f"19 leaves, 103 array elements, {total} B ({total} bytes) of arrays")


def test_json(directory, capsys):
    # The directory stands for its latest.
    assert main(["inspect", "--json", str(directory)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == f"{directory}/ckpt-1"
    leaves = {leaf["name"]: leaf for leaf in found["leaves"]}
    assert set(leaves) == set(jaxckpt.load_checkpoint(directory / "ckpt-1").keys())
    assert leaves["model/layers/10"]["shape"] == [2, 3]
    assert leaves["model/layers/10"]["dtype"] == "bfloat16"
    assert leaves["model/layers/10"]["bytes"] == 12
    assert leaves["model/sharded"]["sharding"]["partition_spec"] == ["x", None]
    assert leaves["model/key"]["key_impl"] == "threefry2x32"
    assert leaves["model/name"]["dtype"] is None
    assert found["total"]["leaves"] == len(leaves)
    beside = leaves["model/name"]["bytes"] + leaves["save_counter"]["bytes"]
    assert found["total"]["bytes"] == sum(leaf["bytes"] for leaf in leaves.values()) - beside
    assert found["total"]["bytes_on_disk"] > found["total"]["bytes"]


def test_a_checkpoint_has_one_size(tmp_path, call):
    """Each command counts the bytes of the arrays."""
    checkpoint = jaxckpt.Checkpoint(model={"w": np.ones((10, 15), np.float32), "text": "some words"}, step=3)
    path = jaxckpt.CheckpointManager(checkpoint, tmp_path / "run", max_to_keep=2).save()
    (report,) = json.loads(call("report", "--json", tmp_path / "run").stdout)["saves"]
    (verified,) = json.loads(call("verify", "--json", path).stdout)
    sizes = {
        "report": report["save"]["bytes"],
        "verify": verified["bytes"],
        "inspect": json.loads(call("inspect", "--json", path).stdout)["total"]["bytes"],
        "convert": json.loads(call("convert", "--json", path, tmp_path / "new").stdout)["bytes"],
    }
    assert sizes == dict.fromkeys(sizes, 608)
    assert "identical: 4 leaves, 608 B, bit for bit" in call("diff", path, tmp_path / "new").stdout


def test_a_checkpoint_of_plain_orbax(tmp_path, capsys):
    path = tmp_path / "plain"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": jnp.ones((3,)), "n": 4})
    assert main(["inspect", "--json", str(path)]) == 0
    leaves = {leaf["name"]: leaf for leaf in json.loads(capsys.readouterr().out)["leaves"]}
    assert leaves["w"]["shape"] == [3]
    assert set(leaves) == {"w", "n"}


def test_an_empty_checkpoint(tmp_path, capsys):
    path = jaxckpt.Checkpoint().write(tmp_path / "empty")
    assert main(["inspect", path]) == 0
    # The one leaf is save_counter, which is not stored as an array.
    assert "1 leaf, 0 B (0 bytes) of arrays" in capsys.readouterr().out


def test_a_directory_without_checkpoints(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line


@pytest.fixture
def layered(tmp_path):
    """A checkpoint with 12 layers, of which one is unlike the others."""
    layers = {f"block_{number}": {"w": np.ones((2, 4 if number != 5 else 5), np.float32)} for number in range(12)}
    head = np.zeros(1000, np.float16)
    return jaxckpt.Checkpoint(model={"layers": layers, "head": head}, step=3).write(tmp_path / "layered")


def names_of(done):
    return [line.split()[0] for line in done.stdout.splitlines()[2:-1]]


def test_siblings_are_folded_in_natural_order(call, layered):
    done = call("inspect", layered)
    assert names_of(done) == [
        "model/",
        "head",
        "layers/",
        "block_0..4/w",
        "block_5/w",
        "block_6..11/w",
        "save_counter",
        "step",
    ]
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["block_6..11/w"][4:7] == ["48", "192", "B"]
    assert rows["model/"][1:3] == ["1.1", "k"]


def test_depth_filter_and_order(call, layered):
    assert names_of(call("inspect", "--depth", 1, layered)) == ["model/", "save_counter", "step"]
    assert names_of(call("inspect", "--sort", "bytes", "--depth", 2, layered))[:3] == ["model/", "head", "layers/"]
    done = call("inspect", "--filter", "*/block_5/*", "--filter", "nothing*", layered)
    assert names_of(done) == ["model/layers/block_5/w"]
    assert done.stdout.splitlines()[-1].startswith("1 leaf, 10 array elements, 40 B")
    assert done.stderr == "jaxckpt inspect: warning: --filter 'nothing*' matches no leaf\n"


def test_statistics(call, tmp_path, capsys):
    spread = np.arange(-3, 9, dtype=np.float32)
    values = {
        "layers": [spread.reshape(3, 4), 2 * spread.reshape(3, 4)],
        "bad": np.array([1, np.nan, np.inf, -np.inf, 5], np.float32),
        "half": jnp.full((4,), 3, jnp.bfloat16),
        "whole": np.array([2**63 - 1, -5], np.int64),
        "flags": np.array([True, False, False, True]),
        "waves": np.array([3 + 4j, 0]),
        "none": np.zeros((0, 3)),
        "huge": np.array([1e300, -1e300]),
        "text": "x",
        "key": jax.random.key(0),
    }
    path = jaxckpt.Checkpoint(**values).write(tmp_path / "ckpt")
    assert main(["inspect", "--json", "--stats", path]) == 0
    found = {leaf["name"]: leaf["statistics"] for leaf in json.loads(capsys.readouterr().out)["leaves"]}
    assert found["text"] is None
    assert found["key"] is None
    assert found["layers/0"] == {
        "count": 12,
        "nans": 0,
        "infs": 0,
        "min": -3.0,
        "max": 8.0,
        "mean": 2.5,
        "rms": pytest.approx(float(np.sqrt(np.mean(spread**2)))),
    }
    assert found["bad"] == {
        "count": 5,
        "nans": 1,
        "infs": 2,
        "min": 1.0,
        "max": 5.0,
        "mean": 3.0,
        "rms": pytest.approx(13**0.5),
    }
    assert found["half"]["mean"] == 3.0
    assert found["whole"]["max"] == 2**63 - 1
    assert found["flags"]["mean"] == 0.5
    assert found["waves"]["max"] == 5.0
    assert found["none"] == {"count": 0, "nans": 0, "infs": 0, **dict.fromkeys(("min", "max", "mean", "rms"))}
    assert found["huge"]["rms"] == pytest.approx(1e300)
    lines = call("inspect", "--stats", path).stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    # Both layers together.
    assert rows["layers/0..1"][-6:-2] == ["-6", "16", "3.75", f"{np.sqrt(np.mean([spread**2, (2 * spread) ** 2])):.3g}"]
    assert rows["bad"][-2:] == ["1", "2"]


@pytest.mark.parametrize(
    "options", [None, jaxckpt.OrbaxSettings(chunk_byte_size=1 << 20), jaxckpt.OrbaxSettings(compression="zstd")]
)
def test_statistics_read_large_arrays_in_parts(options, tmp_path, monkeypatch, capsys):
    array = np.random.default_rng(0).standard_normal((600, 2048)).astype(np.float32)
    path = jaxckpt.Checkpoint(x=array).write(tmp_path / "ckpt", jaxckpt.CheckpointOptions(orbax=options))
    sizes = []
    real = statistics.of_numbers
    monkeypatch.setattr(statistics, "_BYTES", 1 << 19)
    monkeypatch.setattr(statistics, "_ELEMENTS", 1 << 16)
    monkeypatch.setattr(statistics, "of_numbers", lambda block: (sizes.append(block.size), real(block))[1])
    assert main(["inspect", "--json", "--stats", path]) == 0
    (found,) = [leaf["statistics"] for leaf in json.loads(capsys.readouterr().out)["leaves"] if leaf["name"] == "x"]
    assert sum(sizes) == array.size + 0
    assert max(sizes) <= 1 << 16
    assert (found["min"], found["max"]) == (array.min(), array.max())
    assert found["mean"] == pytest.approx(array.mean(dtype=np.float64))
    assert found["rms"] == pytest.approx(np.sqrt(np.square(array, dtype=np.float64).mean()))


@given(
    parts=st.lists(
        nps.arrays(np.float64, st.integers(0, 5), elements=st.floats(allow_nan=True, allow_infinity=True)),
        min_size=1,
        max_size=4,
    )
)
def test_statistics_of_parts_are_those_of_the_whole(parts):
    total = sum(map(statistics.of_numbers, parts), statistics.Statistics())
    whole = statistics.of_numbers(np.concatenate(parts))
    assert (total.count, total.nans, total.infs) == (whole.count, whole.nans, whole.infs)
    for name in ("min", "max", "rms"):
        assert getattr(total, name) == pytest.approx(getattr(whole, name), rel=1e-6, nan_ok=True)


_KEYS = st.sampled_from(["a", "0", "1", "2", "10", "b1", "b2", "01"])
_NAMES = st.lists(_KEYS, min_size=1, max_size=4).map("/".join)


@given(leaves=st.dictionaries(_NAMES, st.integers(0, 1)))
def test_nothing_is_lost_by_folding(leaves):
    described = [
        LeafMetadata(name, "np.ndarray", (size,), np.dtype(np.int8), size, None, None) for name, size in leaves.items()
    ]
    root = folding.tree_of(described)
    assert sorted(leaf.name for node, _ in folding.paths(root) for leaf in node.leaves) == sorted(leaves)
    assert root.count == len(leaves)
    assert root.nbytes == sum(leaves.values())
    for node, _ in folding.paths(root):
        assert len({(leaf.shape, leaf.nbytes) for leaf in node.leaves}) <= 1


def test_names_of_thousands_of_keys():
    described = [LeafMetadata("/".join(["k"] * 5_000), "scalar", (), np.dtype(np.int8), 1, None, None)]
    root = folding.tree_of(described)
    ((_, level, name),) = folding.shown(root)
    assert (level, len(name)) == (1, 9_999)
