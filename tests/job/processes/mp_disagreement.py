"""Programs whose processes do not make the same call."""

import os
from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options, outcome, simple

import jaxckpt


def disagreements(directory: str, io: int | None) -> dict[str, Any]:
    """Calls that differ on process 1: refused everywhere, at once, with nothing done; the next one works."""
    odd = jax.process_index() == 1
    path = simple(seed=1).write(directory + "/good", options(io))
    found: dict[str, Any] = {}

    def differ(name: str, usual: Any, other: Any, given: Any = None, odd_given: Any = None, where: Any = None) -> None:
        checkpoint = other() if odd else usual()
        chosen = (odd_given if odd and odd_given is not None else given) or options(io)
        target = (where or "/bad/ckpt", "/bad/ckpt")[0 if odd else 1]
        for action in ("save", "write", "restore"):
            subject = directory + target if action != "restore" else (path + target.replace("/bad/ckpt", ""))
            raised = outcome(getattr(checkpoint, action), subject, chosen)
            found[f"{name}, {action}"] = raised
            assert checkpoint.save_counter == 0

    array = mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "rows")

    def with_w(w: Any) -> Any:
        return lambda: jaxckpt.Checkpoint(w=w, n=np.arange(5), step=0)

    differ("tree", simple, lambda: simple(extra=1))
    differ("names", simple, lambda: jaxckpt.Checkpoint(v=array, n=np.arange(5), step=0))
    differ("order", simple, lambda: jaxckpt.Checkpoint(n=np.arange(5), w=array, step=0))
    differ("host shape", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(6), step=0))
    differ("host dtype", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(5.0), step=0))
    differ("python kind", simple, lambda: jaxckpt.Checkpoint(w=array, n=np.arange(5), step=0.0))
    differ("shape", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 5), np.float32), "rows")))
    differ("dtype", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.int32), "rows")))
    differ("sharding", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "crossed")))
    differ("devices", simple, with_w(mp_values.spread(np.zeros((mp_values.SIDE, 4), np.float32), "shuffled")))
    differ("host or jax", simple, with_w(np.zeros((mp_values.SIDE, 4), np.float32)))
    differ("path", simple, simple, where="/bad/other")
    differ("device", simple, simple, odd_given=options(None if io is not None else 1))
    differ("another device", simple, simple, options(0), options(2))
    differ("async", simple, simple, odd_given=options(io, asynchronous=True))
    differ(
        "policy", simple, simple, odd_given=options(io, experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(5000))
    )
    differ("callbacks", simple, simple, odd_given=options(io, experimental_write_callbacks=[print]))
    differ("timeout", simple, simple, odd_given=options(io, timeout_secs=29))
    checkpoint = simple()
    call = checkpoint.restore if odd else checkpoint.save
    found["save or restore"] = outcome(call, path, options(io))
    refused = jaxckpt.Checkpoint(w=array, n=np.arange(5), step=object() if odd else 0)
    found["refused by one"] = outcome(refused.save, directory + "/bad/ckpt", options(io))
    assert jaxckpt.Checkpoint(w=array).save(directory + "/then/ckpt", options(io)) == directory + "/then/ckpt-1"
    found["left"] = os.path.exists(directory + "/bad")
    return found


def device_table(directory: str, devices: list[Any]) -> list[Any]:
    """Each device in turn: what happens, and where the checkpoint is then."""
    found: list[Any] = []
    for number, device in enumerate(devices):
        checkpoint = simple()
        try:
            given = options(jax.devices()[device[1]] if isinstance(device, tuple) else device)
            path = checkpoint.save(f"{directory}/{number}/ckpt", given)
        except ValueError as error:
            found.append((str(error), os.path.exists(f"{directory}/{number}"), checkpoint.save_counter))
        else:
            found.append(("", os.path.exists(path), checkpoint.save_counter))
    return found
