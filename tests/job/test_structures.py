"""Plans are kept by the structure of a state: the same one for other values, another one for anything that processes compare."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxckpt.job import structures
from jaxckpt.job.agree import leaves as agreed
from jaxckpt.job.plan import Plan, digest_of
from jaxckpt.leaf_kinds.jax_arrays import JAX_ARRAYS
from jaxckpt.leaf_kinds.registry import register
from jaxckpt.storage import compat
from jaxckpt.tree.flatten import Leaf, flatten


@pytest.fixture(autouse=True)
def no_structures() -> None:
    structures.forget()


def spread(values: Any, *axes: Any, dtype: Any = jnp.float32) -> jax.Array:
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    return jax.device_put(jnp.asarray(values, dtype), NamedSharding(mesh, PartitionSpec(*axes)))


def state(seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "w": spread(np.full((8, 4), seed), "x"),
        "n": np.full(3, seed),
        "step": seed,
        "key": jax.random.key(seed),
        "text": f"text {seed}",
        **more,
    }


def plan_of(values: Any, process: int = 0, center: int | None = None) -> Plan:
    return structures.plan_for(flatten("model", values).leaves, process, center)


def test_other_values_have_the_same_plan() -> None:
    assert plan_of(state(1)) is plan_of(state(2))
    assert plan_of({"w": jax.ShapeDtypeStruct((8,), jnp.float32)}) is plan_of(
        {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}
    )


CHANGES: dict[str, dict[str, Any]] = {
    "another shape": {"w": np.zeros((8, 6))},
    "another dtype": {"w": np.zeros((8, 4)), "dtype": jnp.int32},
    "another axis": {"w": np.zeros((8, 4)), "axes": (None, "y")},
    "another spelling": {"w": np.zeros((8, 4)), "axes": ("x", None)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_array_has_another_plan(change: dict[str, Any]) -> None:
    known = plan_of(state())
    changed = spread(change["w"], *change.get("axes", ("x",)), dtype=change.get("dtype", jnp.float32))
    assert plan_of(state(w=changed)) is not known
    assert plan_of(state()) is known


@pytest.mark.parametrize(
    "more",
    [
        {"v": 1},
        {"n": np.zeros(4, int)},
        {"n": np.zeros(3)},
        {"n": jnp.zeros(3, int)},
        {"step": 1.0},
        {"text": b"bytes"},
        {"key": jax.random.key(0, impl="rbg")},
        {"w": jnp.asarray(np.float32(1))},
        {"step": jnp.asarray(1)},
    ],
    ids=["name", "shape", "dtype", "kind", "python kind", "text", "keys", "place", "array"],
)
def test_another_leaf_has_another_plan(more: dict[str, Any]) -> None:
    known = plan_of(state())
    assert plan_of(state(**more)) is not known


def test_a_weak_type_and_other_processes_have_other_plans() -> None:
    known = plan_of({"w": jnp.asarray(np.float32(1))})
    weak = jax.jit(lambda: 1.0)()
    assert weak.weak_type
    plans = [
        known,
        plan_of({"w": weak}),
        plan_of({"w": jnp.asarray(np.float32(1))}, 1),
        plan_of({"w": jnp.asarray(np.float32(1))}, 0, 0),
    ]
    assert len(set(map(id, plans))) == 4


def test_the_same_names_in_another_order() -> None:
    leaves = flatten("model", {"a": 1, "b": 2}).leaves
    known = structures.plan_for(leaves, 0, None)
    assert structures.plan_for(leaves[::-1], 0, None) is not known


def test_few_structures_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    known = plan_of({"a": 1})
    for size in range(1, structures._STRUCTURES):
        plan_of(list(range(size)))
    assert plan_of({"a": 1}) is known
    for size in range(1, structures._STRUCTURES + 1):
        plan_of(list(range(size)))
    assert plan_of({"a": 1}) is not known

    monkeypatch.setattr(structures, "_LEAVES", 100)
    large = plan_of(list(range(90)))
    assert plan_of(list(range(90))) is large
    plan_of(list(range(11)))
    assert plan_of(list(range(90))) is not large


def test_the_digest_of_a_kept_plan_is_that_of_the_descriptions() -> None:
    """Processes with and without a kept plan have to come to the same digest."""
    for values in (state(1), state(2), state(3, w=spread(np.zeros((8, 4)), "y"))):
        leaves: list[Leaf] = flatten("model", values).leaves
        plan, fresh = plan_of(values), Plan(0, None)
        for more in ([], [("empty", "empty")], []):
            found = agreed.stored_values(leaves, plan, more, {})
            described = [*agreed.descriptions(leaves, fresh), *more]
            assert found.digest == digest_of(described)
            assert list(found.leaves()) == described
            assert list(found.host_contents()) == agreed.host_contents(leaves)


def test_few_forms_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of many shapes do not fill the memory, and none is taken for another whose form was remembered."""
    monkeypatch.setattr(structures, "_FORMS", 3)
    plans = []
    for rows in (*range(1, 9), *range(1, 9)):
        plans.append(plan_of({"w": jnp.zeros((rows, 2)), "v": jnp.zeros(rows, jnp.int32)}))
        assert len(structures._forms) <= 3
    assert plans[:8] == plans[8:]
    assert len(set(map(id, plans))) == 8
    structures.forget()
    assert not structures._forms


def test_a_kind_that_is_registered_later_has_another_form() -> None:
    known = plan_of({"w": jnp.zeros(3)})

    class Other(type(JAX_ARRAYS)):  # type: ignore[misc]
        name = "other"

    remove = register(Other())
    try:
        assert plan_of({"w": jnp.zeros(3)}) is not known
    finally:
        remove()
    assert plan_of({"w": jnp.zeros(3)}) is known


def test_arrays_that_share_a_sharding_are_told_apart() -> None:
    sharding = NamedSharding(jax.make_mesh((4, 2), ("x", "y")), PartitionSpec("x"))
    weak = jax.jit(lambda: 1.0 * jnp.arange(8).astype(float), out_shardings=sharding)()
    made = [
        jax.device_put(jnp.zeros(8), sharding),
        jax.device_put(jnp.zeros(16), sharding),
        jax.device_put(jnp.zeros((8, 1)), sharding),
        jax.device_put(jnp.zeros(8, jnp.int32), sharding),
        compat.as_weak(weak),
    ]
    assert len({id(array.sharding) for array in made}) == 1
    plans = [plan_of({"w": array}) for array in made]
    assert len(set(map(id, plans))) == len(made)
    assert [plan_of({"w": array}) for array in made] == plans
