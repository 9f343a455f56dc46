"""Programs that measure which bytes are written and read."""

from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options

import jaxckpt


def save_replicas(directory: str, io: int | None, layout: str, **more: Any) -> str:
    """Saves three arrays of which every process has a replica, or every second process the same half."""
    tree = {
        name: mp_values.spread(mp_values.full((512, 512), seed=seed), layout)
        for seed, name in enumerate(("a", "b", "c"))
    }
    tree["keys"] = mp_values.keys(mp_values.sharding(layout), 7)
    path = jaxckpt.Checkpoint(tree=tree).save(directory + "/ckpt", options(io, **more))
    target = jaxckpt.Checkpoint(**mp_values.blank({"tree": tree}, abstract=False))
    target.restore(path, options(io)).assert_consumed()
    mp_values.assert_same({"tree": target.tree}, {"tree": tree})
    return path


def save_replicas_of_accelerators(directory: str, layout: str) -> str:
    """Takes the path of accelerators, which cuts on the device what has to travel to the host. There is no accelerator to test with."""
    from unittest import mock

    slices = []
    cut = jax.lax.slice

    def counted(*arguments: Any) -> Any:
        slices.append(arguments[0].shape)
        return cut(*arguments)

    with mock.patch.object(jax, "default_backend", return_value="gpu"), mock.patch.object(jax.lax, "slice", counted):
        path = save_replicas(directory, None, layout)
    assert (512, 512) in slices
    return path


def save_rows(directory: str, io: int | None, layout: str, **more: Any) -> str:
    tree = {"a": mp_values.spread(mp_values.full((2048, 1024), seed=1), layout), "small": np.arange(1000.0)}
    tree["b"] = mp_values.spread(mp_values.full((1024, 1024), seed=2), layout)
    return jaxckpt.Checkpoint(tree=tree).save(directory + "/ckpt", options(io, **more))


def bytes_read_by_restore(path: str, io: int | None, layout: str, **more: Any) -> int:
    """Returns how many bytes of files this process reads in a restore, by what the kernel counts. Messages do not count."""

    def restore() -> int:
        target = jaxckpt.Checkpoint(
            tree={
                "a": jax.ShapeDtypeStruct((2048, 1024), np.float32, sharding=mp_values.sharding(layout)),
                "small": np.zeros(1000),
                "b": jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=mp_values.sharding(layout)),
            }
        )
        before = read_bytes()
        target.restore(path, options(io, **more)).assert_consumed()
        after = read_bytes()
        mp_values.assert_same(
            {"a": target.tree["a"], "b": target.tree["b"]},
            {
                "a": mp_values.spread(mp_values.full((2048, 1024), seed=1), layout),
                "b": mp_values.spread(mp_values.full((1024, 1024), seed=2), layout),
            },
        )
        assert (target.tree["small"] == np.arange(1000.0)).all()
        return after - before

    # Modules are read in the first one.
    restore()
    return restore()


def read_bytes() -> int:
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.read().split("rchar:")[1].split()[0])
