"""What the programs of the jobs share. No module `mp_*` may import pytest: that would be slow, in every process."""

from typing import Any

import jax
import mp_values
import numpy as np

import jaxckpt


def index() -> int:
    return int(jax.process_index())


def options(io: Any = None, *, asynchronous: bool = False, **more: Any) -> jaxckpt.CheckpointOptions:
    knobs = {
        name: more.pop(name)
        for name in ("compression", "chunk_byte_size", "target_data_file_size", "read_once_per_job")
        if name in more
    }
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


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[list[str], str]:
    """The names of the kinds of the error that `function` raises, and its text; ([], its result) if it raises none."""
    try:
        return [], str(function(*args, **kwargs))
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        errno = getattr(error, "errno", None)
        return kinds, f"{error} {'' if errno is None else f'[errno {errno}]'}"


def simple(layout: str = "rows", seed: int = 0, **more: Any) -> jaxckpt.Checkpoint:
    array = mp_values.spread(mp_values.full((mp_values.SIDE, 4), seed=seed), layout)
    return jaxckpt.Checkpoint(w=array, n=np.arange(5) + seed, step=seed, **more)


def save_simple(directory: str, io: int | None, count: int = 1) -> list[str]:
    checkpoint = simple()
    manager = jaxckpt.CheckpointManager(checkpoint, directory, None, options=options(io))
    found = []
    for step in range(1, count + 1):
        checkpoint.step = step
        found.append(manager.save())
    return found


def restore_from_tensorflow(prefix: str, io: int | None) -> tuple[list[Any], list[str]]:
    """Restores arrays and scalars, under their own names and under other names."""
    target = jaxckpt.Checkpoint(
        model={"layers": {"0": {"kernel": mp_values.spread(np.zeros((4, 8), np.float32), "replicated")}}},
        optimizer={"_momentums": {"1": np.zeros((4, 8), np.float32)}, "_iterations": np.int64(0)},
        step=0,
    )
    status = target.restore(prefix, options(io))
    status.assert_existing_objects_matched()
    kernel = np.asarray(target.model["layers"]["0"]["kernel"].addressable_data(0))
    found = [kernel.tolist(), target.optimizer["_momentums"]["1"].tolist(), int(target.optimizer["_iterations"])]
    return [*found, target.step, target.save_counter], sorted(status.unexpected)
