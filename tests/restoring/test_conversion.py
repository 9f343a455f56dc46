"""Scalars that change their form, and `cast=True`: the right value, or an error that names leaf and value; never something else."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxckpt

pytestmark = pytest.mark.sampled

MESH = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
ROWS = NamedSharding(MESH, PartitionSpec("x"))


def saved(tmp_path: Path, **values: Any) -> str:
    return jaxckpt.Checkpoint(**values).save(tmp_path / "ckpt")


def restored(path: str, target: Any, **options: Any) -> Any:
    checkpoint = jaxckpt.Checkpoint(x=target)
    checkpoint.restore(path, **options).assert_consumed()
    return checkpoint.x


def jax_targets(dtype: Any) -> list[Any]:
    return [
        jnp.zeros((), dtype),
        jax.ShapeDtypeStruct((), dtype),
        jax.ShapeDtypeStruct((), dtype, weak_type=True),
        jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(MESH, PartitionSpec())),
    ]


FLOATS = (np.float16, jnp.bfloat16, np.float32)
INTS = (np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32)


class TestScalars:
    @pytest.mark.parametrize("value", [1e-4, -0.0, 1.0, 1e-30, float("inf"), float("nan"), -2.5], ids=repr)
    def test_a_python_float_is_rounded_as_jax_rounds_it(self, value: float, tmp_path: Path) -> None:
        path = saved(tmp_path, x=value)
        for dtype in FLOATS:
            expected = jnp.asarray(value, dtype)
            for target in (*jax_targets(dtype), np.dtype(dtype).type(0), np.zeros((), dtype)):
                found = restored(path, target)
                assert (type(found) is type(target)) or isinstance(target, jax.ShapeDtypeStruct)
                assert found.dtype == dtype
                assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
                assert getattr(found, "weak_type", None) == getattr(target, "weak_type", None)

    @pytest.mark.parametrize(
        ("value", "dtype"), [(1e39, np.float32), (-1e5, np.float16), (1e300, jnp.bfloat16), (3.4028236e38, np.float32)]
    )
    def test_one_that_overflows_is_refused(self, value: float, dtype: Any, tmp_path: Path) -> None:
        path = saved(tmp_path, x=value)
        target = jnp.ones((), dtype)
        for options in ({}, {"cast": True}):
            with pytest.raises(ValueError, match=rf"^x: .*{re.escape(str(value))}.*{np.dtype(dtype)}"):
                restored(path, target, **options)

    @pytest.mark.parametrize("dtype", INTS)
    def test_ints_at_the_borders_of_a_dtype(self, dtype: Any, tmp_path: Path) -> None:
        limits = np.iinfo(dtype)
        for number, value in enumerate((int(limits.min), int(limits.max), 0)):
            for kind, stored in (("python", value), ("numpy", np.int64(value))):
                path = saved(tmp_path / f"{kind}{number}", x=stored)
                for target in (*jax_targets(dtype), *([dtype(0)] if kind == "python" else [])):
                    found = restored(path, target)
                    assert (int(found), found.dtype) == (value, dtype)
        for number, value in enumerate((int(limits.min) - 1, int(limits.max) + 1)):
            path = saved(tmp_path / f"out{number}", x=value)
            for target in (*jax_targets(dtype), dtype(0)):
                for options in ({}, {"cast": True}):
                    message = rf"^x: .*holds {value}, which.*{np.dtype(dtype)}.*{limits.min} to {limits.max}"
                    with pytest.raises(ValueError, match=message):
                        restored(path, target, **options)

    def test_a_numpy_scalar_has_to_be_representable(self, tmp_path: Path) -> None:
        exact, inexact = saved(tmp_path / "a", x=np.float64(0.25)), saved(tmp_path / "b", x=np.float64(0.1))
        large = saved(tmp_path / "c", x=np.float64(2**24 + 1))
        for target in jax_targets(np.float32):
            assert float(restored(exact, target)) == 0.25
            for path, value in ((inexact, "0.1"), (large, "16777217.0")):
                with pytest.raises(ValueError, match=rf"^x: .*holds {value}, which.*float32.*nearest.*cast=True"):
                    restored(path, target)
            assert float(restored(inexact, target, cast=True)) == float(np.float32(0.1))
        for name in ("nan", "-0.0", "inf"):
            path = saved(tmp_path / name, x=np.float64(name))
            found = restored(path, jnp.zeros((), jnp.bfloat16))
            assert np.asarray(found).tobytes() == np.asarray(np.float64(name)).astype(jnp.bfloat16).tobytes()

    @pytest.mark.parametrize(
        ("stored", "target", "expected"),
        [
            (jnp.int32(7), 0, 7),
            (jnp.uint32(2**32 - 1), 0, 2**32 - 1),
            (jnp.bfloat16(1.5), 0.0, 1.5),
            (jnp.float32(1e-4), 0.0, float(np.float32(1e-4))),
            (jnp.asarray(2.5), 0.0, 2.5),
            (jnp.bool_(True), False, True),
            (jnp.complex64(1 - 2j), 0j, 1 - 2j),
            (jax.device_put(jnp.int32(3), NamedSharding(MESH, PartitionSpec())), 0, 3),
            (jnp.float32(0.1), np.float64(0), np.float64(np.float32(0.1))),
            (jnp.float32(0.5), np.float16(0), np.float16(0.5)),
            (jnp.int32(-7), np.int64(0), np.int64(-7)),
            (jnp.int32(7), np.uint8(0), np.uint8(7)),
            (np.float32(0.1), 0.0, float(np.float32(0.1))),
            (1.5 + 1e-30j, np.complex64(0), np.complex64(1.5 + 1e-30j)),
        ],
        ids=repr,
    )
    def test_the_reverse(self, stored: Any, target: Any, expected: Any, tmp_path: Path) -> None:
        found = restored(saved(tmp_path, x=stored), target)
        assert type(found) is type(target)
        assert found == expected

    @pytest.mark.parametrize(
        ("stored", "target"),
        [
            (2**24 + 1, jnp.float32(0)),
            (1, jnp.float32(0)),
            (1.0, jnp.int32(0)),
            (True, jnp.int32(0)),
            (1, jnp.bool_(False)),
            (1.0, jnp.complex64(0)),
            (1j, jnp.float32(0)),
            (jnp.int32(1), 1.0),
            (jnp.int32(1), True),
            (jnp.bool_(True), 1),
            (jnp.float32(1), 1),
            (np.float32(1), 1),
            (1, jnp.zeros((1,), jnp.int32)),
            (jnp.zeros((1,), jnp.int32), 1),
        ],
        ids=repr,
    )
    def test_another_kind_is_never_converted(self, stored: Any, target: Any, tmp_path: Path) -> None:
        path = saved(tmp_path, x=stored)
        for options in ({}, {"cast": True}):
            with pytest.raises(ValueError, match=r"^x: the target (is|has)"):
                restored(path, target, **options)

    def test_what_the_target_cannot_be_narrowed_to(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=jnp.float32(0.1))
        with pytest.raises(ValueError, match=r"^x: .*float16"):
            restored(path, np.float16(0))
        # Two arrays, of which neither is a scalar of Python or numpy.
        with pytest.raises(ValueError, match=r"^x: .*never cast unless.*cast=True"):
            restored(path, jnp.zeros((), jnp.bfloat16))
        with pytest.raises(ValueError, match=r"^x: .*float64, which JAX would cast.*64 bits"):
            restored(path, jax.ShapeDtypeStruct((), np.float64))


class TestCast:
    @pytest.mark.parametrize(
        ("stored", "dtype"),
        [
            (np.float32, jnp.bfloat16),
            (jnp.bfloat16, np.float32),
            (np.float16, jnp.bfloat16),
            (np.float32, jnp.float8_e4m3fn),
            (np.int32, np.int8),
            (np.uint8, np.int32),
            (np.int32, np.uint16),
            (np.int32, ml_dtypes.int4),
            (np.complex64, np.complex128),
        ],
        ids=str,
    )
    def test_arrays_of_every_sharding(self, stored: Any, dtype: Any, tmp_path: Path) -> None:
        data = (np.arange(16).reshape(8, 2) % 7 * (1 if np.dtype(stored).kind == "u" else 0.5)).astype(stored)
        path = saved(tmp_path, x={"a": data, "b": jnp.asarray(data), "c": jax.device_put(data, ROWS), "d": data[0]})
        expected = data.astype(dtype)
        zeros = np.zeros((8, 2), dtype)
        targets = {"a": zeros, "b": zeros, "c": zeros, "d": jnp.zeros(2, stored)}
        if np.dtype(dtype).itemsize < 16:
            targets |= {"b": jnp.asarray(zeros), "c": jax.ShapeDtypeStruct((8, 2), dtype, sharding=ROWS)}
        checkpoint = jaxckpt.Checkpoint(x=targets)
        for call in (checkpoint.restore, checkpoint.read):
            with pytest.raises(ValueError, match=r"^x/a: .*pass cast=True to restore\(\) or read\(\)"):
                call(path)
            checkpoint.x = targets
            status = call(path, cast=True)
            assert sorted(status.cast) == ["x/a", "x/b", "x/c"]
            assert "3 cast" in repr(status)
            status.expect_partial()
            for name in "abc":
                assert checkpoint.x[name].dtype == dtype
                assert np.asarray(checkpoint.x[name]).tobytes() == expected.tobytes()
            assert checkpoint.x["a"].flags.writeable
            assert checkpoint.x["d"].dtype == stored

    @pytest.mark.parametrize(
        ("value", "target", "shown"),
        [
            (np.array([1, 300], np.int32), jnp.zeros(2, jnp.int8), "300"),
            (np.array([1, -1], np.int64), np.zeros(2, np.uint64), "-1"),
            (np.array([1, 2**63], np.uint64), np.zeros(2, np.int64), str(2**63)),
            (np.array([1, 1e6], np.float32), np.zeros(2, np.float16), "1000000.0"),
            (np.array([1, 1e6], np.float32), np.zeros(2, jnp.float8_e4m3fn), "1000000.0"),
            (np.array([1, np.inf], np.float32), np.zeros(2, jnp.float8_e4m3fn), "inf"),
            (np.array([1, 1e6], np.float32), np.zeros(2, ml_dtypes.float4_e2m1fn), "1000000.0"),
            (np.array([1, 1e39j], np.complex128), np.zeros(2, np.complex64), "1e\\+39"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_named(self, value: Any, target: Any, shown: str, tmp_path: Path) -> None:
        path = saved(tmp_path, x=value, y=np.ones(3))
        y = np.zeros(3)
        checkpoint = jaxckpt.Checkpoint(x=target, y=y)
        with pytest.raises(ValueError, match=rf"^x: .*holds {shown}, which.*{target.dtype}"):
            checkpoint.restore(path, cast=True)
        assert checkpoint.x is target
        assert checkpoint.y is y

    def test_nan_and_infinity_stay(self, tmp_path: Path) -> None:
        path = saved(tmp_path, x=np.array([np.nan, np.inf, -np.inf, -0.0], np.float32))
        found = restored(path, jnp.zeros(4, jnp.bfloat16), cast=True)
        assert np.asarray(found).tobytes() == np.array([np.nan, np.inf, -np.inf, -0.0]).astype(jnp.bfloat16).tobytes()

    def test_the_parts_of_a_large_array(self, tmp_path: Path) -> None:
        data = np.random.default_rng(3).standard_normal((1000, 1001)).astype(np.float32)
        path = saved(tmp_path, x=data)
        assert np.array_equal(restored(path, np.zeros(data.shape, np.float64), cast=True), data.astype(np.float64))
        spot = data.copy()
        spot[-1, -1] = 1e30
        path = saved(tmp_path / "b", x=spot)
        with pytest.raises(ValueError, match=r"^x: .*holds 1\.0000000150474662e\+30"):
            restored(path, np.zeros(data.shape, np.float16), cast=True)

    @pytest.mark.parametrize("cast", [1, None, "yes"])
    def test_it_is_a_bool(self, cast: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="cast must be True or False"):
            jaxckpt.Checkpoint(x=1).restore(saved(tmp_path, x=1), cast=cast)

    def test_kinds_are_never_crossed(self, tmp_path: Path) -> None:
        for stored, target in (
            (np.ones(2, np.float32), np.zeros(2, np.int32)),
            (np.ones(2, np.int32), np.zeros(2, np.float32)),
            (np.ones(2, np.bool_), np.zeros(2, np.int8)),
            (np.ones(2, np.complex64), np.zeros(2, np.float32)),
        ):
            path = saved(tmp_path / str(stored.dtype), x=stored)
            with pytest.raises(ValueError, match=r"^x: .*another kind, which is never converted"):
                restored(path, target, cast=True)

    def test_a_dtype_that_the_first_update_changes(self, tmp_path: Path) -> None:
        import optax

        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5, momentum=0.9)
        params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
        fresh = tx.init(params)
        state = tx.update(jax.tree.map(jnp.ones_like, params), fresh, params)[1]
        # What an update with mixed dtypes may leave: the trace of a bfloat16 parameter in float32.
        wider = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, state)
        path = saved(tmp_path, state=wider)
        checkpoint = jaxckpt.Checkpoint(state=fresh)
        status = checkpoint.restore(path, cast=True).assert_consumed()
        assert status.cast == ("state/inner_state/0/trace/w",)
        assert jax.tree.map(lambda a: (a.dtype, a.weak_type), checkpoint.state) == jax.tree.map(
            lambda a: (a.dtype, a.weak_type), fresh
        )
        for found, expected in zip(jax.tree.leaves(checkpoint.state), jax.tree.leaves(state), strict=True):
            assert np.asarray(found).tobytes() == np.asarray(expected).astype(found.dtype).tobytes()


@pytest.mark.parametrize(
    ("value", "dtype"), [(3.4028235e38, np.float32), (65519.9, np.float16), (3.3895e38, jnp.bfloat16)]
)
def test_a_float_that_rounds_to_the_largest_number(value: float, dtype: Any, tmp_path: Path) -> None:
    found = restored(saved(tmp_path, x=value), jnp.zeros((), dtype))
    assert float(found) == float(np.asarray(value).astype(dtype)) == float(jnp.finfo(dtype).max)
