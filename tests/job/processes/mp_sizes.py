"""Programs with large arrays, or very many small ones, and what calls leave behind; and damage."""

import dataclasses
import os
from typing import Any

import jax
import mp_values
import numpy as np
from mp_programs import options

import jaxckpt


def large_round_trip(directory: str, io: int, without_memory: list[int], rows: int = 512) -> tuple[int, int]:
    """Saves arrays whose pieces are large, and restores them as they were and laid out in another way.

    Args:
      directory: where to.
      io: the IO process.
      without_memory: processes that cannot open memory of another one.
      rows: a multiple of which the arrays have.

    Returns:
      How many boxes this process put into memory that it shares, at least in part, and how many answers it took from such memory.
    """
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.modes import local_memory, peer_answers, remote

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    by_rows, by_columns, replicated = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x", None), (None, "x"), ())
    )
    side = rows * jax.device_count()
    whole = np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)

    def state(*shardings: Any) -> dict[str, Any]:
        return {
            f"{name}_{number}": jax.make_array_from_callback(
                data.shape, sharding, lambda index, data=data: np.array(data[index], order="C")
            )
            for number, sharding in enumerate(shardings)
            for name, data in (("bytes", whole), ("halves", whole.view(np.float16)), ("tail", whole[:, : side // 2]))
        }

    counts = {"_fill": 0, "read": 0}

    def counted(owner: Any, name: str) -> Any:
        method = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return method(*arguments)

        return mock.patch.object(owner, name, call)

    offers, opens = peer_answers.PeerAnswers._share, local_memory.open_slots
    if jax.process_index() in without_memory:
        # As in a container of its own, where ids of processes mean others.
        offers, opens = (
            _offer_of_another_process,
            lambda offer: local_memory.open_slots(dataclasses.replace(offer, pid=1)),
        )
    with (
        mock.patch.object(remote, "open_slots", opens),
        mock.patch.object(peer_answers.PeerAnswers, "_share", offers),
        counted(peer_answers.PeerAnswers, "_fill"),
        counted(local_memory.OpenedSlots, "read"),
    ):
        saved = state(by_rows, by_columns, replicated)
        with jaxckpt.Checkpoint(model=saved) as checkpoint:
            path = checkpoint.save(directory + "/large", options(io, asynchronous=io == 0))
        for targets in (state(by_rows, by_columns, replicated), state(by_columns, replicated, by_rows)):
            blank = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                for name, leaf in targets.items()
            }
            target = jaxckpt.Checkpoint(model=blank)
            target.restore(path, options(io)).assert_consumed()
            mp_values.assert_same(target.model, targets)
    return counts["_fill"], counts["read"]


def _offer_of_another_process(self: Any, request: Any) -> Any:
    """What a process says that has the same number as another one, because it lives in a container of its own."""
    from jaxckpt.job.protocol import messages, parts

    return messages.Memory(parts.SlotOffer(1, 8, "00" * 32, 4, 1 << 20)), None


def many_small(directory: str, io: int | None, count: int) -> tuple[int, set[bool]]:
    """Saves and restores many small arrays that are divided over all processes.

    Returns:
      How many messages this process sent in the save, and whether arrays are one chunk each in the checkpoint, as its writer sees it.
    """
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.protocol.link import Link
    from jaxckpt.storage.opened import StoredCheckpoint

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), (None, "x")))
    state = {}
    for number in range(count):
        data = np.full((jax.device_count(), jax.device_count() * 2), number, np.float32) + np.arange(
            2 * jax.device_count()
        )
        sharding = columns if number % 3 == 0 else rows
        state[f"leaf{number:04d}"] = jax.make_array_from_callback(
            data.shape, sharding, lambda index, data=data: np.array(data[index], order="C")
        )
    sent = 0
    send = Link.send

    def counted(link: Link, *arguments: Any, **more: Any) -> None:
        nonlocal sent
        sent += 1
        send(link, *arguments, **more)

    checkpoint = jaxckpt.Checkpoint(model=state)
    with mock.patch.object(Link, "send", counted):
        path = checkpoint.write(directory + f"/small{io}", options(io))
    messages = sent
    blank = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in state.items()}
    target = jaxckpt.Checkpoint(model=blank)
    target.restore(path, options(io)).assert_consumed()
    mp_values.assert_same(target.model, state)
    whole = set()
    if jax.process_index() == (io or 0):
        stored = StoredCheckpoint(path, 30)
        infos = stored.infos([leaf for leaf in stored.tree.leaves if leaf.param_name.startswith("model.")])
        assert len(infos) == count
        whole = {info.chunk_shape == info.shape for info in infos.values()}
    return messages, whole


