"""Programs of jobs whose processes have objects with states of their own, such as data iterators. Nothing here imports pytest."""

import json
from typing import Any

import jax
import mp_programs
import mp_values
import numpy as np

import jaxckpt


class Iterator:
    """A data iterator with ``get_state``, whose state is JSON."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position, "shard": [1, 2]}

    def set_state(self, state: dict[str, Any]) -> None:
        assert state["shard"] == [1, 2]
        self.position = state["position"]


class Bytes(Iterator):
    """An iterator whose state is bytes, longer on each process than on the one before."""

    def serialize(self) -> bytes:
        return json.dumps(list(range(self.position))).encode()

    def deserialize(self, state: bytes) -> None:
        self.position = len(json.loads(state))


def checkpoint(first: int, by_process: bool = True) -> jaxckpt.Checkpoint:
    me = jax.process_index() if by_process else 0
    array = mp_values.spread(mp_values.full((mp_values.SIDE, 4)), "rows")
    return jaxckpt.Checkpoint(
        w=array,
        data={"train": Iterator(first + 10 * me), "more": [np.arange(3), Bytes(first + 100 * me)]},
        same=Iterator(first),
    )


def positions(found: jaxckpt.Checkpoint) -> list[int]:
    return [found.data["train"].position, found.data["more"][1].position, found.same.position]


def save(
    directory: str, io: int | None, asynchronous: bool, by_process: bool = True
) -> tuple[str, list[int], list[int]]:
    """Saves, and restores; returns the path, the positions that were saved, and those that came back."""
    given = mp_programs.options(io, asynchronous=asynchronous)
    saved = checkpoint(3, by_process)
    expected = positions(saved)
    path = saved.save(directory + "/ckpt", given)
    # The snapshot is taken by now.
    saved.data["train"].position = saved.data["more"][1].position = -1
    saved.sync()
    target = checkpoint(0)
    target.restore(path, given).assert_consumed()
    return path, expected, positions(target)


def restore(path: str, io: int | None) -> tuple[list[str], str]:
    """How another job restores what `save` saved."""
    target = checkpoint(0)

    def run() -> Any:
        target.restore(path, mp_programs.options(io)).assert_consumed()
        return positions(target)

    return mp_programs.outcome(run)
