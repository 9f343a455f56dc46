"""What runs in the processes of the jobs. Nothing here imports pytest: it would be slow, in every process."""

import os
import warnings
from typing import Any

import jax
import mp_values
import numpy as np

import jaxckpt
from jaxckpt.errors import ProcessError


def index() -> int:
    return int(jax.process_index())


def options(io: Any = None, *, asynchronous: bool = False, **more: Any) -> jaxckpt.CheckpointOptions:
    knobs = {name: more.pop(name) for name in ("compression", "chunk_byte_size", "target_data_file_size") if name in more}
    orbax = jaxckpt.OrbaxSettings(timeout_secs=more.pop("timeout_secs", 30), **knobs)
    return jaxckpt.CheckpointOptions(io, enable_async=asynchronous, orbax=orbax, **more)


def round_trip(directory: str, io: int | None, asynchronous: bool) -> tuple[str, str, int]:
    """Saves and writes everything there is, and restores and reads it into targets of two kinds."""
    given = options(io, asynchronous=asynchronous)
    tree = mp_values.values()
    with jaxckpt.Checkpoint(**tree) as checkpoint:
        saved = checkpoint.save(directory + "/ckpt", given)
        checkpoint.sync()
        written = checkpoint.write(directory + "/exact", given)
    for path, abstract in ((saved, False), (written, True)):
        target = jaxckpt.Checkpoint(**mp_values.blank(tree, abstract=abstract))
        status = target.restore(path, given) if path == saved else target.read(path, given)
        status.assert_consumed()
        assert status.missing == status.unexpected == ()
        assert target.save_counter == (1 if path == saved else 0)
        mp_values.assert_same({name: getattr(target, name) for name in tree}, tree)
    return saved, written, checkpoint.save_counter