def left_behind(directory: str, io: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Saves and restores large arrays without garbage collection; returns descriptors and shared mappings before and after."""
    import gc

    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    data = np.random.default_rng(0).random((jax.device_count() * 300, 256), np.float32)
    array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
    checkpoint = jaxckpt.Checkpoint(model={"w": array, "v": array + 1})

    def resources() -> tuple[int, int]:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return len(os.listdir("/proc/self/fd")), sum("memfd:jaxckpt" in line for line in maps)

    def both() -> None:
        path = checkpoint.write(directory + "/large", options(io))
        checkpoint.read(path, options(io)).assert_consumed()

    both()
    gc.collect()
    gc.disable()
    try:
        before = resources()
        for _ in range(4):
            both()
        return before, resources()
    finally:
        gc.enable()


def kept_memory_of_saves(directory: str, io: int) -> list[str | None]:
    """Saves a large array, twice with success, then with a failure, then with success.

    Returns:
      By save what tells the memory that this process shared from other memory; None if it shared none.
    """
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.modes import peer_answers
    from jaxckpt.storage.arrays import database

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    data = np.random.default_rng(0).random((jax.device_count() * 300, 256), np.float32)
    array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
    share, found = peer_answers.PeerAnswers._share, []

    def noted(answers: Any, request: Any) -> Any:
        answer, _ = share(answers, request)
        found[-1] = answer.offer.proof
        return answer, None

    def failing(*arguments: Any) -> Any:
        raise PermissionError(13, "on purpose", directory)

    with mock.patch.object(peer_answers.PeerAnswers, "_share", noted):
        for number, fails in enumerate((False, False, True, False)):
            found.append(None)
            checkpoint = jaxckpt.Checkpoint(w=array + number)
            if fails:
                with mock.patch.object(database.Database, "_write_tree", failing):
                    try:
                        path = checkpoint.write(f"{directory}/kept{number}", options(io))
                    except PermissionError:
                        continue
                raise AssertionError(f"{path} was to fail")
            path = checkpoint.write(f"{directory}/kept{number}", options(io))
            target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding))
            target.read(path, options(io)).assert_consumed()
            mp_values.assert_same({"w": target.w}, {"w": array + number})
    return found


def many_chunks_at_once(directory: str, io: int) -> tuple[int, int]:
    """Saves arrays of hundreds of chunks that lie on other processes, the threads that write them interrupting each other all the time.

    The peers share fewer slots than there are threads, and a chunk takes several of them. At times a chunk finds no slot.

    Returns:
      How many chunks this process asked for in slots, and how many it had to ask for through the connection.
    """
    import sys
    from unittest import mock

    from jax.sharding import NamedSharding, PartitionSpec

    from jaxckpt.job.modes import fetcher, peer_answers
    from jaxckpt.job.protocol import messages

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    data = np.random.default_rng(0).random((jax.device_count() * 30, 70_000), np.float32)
    array = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
    asked = {messages.Fill: 0, messages.AskPieces: 0}
    ask = fetcher.Center.ask

    def counted(center: Any, process: int, request: Any, *rest: Any, **more: Any) -> Any:
        if type(request) in asked:
            asked[type(request)] += 1
        return ask(center, process, request, *rest, **more)

    settings = options(io, chunk_byte_size=70_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            mock.patch.object(fetcher.Center, "ask", counted),
            mock.patch.object(peer_answers, "_SLOTS", 1),
            mock.patch.object(peer_answers, "SLOT_BYTES", 32 << 10),
        ):
            for number in range(6):
                path = jaxckpt.Checkpoint(w=array).write(f"{directory}/many{number}", settings)
    finally:
        sys.setswitchinterval(interval)
    target = jaxckpt.Checkpoint(w=jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding))
    target.restore(path, settings).assert_consumed()
    mp_values.assert_same({"w": target.w}, {"w": array})
    return asked[messages.Fill], asked[messages.AskPieces]


def exchanged(directory: str, io: int) -> tuple[str, str, float]:
    """Puts the data file of one checkpoint in the place of another's, and restores that one; returns what was raised, and the target."""
    import shutil
    from pathlib import Path

    from jax.sharding import NamedSharding, PartitionSpec

    # One piece, and so one data file: which pieces get into the same one is a matter of chance.
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec())
    shape = (12, 50_000)

    def filled(value: float) -> jax.Array:
        return jax.make_array_from_callback(shape, sharding, lambda index: np.full(shape, value, np.float32)[index])

    for value in (1.0, 2.0):
        jaxckpt.Checkpoint(w=filled(value)).write(f"{directory}/{value:g}", options(io))
    if jax.process_index() == io:
        target, source = (max(Path(directory, name, "d").iterdir(), key=os.path.getsize) for name in ("1", "2"))
        assert target.stat().st_size == source.stat().st_size
        shutil.copyfile(source, target)
    checkpoint = jaxckpt.Checkpoint(w=filled(0))
    try:
        checkpoint.restore(f"{directory}/1", options(io))
    except jaxckpt.CheckpointError as error:
        raised = type(error).__name__, str(error)
    else:
        raised = "", ""
    checkpoint_of_two = jaxckpt.Checkpoint(w=filled(0))
    checkpoint_of_two.restore(f"{directory}/2", options(io)).assert_consumed()
    assert float(checkpoint_of_two.w.addressable_shards[0].data[0, 0]) == 2
    return (*raised, float(checkpoint.w.addressable_shards[0].data[0, 0]))
