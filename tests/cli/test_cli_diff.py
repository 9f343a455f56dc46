"""``jaxckpt diff``."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import jaxckpt
from jaxckpt.cli import comparing, main


@pytest.fixture
def write(tmp_path):
    """Writes values as a checkpoint of a given name, and returns its path."""
    return lambda name, **values: jaxckpt.Checkpoint(**values).write(tmp_path / name)


@pytest.fixture
def differences(capsys):
    """Returns exit code and differences, by leaf."""

    def run(*arguments):
        code = main(["diff", "--json", *arguments])
        found = json.loads(capsys.readouterr().out)
        assert found["identical"] == (code == 0)
        return code, {difference["name"]: difference for difference in found["differences"]}

    return run


def test_identical(call, write):
    values = {"w": np.array([np.nan, -0.0, 1.5], np.float32), "s": "text", "b": b"\0", "k": jax.random.key(1), "n": 3}
    a = write("a", **values)
    done = call("diff", a, write("b", **values))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("identical: 6 leaves")


def test_text(call, write):
    a = write("a", w=np.zeros((3, 2), np.float32), gone=1, same=1)
    b = write("b", w=np.array([[0, 0], [0, 2.5], [-0.5, 0]], np.float32), new="x", same=1)
    done = call("diff", a, b)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"A: {a}",
        f"B: {b}",
        "only in A  gone  array int64[]",
        "only in B  new   str of 1 byte",
        "value      w     2 of 6 elements, largest absolute difference 2.5, rms 1.04",
        "different: 3 of 5 leaves",
    ]


def test_structure_shape_dtype_and_type(write, differences):
    a = write("a", gone=1, shape=np.zeros(3), dtype=np.zeros(3, np.float32), type="text", key=jax.random.key(0))
    b = write("b", new=1, shape=np.zeros(4), dtype=np.zeros(3, np.float16), type=1.0, key=np.zeros(2, np.uint32))
    code, found = differences(a, b)
    assert code == 1
    assert {name: difference["kind"] for name, difference in found.items()} == {
        "gone": "only in A",
        "new": "only in B",
        "shape": "shape",
        "dtype": "dtype",
        "type": "type",
        "key": "type",
    }
    assert found["shape"]["text"] == "(3,) in A, (4,) in B"
    assert found["dtype"]["text"] == "float32 in A, float16 in B"


def test_how_it_was_saved_does_not_matter(write, differences):
    a = write("a", w=np.ones((4, 2), np.float32), n=np.int64(1))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    b = write("b", w=jax.device_put(np.ones((4, 2), np.float32), sharding), n=1)
    assert differences(a, b) == (0, {})


def test_bits_count(write, differences):
    # A nan that is not the usual one, and -0.0.
    payload = np.array([0x7FC00001, 0x80000000], np.uint32).view(np.float32)
    a = write("a", x=np.array([np.nan, 0.0], np.float32))
    b = write("b", x=payload)
    code, found = differences(a, b)
    assert code == 1
    assert found["x"]["differing"] == 2
    assert found["x"]["largest"] == 0.0
    assert "1 with nan" in found["x"]["text"]


def test_only_nan(write, differences):
    _, found = differences(write("a", x=np.array([np.nan, 1.0])), write("b", x=np.array([0.0, 1.0])))
    assert found["x"]["largest"] is None
    assert found["x"]["text"] == "1 of 2 elements, 1 with nan"


def test_infinity_is_valid_json(write, differences):
    _, found = differences(write("a", x=np.array([np.inf])), write("b", x=np.array([0.0])))
    assert found["x"]["largest"] == "inf"


def test_strings_and_bytes(write, differences):
    a = write("a", short="on", long="x" * 100 + "a" + "y" * 100, raw=b"ab")
    b = write("b", short="off", long="x" * 100 + "b" + "y" * 100, raw=b"abc")
    _, found = differences(a, b)
    assert found["short"]["text"] == "'on' in A, 'off' in B"
    assert "at 100" in found["long"]["text"]
    assert found["raw"]["text"] == "b'ab' in A, b'abc' in B"


def test_ignored_leaves(write, differences):
    a = write("a", w=1, opt={"mu": 1, "nu": 2})
    b = write("b", w=1, opt={"mu": 2})
    assert set(differences(a, b)[1]) == {"opt/mu", "opt/nu"}
    assert differences("--ignore", "opt/*", a, b) == (0, {})


def test_directories_stand_for_their_latest(tmp_path, differences):
    for name in ("a", "b"):
        jaxckpt.Checkpoint(x=1).save(tmp_path / name / "ckpt")
    assert differences(str(tmp_path / "a"), str(tmp_path / "b")) == (0, {})


def test_damage_is_an_error(write, capsys):
    values = {"w": np.random.default_rng(0).standard_normal(10_000)}
    a, b = write("a", **values), write("b", **values)
    largest = max((file for file in Path(b).rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert main(["diff", a, b]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    # The leaf or the file, whichever is read first.
    assert line.startswith(("jaxckpt diff: error: w: ", f"jaxckpt diff: error: {largest}: "))
    assert "damaged" in line


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.uint32])
@given(data=st.data())
def test_integer_distances_are_exact(dtype, data):
    shape = data.draw(st.integers(1, 5))
    a, b = (data.draw(nps.arrays(dtype, shape)) for _ in range(2))
    exact = [abs(int(x) - int(y)) for x, y in zip(a, b, strict=True)]
    assert comparing._distances(a, b).tolist() == exact


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.bool_, np.complex64],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_distances_of_every_kind_of_number(dtype):
    a, b = np.array([1, 0], dtype), np.array([0, 0], dtype)
    found = comparing.compare_arrays("x", a, b)
    assert (found.differing, found.elements, found.largest) == (1, 2, 1)


@given(
    arrays=nps.array_shapes(max_dims=2, max_side=6).flatmap(
        lambda shape: st.tuples(*[nps.arrays(np.float32, shape, elements=st.floats(width=32))] * 2)
    )
)
def test_what_differs_is_what_has_other_bits(arrays):
    a, b = arrays
    differing = int((a.view(np.uint32) != b.view(np.uint32)).sum())
    found = comparing.compare_arrays("x", a, b)
    assert (found is None) == (differing == 0)
    if found is not None:
        assert found.differing == differing
        distances = [
            abs(float(x) - float(y)) for x, y in zip(a.flat, b.flat, strict=True) if x.tobytes() != y.tobytes()
        ]
        numbers = [distance for distance in distances if not math.isnan(distance)]
        assert found.largest == (max(numbers) if numbers else None)


def test_blocks_cover_large_arrays(monkeypatch):
    monkeypatch.setattr(comparing, "_BLOCK", 7)
    a = np.arange(100, dtype=np.float32)
    b = a.copy()
    b[[0, 6, 7, 99]] += 1
    found = comparing.compare_arrays("x", a.reshape(10, 10), np.asfortranarray(b.reshape(10, 10)))
    assert (found.differing, found.largest) == (4, 1.0)
    assert comparing.compare_arrays("x", jnp.zeros((0, 3)), jnp.zeros((0, 3))) is None


def test_what_is_ignored_is_counted_and_not_called_identical(tmp_path, capsys):
    state = {"kernel": np.ones(3), "bias": np.zeros(2)}
    first = jaxckpt.Checkpoint(model=state, step=1).write(tmp_path / "first")
    second = jaxckpt.Checkpoint(model={**state, "bias": np.ones(2)}, step=2).write(tmp_path / "second")

    def report(*patterns):
        ignored = [word for pattern in patterns for word in ("--ignore", pattern)]
        code = main(["diff", "--json", first, second, *ignored])
        document = json.loads(capsys.readouterr().out)
        assert main(["diff", first, second, *ignored]) == code
        captured = capsys.readouterr()
        last = captured.out.splitlines()[-1]
        return code, document["identical"], document["leaves"], document["ignored"], last, captured.err

    everything = len(jaxckpt.load_checkpoint(first).keys())
    left = everything - 2
    assert report() == (1, False, everything, 0, f"different: 2 of {everything} leaves", "")
    code, identical, leaves, ignored, last, error = report("step", "*/bias", "st*")
    assert (code, identical, leaves, ignored, error) == (0, True, left, 2, "")
    assert last.startswith(f"identical: {left} lea")
    assert last.endswith("bit for bit; 2 leaves left out by --ignore, not compared")
    code, identical, leaves, ignored, last, error = report("step", "bais")
    assert (code, identical, leaves, ignored) == (1, False, everything - 1, 1)
    assert last == f"different: 1 of {everything - 1} leaves; 1 leaf left out by --ignore, not compared"
    assert error == "jaxckpt diff: warning: --ignore 'bais' matches no leaf of either checkpoint\n"
    assert report("*") == (
        *(0, None, 0, everything),
        f"nothing compared; {everything} leaves left out by --ignore, not compared",
        "",
    )


def test_rms_and_relative_differences(write, differences):
    numbers = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    other = numbers.copy()
    other[:100] += 1
    _, found = differences(write("a", x=numbers, zero=np.zeros(4)), write("b", x=other, zero=np.array([0, 0, 0, 2.0])))
    apart = (other.astype(np.float64) - numbers) ** 2
    assert found["x"]["rms"] == pytest.approx(np.sqrt(apart.mean()))
    assert found["x"]["relative"] == pytest.approx(np.sqrt(apart.mean() / (numbers.astype(np.float64) ** 2).mean()))
    assert found["zero"]["rms"] == 1.0
    assert found["zero"]["relative"] == "inf"


def test_the_worst_come_first_and_subtrees_are_summed_up(call, write):
    layers = [{"w": np.ones(4, np.float32)} for _ in range(3)]
    other = [{"w": np.full(4, value, np.float32)} for value in (1.5, 1, 3)]
    a, b = (
        write("a", model={"layers": layers}, step=np.float32(100)),
        write("b", model={"layers": other}, step=np.float32(101)),
    )
    lines = call("diff", a, b).stdout.splitlines()
    assert [line.split()[1] for line in lines[2:5]] == ["model/layers/2/w", "model/layers/0/w", "step"]
    assert "(50.00% of the rms of A)" in lines[3]
    rows = [line.split() for line in lines[6:9]]
    assert rows == [
        ["subtree", "differ", "of", "largest", "rms", "relative"],
        ["model/", "2", "3", "2", "2", "2"],
        ["model/layers/", "2", "3", "2", "2", "2"],
    ]
