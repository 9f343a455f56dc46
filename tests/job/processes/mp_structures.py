"""What runs in the processes of `test_structures_of_jobs`: saves of one structure again and again, and of others in between."""

from collections import Counter
from typing import Any
from unittest import mock

import jax
import mp_programs
import mp_values
import numpy as np
from jax.experimental.layout import Format, Layout

import jaxckpt
from jaxckpt.job.protocol.link import Link
from jaxckpt.leaf_kinds import on_devices
from jaxckpt.saving import shards


def state(seed: int, count: int = 40, **more: Any) -> dict[str, Any]:
    """Arrays of several layouts, some with replicas, and values in host memory."""
    layouts = ("rows", "columns", "replicated", "crossed")
    made: dict[str, Any] = {
        f"leaf{number:03d}": mp_values.spread(
            np.full((mp_values.SIDE, mp_values.SIDE), 1000 * seed + number, np.float32), layouts[number % len(layouts)]
        )
        for number in range(count)
    }
    return {**made, "host": np.full(3, seed), "step": seed, "text": f"text of {seed}", **more}


def blank(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _blank(value) for name, value in values.items()}


def _blank(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
    return type(value)() if isinstance(value, str | bytes) else value * 0


def changing(directory: str, io: int | None, asynchronous: bool) -> int:
    """Saves structures that change between saves, and restores each save. Returns the number of saves."""
    given = mp_programs.options(io, asynchronous=asynchronous)
    smaller = np.zeros((mp_values.SIDE, 2), np.float32)
    structures: list[dict[str, Any]] = [
        state(1),
        state(2),
        state(3, leaf000=mp_values.spread(np.full((mp_values.SIDE, mp_values.SIDE), 3, np.float32), "columns")),
        state(4),
        state(5, leaf001=mp_values.spread(smaller + 5, "rows")),
        state(6, leaf002=mp_values.spread(np.full((mp_values.SIDE, mp_values.SIDE), 6, np.int32), "rows")),
        state(7, count=39),
        state(8, step="eight", host=np.arange(8.0), text="a longer text"),
        state(9, host=b"bytes"),
        state(10, host=b"more bytes"),
        state(11),
    ]
    checkpoint = jaxckpt.Checkpoint(model=structures[0])
    paths = []
    for number, values in enumerate(structures):
        checkpoint.model = values
        paths.append(checkpoint.write(f"{directory}/changing{number}", given))
    checkpoint.sync()
    for path, values in zip(paths, structures, strict=True):
        target = jaxckpt.Checkpoint(model=blank(values))
        target.restore(path, given).assert_consumed()
        mp_values.assert_same(target.model, values)
    return len(paths)


def disagreeing(directory: str, io: int | None) -> list[Any]:
    """Saves one structure several times, then another one on process 1 only, and then the same one again."""
    odd = jax.process_index() == 1
    checkpoint = jaxckpt.Checkpoint(model=state(1))
    for number in range(3):
        checkpoint.model = state(number)
        checkpoint.write(f"{directory}/agreed{number}", mp_programs.options(io))
    found = []
    other = mp_values.spread(np.zeros((mp_values.SIDE, 2), np.float32), "rows")
    changes: list[dict[str, Any]] = [{"leaf017": other}, {"step": 1.0}, {"extra": 1}]
    for change in changes:
        checkpoint.model = state(5, **(change if odd else {}))
        found.append(mp_programs.outcome(checkpoint.write, directory + "/refused", mp_programs.options(io)))
    # A disagreement that all processes have meanwhile agreed about, and one about values only.
    checkpoint.model = state(6, leaf017=other)
    path = checkpoint.write(directory + "/after", mp_programs.options(io))
    target = jaxckpt.Checkpoint(model=blank(checkpoint.model))
    target.restore(path, mp_programs.options(io)).assert_consumed()
    mp_values.assert_same(target.model, checkpoint.model)
    return found


def counted(directory: str, io: int | None, count: int) -> dict[str, Any]:
    """Saves and restores one structure twice. Returns the messages that this process sent, and how many arrays it described, of each."""
    sent: Counter[str] = Counter()
    described = [0]
    send, text = Link.send, on_devices.describe

    def sending(link: Link, message: Any, *arguments: Any, **more: Any) -> None:
        sent[type(message).__name__] += 1
        send(link, message, *arguments, **more)

    def describing(*arguments: Any) -> str:
        described[0] += 1
        return text(*arguments)

    found: dict[str, Any] = {}

    def measure(name: str, work: Any, *arguments: Any) -> Any:
        sent.clear()
        described[0] = 0
        result = work(*arguments)
        found[name] = dict(sent), described[0]
        return result

    given = mp_programs.options(io)
    with mock.patch.object(Link, "send", sending), mock.patch.object(on_devices, "describe", describing):
        for number in range(2):
            values = state(number, count)
            path = measure(
                f"save {number}", jaxckpt.Checkpoint(model=values).write, f"{directory}/c{count}-{number}", given
            )
        for number in range(2):
            target = jaxckpt.Checkpoint(model=blank(values))
            measure(f"restore {number}", target.restore, path, given).assert_consumed()
            mp_values.assert_same(target.model, values)
    return found


def very_small(seed: int, *, chosen: Any = mp_values.DTYPES) -> dict[str, Any]:
    """Arrays of a few bytes of many dtypes and layouts, among larger ones, keys and values in host memory."""
    made: dict[str, Any] = {}
    for layout in mp_values.LAYOUTS:
        for number, dtype in enumerate(chosen):
            values = mp_values.full((mp_values.SIDE, mp_values.SIDE), dtype, 100 * seed + number)
            made[f"{layout}_{np.dtype(dtype).name}"] = mp_values.spread(values, layout)
        made[f"{layout}_larger"] = mp_values.spread(mp_values.full((48, 240), seed=seed), layout)
    # Its bytes lie in memory by columns.
    by_columns = Format(Layout(major_to_minor=(1, 0)), mp_values.sharding("rows"))
    square = mp_values.full((mp_values.SIDE, mp_values.SIDE), seed=seed)
    made["transposed"] = jax.device_put(mp_values.spread(square, "rows"), by_columns)
    keys = jax.random.split(jax.random.key(seed), mp_values.SIDE)
    made["keys"] = jax.jit(lambda found: found, out_shardings=mp_values.sharding("rows"))(keys)
    return {**made, "host": np.full(3, seed), "step": seed, "text": f"text of {seed}"}


def packed(directory: str, io: int | None) -> list[int]:
    """Saves one structure three times at once, and gives the arrays away as soon as `write` returns.

    Returns how many arrays each save took on their own.
    """
    given = mp_programs.options(io, asynchronous=True)
    alone: list[int] = []
    take = shards.content_at_once

    def taken(*arguments: Any, **more: Any) -> Any:
        alone[-1] += 1
        return take(*arguments, **more)

    overwrite = jax.jit(lambda x: jax.numpy.where(x == x, jax.numpy.zeros_like(x), x), donate_argnums=0)
    paths, wanted, savers = [], [], []
    with mock.patch.object(shards, "content_at_once", taken):
        for seed in range(3):
            values = very_small(seed)
            wanted.append({name: _copied(value) for name, value in values.items()})
            savers.append(jaxckpt.Checkpoint(model=values))
            alone.append(0)
            paths.append(savers[-1].write(f"{directory}/packed{seed}", given))
            for name, value in values.items():
                if name.startswith("rows"):
                    jax.block_until_ready(overwrite(value))
                elif isinstance(value, jax.Array):
                    value.delete()
    for saver in savers:
        saver.sync()
    for path, values in zip(paths, wanted, strict=True):
        target = jaxckpt.Checkpoint(model=blank(values))
        target.restore(path, given).assert_consumed()
        mp_values.assert_same(target.model, values)
    return alone


def deleted(directory: str, io: int | None) -> Any:
    """Saves a structure, and again after a very small array has been deleted on one process. Returns the outcome of the second save."""
    checkpoint = jaxckpt.Checkpoint(model=very_small(1))
    checkpoint.write(directory + "/whole", mp_programs.options(io))
    checkpoint.model = very_small(2)
    if jax.process_index() == 1:
        checkpoint.model["rows_int32"].delete()
    found = mp_programs.outcome(checkpoint.write, directory + "/refused", mp_programs.options(io))
    checkpoint.model = very_small(3)
    target = jaxckpt.Checkpoint(model=blank(checkpoint.model))
    target.restore(checkpoint.write(directory + "/after", mp_programs.options(io)), mp_programs.options(io))
    mp_values.assert_same(target.model, checkpoint.model)
    return found


def _copied(value: Any) -> Any:
    return jax.jit(jax.numpy.copy)(value) if isinstance(value, jax.Array) else value
