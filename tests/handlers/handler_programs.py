"""Programs of jobs whose processes save with Orbax's checkpointers and jaxckpt's handlers. Nothing here imports pytest."""

import os
from typing import Any

import jax
import numpy as np

import jaxckpt

SIDE = 24


def spread(value: np.ndarray, *axes: str | None) -> jax.Array:
    """An array over the devices of the job, two per process."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 2), ("process", "device"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def host() -> dict[str, np.ndarray]:
    """The values of `tree`, as numpy arrays."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(SIDE, 4)).astype(np.float32)
        for name in ("rows", "both", "replicated", "by_device", "numpy")
    }


def tree() -> dict[str, Any]:
    """A tree with arrays that lie on the job's devices in every way, and values in host memory."""
    values = host()
    return {
        "rows": spread(values["rows"], "process"),
        "both": spread(values["both"], ("process", "device")),
        "replicated": spread(values["replicated"]),
        "nested": [
            spread(values["by_device"], None, "device"),
            {"numpy": values["numpy"].copy(), "step": 7, "text": "t"},
        ],
    }


def flat(found: Any) -> dict[str, np.ndarray]:
    return {
        "rows": found["rows"],
        "both": found["both"],
        "replicated": found["replicated"],
        "by_device": found["nested"][0],
    }


def assert_same(found: Any) -> None:
    values = host()
    for name, value in flat(found).items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), values[name][shard.index])
    np.testing.assert_array_equal(found["nested"][1]["numpy"], values["numpy"])
    assert found["nested"][1]["step"] == 7
    assert found["nested"][1]["text"] == "t"


def targets() -> Any:
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        tree(),
    )


def manager_loop(directory: str, asynchronous: bool) -> dict[str, int]:
    """Saves three steps with a manager; restores each with the handler, and with plain Orbax. Returns bytes written by process."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=asynchronous, max_to_keep=3)
    handlers = {"state": jaxckpt.orbax.PyTreeHandler(), "standard": jaxckpt.orbax.StandardHandler()}
    with ocp.CheckpointManager(
        directory, item_names=("state", "standard"), item_handlers=handlers, options=options
    ) as manager:
        for step in (1, 2, 10):
            state = tree()
            standard = {"w": state["rows"]}
            manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), standard=ocp.args.StandardSave(standard)),
            )
            state["nested"][1]["numpy"][:] = -1.0
            if not asynchronous:
                assert step in manager.all_steps()
        manager.wait_until_finished()
        assert list(manager.all_steps()) == [1, 2, 10]
        for step in (1, 2, 10):
            arguments = ocp.checkpoint_utils.construct_restore_args(targets())
            found = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(targets(), restore_args=arguments),
                    standard=ocp.args.StandardRestore({"w": targets()["rows"]}),
                ),
            )
            assert_same(found.state)
    with ocp.CheckpointManager(directory, item_names=("state", "standard"), options=options) as manager:
        arguments = ocp.checkpoint_utils.construct_restore_args(targets())
        found = manager.restore(
            10, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(targets(), restore_args=arguments))
        )
        assert_same(found.state)
    part = os.path.join(directory, "10", "state", f"ocdbt.process_{jax.process_index()}", "d")
    return {"bytes": sum(os.path.getsize(os.path.join(part, name)) for name in os.listdir(part))}


def checkpointers(directory: str, asynchronous: bool) -> None:
    """Saves with the checkpointer of options, and with Orbax's own ones; plain Orbax v1 restores."""
    import orbax.checkpoint as ocp

    with jaxckpt.to_orbax(jaxckpt.CheckpointOptions(enable_async=asynchronous)).checkpointer() as checkpointer:
        checkpointer.save(directory + "/options", args=ocp.args.PyTreeSave(tree()))
    kind = ocp.AsyncCheckpointer if asynchronous else ocp.Checkpointer
    with kind(jaxckpt.orbax.PyTreeHandler()) as checkpointer:
        checkpointer.save(directory + "/plain", args=ocp.args.StandardSave({"w": tree()["rows"]}))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arguments = ocp.checkpoint_utils.construct_restore_args(targets())
        restored = checkpointer.restore(
            directory + "/options", args=ocp.args.PyTreeRestore(targets(), restore_args=arguments)
        )
    assert_same(restored)
    checkpoint = jaxckpt.Checkpoint(**targets())
    checkpoint.read(directory + "/options").assert_consumed()
    assert_same(
        {"nested": checkpoint.nested, **{name: getattr(checkpoint, name) for name in ("rows", "both", "replicated")}}
    )
    reader = jaxckpt.load_checkpoint(directory + "/plain")
    np.testing.assert_array_equal(reader.get_tensor("w"), host()["rows"])
    assert jaxckpt.verify(directory + "/options").ok


def part_is_missing(directory: str) -> list[str]:
    """The part of process 1 goes away before process 0 commits; returns the error's text."""
    import shutil

    import orbax.checkpoint as ocp

    from jaxckpt.storage.arrays import writer

    original = writer.write_arrays

    def lost(part: str, *arguments: Any, **more: Any) -> None:
        original(part, *arguments, **more)
        shutil.rmtree(part)

    if jax.process_index() == 1:
        writer.write_arrays = lost
    # The process that waits for the other must not wait for long.
    options = ocp.AsyncOptions(timeout_secs=10)
    said = []
    try:
        with ocp.AsyncCheckpointer(jaxckpt.orbax.PyTreeHandler(), async_options=options) as checkpointer:
            try:
                checkpointer.save(directory + "/lost", args=ocp.args.PyTreeSave(tree()))
                checkpointer.wait_until_finished()
            except Exception as error:
                said.append(str(error))
    finally:
        writer.write_arrays = original
    assert not os.path.exists(directory + "/lost")
    return said


def v1_saves(directory: str) -> None:
    """Saves with Orbax's new interface; everything restores it."""
    from orbax.checkpoint import v1

    context = v1.Context()
    context.checkpointables.registry = jaxckpt.orbax.v1_registry()
    with context:
        v1.save(directory + "/a", tree())
        response = v1.save_async(directory + "/b", tree())
        response.result()
        with v1.training.Checkpointer(directory + "/steps") as checkpointer:
            checkpointer.save(1, tree())
            # Orbax leaves out a step that comes while another one is being saved.
            checkpointer.save_async(2, tree())
        assert_same(v1.load(directory + "/a", targets()))
    for path in (directory + "/b", directory + "/steps/2"):
        assert os.path.isfile(path + "/state/_JAXCKPT")
        assert_same(v1.load(path, targets()))
        checkpoint = jaxckpt.Checkpoint(**targets())
        checkpoint.read(path).assert_consumed()
