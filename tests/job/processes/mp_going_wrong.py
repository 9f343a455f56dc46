"""Programs whose restores fail, or restore a part only."""

import warnings
from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options, outcome, simple

import jaxckpt


def failing_restores(directory: str, io: int | None) -> dict[str, Any]:
    """Restores that fail: everywhere, and without a change; then one that does not."""
    given = options(io)
    path = simple(seed=1).save(directory + "/ckpt", given)
    found: dict[str, Any] = {}
    wide = jax.ShapeDtypeStruct((mp_values.SIDE, 5), np.float32, sharding=mp_values.sharding("rows"))
    half = jax.ShapeDtypeStruct((mp_values.SIDE, 4), np.float16, sharding=mp_values.sharding("rows"))
    lost = jax.ShapeDtypeStruct((mp_values.SIDE, 4), np.float32)
    for name, change in {
        "shape": {"w": wide},
        "dtype": {"w": half},
        "no sharding": {"w": lost},
        "host shape": {"n": np.zeros(4, int)},
        "kind": {"step": "text"},
        "object": {"step": Refusing()},
    }.items():
        target = simple()
        for key, value in change.items():
            setattr(target, key, value)
        before = {key: getattr(target, key) for key in ("w", "n", "step")}
        found[name] = outcome(target.restore, path, given)
        assert all(getattr(target, key) is value for key, value in before.items()), name
        assert target.save_counter == 0
    target = simple()
    found["missing"] = outcome(target.restore, directory + "/none", given)
    found["no suffix"] = outcome(target.restore, directory + "/ckpt", given)
    target.restore(path, given).assert_consumed()
    assert (target.step, target.save_counter) == (1, 1)
    return found


class Refusing:
    """Takes its state only on process 0."""

    def get_state(self) -> Any:
        return 0

    def set_state(self, state: Any) -> None:
        if jax.process_index() != 0:
            raise ValueError("this state is not for me")

    serialize = None
    deserialize = None


def partial_restores(directory: str, io: int | None) -> list[Any]:
    path = simple(seed=1, extra=np.arange(3), gone=mp_values.spread(np.zeros((24,), np.float32), "rows")).save(
        directory + "/ckpt", options(io)
    )
    target = simple(new=np.arange(2))
    found: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = target.restore(path, options(io))
        found += [status.missing, status.unexpected]
        for check in (status.assert_consumed, status.assert_existing_objects_matched, status.assert_nontrivial_match):
            found.append(outcome(lambda check=check: check() and None))
        status.expect_partial()
    found.append(sorted(str(warning.message) for warning in caught))
    found.append((target.step, target.new.tolist()))
    return found


def restore_private(path: str, io: int | None, given: int | None) -> tuple[list[str], str]:
    """Process `io` has the checkpoint; the options say `given`."""
    simple(seed=1).write(path, options(io))
    return outcome(simple().read, path, options(given))


def restore_damaged(directory: str, io: int | None) -> dict[str, Any]:
    """The latest of three checkpoints is damaged."""
    found: dict[str, Any] = {}
    target = simple()
    before = target.w
    manager = jaxckpt.CheckpointManager(target, directory, None, options=options(io))
    latest = manager.latest_checkpoint
    assert latest is not None
    found["restore"] = outcome(target.restore, latest, options(io))
    found["manager"] = outcome(manager.restore_or_initialize)
    assert target.w is before
    assert target.save_counter == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["skip"] = manager.restore_or_initialize(skip_corrupt=True)
    found["warned"] = [str(warning.message)[:60] for warning in caught]
    found["state"] = target.step, target.save_counter, manager.save()
    return found


def different_hosts(directory: str, io: int | None) -> tuple[list[str], Any, Any]:
    """Host leaves that are not the same on every process."""
    me = jax.process_index()
    tree = {
        "n": np.arange(5) + me,
        "s": f"text {me}" * (me + 1),
        "b": b"x" * (3 + me),
        "step": me,
        "large": np.full(100_000, me),
        "local": jax.numpy.full(3, me),
        "same": np.arange(3),
        "object": mp_values.Iterator(me),
        "key": jax.random.key(me),
        "long": 2**63 + me if me else 5,
    }
    checkpoint = jaxckpt.Checkpoint(v=tree)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = checkpoint.save(directory + "/ckpt", options(io))
    names = sorted(str(warning.message) for warning in caught if warning.category is UserWarning)
    blank = {**tree, "object": mp_values.Iterator(77), "n": np.zeros(5, int), "local": jax.numpy.zeros(3, int)}
    target = jaxckpt.Checkpoint(v=blank)
    target.restore(path, options(io)).assert_consumed()
    got = dict(target.v)
    values = (
        got["n"].tolist(),
        got["s"],
        got["b"],
        got["step"],
        got["large"][0],
        got["local"].tolist(),
        got["object"].position,
    )
    return names, values, (got["same"].tolist(), jax.random.key_data(got["key"]).tolist(), got["long"])
