"""Warm starts, as they run in the processes of a job."""

from typing import Any

import jax
import jax.numpy as jnp
import mp_values
import numpy as np
from mp_programs import index, options, outcome

import jaxckpt

RULES = {"model": "old", "model/body": "old/trunk"}


def _target() -> Any:
    body = mp_values.spread(np.zeros((mp_values.SIDE, 6), jnp.bfloat16), "rows")
    head = mp_values.spread(np.zeros((mp_values.SIDE, 2), np.float32), "rows")
    return jaxckpt.Checkpoint(model={"body": body, "head": head, "new": np.zeros(2)}, step=0)


def _body(checkpoint: Any) -> bool:
    """Whether the shards of this process have the values that were saved."""
    return all(
        bool((np.asarray(shard.data) == np.arange(mp_values.SIDE)[shard.index[0], None]).all())
        for shard in checkpoint.model["body"].addressable_shards
    )


def warm_start(directory: str, io: int | None, read_once: bool | None) -> dict[str, Any]:
    """Restores under other names, into another dtype, and past another shape, and compares before."""
    trunk = np.broadcast_to(np.arange(mp_values.SIDE, dtype=np.float32)[:, None], (mp_values.SIDE, 6))
    head = mp_values.spread(np.ones((mp_values.SIDE, 3), np.float32), "rows")
    old = {"trunk": mp_values.spread(np.ascontiguousarray(trunk), "columns"), "head": head}
    path = jaxckpt.Checkpoint(old=old, step=7).save(directory + "/ckpt", options(io))
    found: dict[str, Any] = {}
    given = options(io, read_once_per_job=read_once)
    checkpoint = _target()
    names = jax.tree.map(lambda leaf: leaf, checkpoint.model)

    diff = checkpoint.diff(path, given, rename=RULES)
    found["diff"] = (diff.matched, diff.missing, diff.unexpected, diff.cast, diff.mismatched, diff.refused)
    found["diff of nothing"] = outcome(checkpoint.diff, directory + "/none-1", given)
    status = checkpoint.restore(path, given, rename=RULES, cast=True, skip_mismatched=True).expect_partial()
    found["status"] = (status.missing, status.unexpected, status.cast, status.mismatched)
    found["values"] = (_body(checkpoint), checkpoint.model["head"] is names["head"], checkpoint.step)
    # Functions are other objects on every process; their results count.
    checkpoint = _target()
    checkpoint.read(
        path,
        given,
        rename=lambda name: name.replace("model/body", "old/trunk").replace("model/", "old/"),
        cast=True,
        skip_mismatched=True,
    ).expect_partial()
    found["by function"] = (_body(checkpoint), checkpoint.step, checkpoint.save_counter)

    def refused(**arguments: Any) -> None:
        target = _target()
        before = jax.tree.leaves(target.model)
        found.setdefault("refused", []).append(outcome(target.restore, path, given, **arguments))
        assert all(one is other for one, other in zip(before, jax.tree.leaves(target.model), strict=True))

    other = "head" if index() == 2 else "trunk"
    refused(rename=lambda name: name.replace("model/body", f"old/{other}"), cast=True, skip_mismatched=True)
    refused(rename=RULES if index() else {"model": "old"}, cast=True, skip_mismatched=True)
    refused(rename=RULES if index() == 1 else None, cast=True, skip_mismatched=True)
    refused(rename=RULES, cast=True, skip_mismatched=index() != 1)
    refused(rename={"models": "old"} if index() == 1 else RULES, cast=True, skip_mismatched=True)
    refused(rename={"model": "other"}, cast=True, skip_mismatched=True)
    refused(rename={"model/body": "step"}, cast=True)
    # The job goes on.
    found["after"] = _target().diff(path, given).missing
    return found
