"""What runs in the processes of `test_structures_of_jobs`: saves of one structure again and again, and of others in between."""

from collections import Counter
from typing import Any
from unittest import mock

import jax
import mp_programs
import mp_values
import numpy as np

import jaxckpt
from jaxckpt.job.protocol.link import Link
from jaxckpt.leaf_kinds import on_devices


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
