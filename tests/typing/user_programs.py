"""Programs as users write them: mypy and pyright check their types (`make lint`), and test_user_programs.py runs them.

`assert_type` compares types when a type checker reads it, and returns its argument when it runs. A line with an ignore is one
that type checkers have to refuse: both also report an ignore that hides nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp  # pyright: ignore[reportMissingTypeStubs]

import jaxckpt


def save_and_restore(directory: Path) -> None:
    """The first program of the README, with every form of a path."""
    checkpoint = jaxckpt.Checkpoint(model={"kernel": jnp.ones((4, 3))}, step=0)
    checkpoint.step = 1
    path = assert_type(checkpoint.save(directory / "ckpt"), str)
    exact = assert_type(checkpoint.write(os.fspath(directory / "exact"), jaxckpt.CheckpointOptions()), str)

    status = assert_type(checkpoint.restore(path), jaxckpt.CheckpointLoadStatus)
    assert_type(
        status.assert_consumed().assert_existing_objects_matched().expect_partial(), jaxckpt.CheckpointLoadStatus
    )
    assert_type(status.missing, tuple[str, ...])
    assert_type(status.unexpected, tuple[str, ...])
    assert_type(status.cast, tuple[str, ...])
    assert_type(checkpoint.read(Path(exact), cast=True), jaxckpt.CheckpointLoadStatus)
    assert_type(checkpoint.restore(None), jaxckpt.CheckpointLoadStatus)

    # The values of a Checkpoint can be of any type.
    model: dict[str, jax.Array] = checkpoint.model
    assert model["kernel"].shape == (4, 3)
    assert assert_type(checkpoint.save_counter, int) == 1
    checkpoint.save_counter = 5

    with jaxckpt.Checkpoint({"step": np.zeros(())}, extra=[1.0, None]) as other:
        assert_type(other, jaxckpt.Checkpoint)
        other.write(directory / "other")
    checkpoint.sync()
    checkpoint.close()


def start_warm(directory: Path) -> None:
    """Names by a mapping and by a function, and what does not fit."""
    path = jaxckpt.Checkpoint(old={"kernel": jnp.ones((4, 3))}).write(directory / "old")
    checkpoint = jaxckpt.Checkpoint(model={"kernel": jnp.ones((4, 2))})
    diff = assert_type(checkpoint.diff(path, rename={"model": "old"}), jaxckpt.CheckpointDiff)
    assert_type(diff.matched, tuple[str, ...])
    assert_type(diff.missing, tuple[str, ...])
    assert_type(diff.unexpected, tuple[str, ...])
    assert_type(diff.cast, tuple[str, ...])
    assert_type(diff.refused, tuple[str, ...])
    assert assert_type(diff.mismatched, tuple[str, ...]) == ("model/kernel",)
    assert assert_type(diff.reasons, dict[str, str]).keys() == {"model/kernel"}

    def stored(name: str) -> str:
        return name.replace("model", "old")

    names: Mapping[str, str] = {"model": "old"}
    status = checkpoint.restore(path, rename=stored, cast=True, skip_mismatched=True).expect_partial()
    assert assert_type(status.mismatched, tuple[str, ...]) == diff.mismatched
    assert_type(
        checkpoint.read(path, rename=names, skip_mismatched=True).expect_partial(), jaxckpt.CheckpointLoadStatus
    )


def choose_options(directory: Path) -> None:
    """Options, with callbacks of both forms."""
    written: list[str] = []
    options = jaxckpt.CheckpointOptions(
        experimental_io_device="/job:worker/task:0",
        experimental_write_callbacks=[written.append, lambda: None, lambda path: print(path)],
        enable_async=True,
        experimental_skip_slot_variables=True,
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1 << 20),
        orbax=jaxckpt.OrbaxSettings(timeout_secs=60, compression="zstd"),
    )
    assert_type(options.enable_async, bool)
    assert_type(options.experimental_skip_slot_variables, bool)
    assert_type(options.orbax, jaxckpt.OrbaxSettings | None)
    assert_type(options.experimental_write_callbacks, list[Callable[[str], object] | Callable[[], object]] | None)
    options.experimental_write_callbacks = (written.append,)
    options.experimental_io_device = jax.devices()[0]
    options.experimental_io_device = 0
    options.experimental_sharding_callback = jaxckpt.ShardByTaskPolicy()
    options.experimental_sharding_callback = None

    with jaxckpt.Checkpoint(x=1) as checkpoint:
        path = checkpoint.write(directory / "x", options)
    assert written == [path]


class ByLayer:
    """A sharding callback."""

    description = "by layer"

    def __call__(
        self, shardable_tensors: Sequence[jaxckpt.ShardableTensor]
    ) -> Sequence[Mapping[str, Mapping[str, Any]]]:
        return [{each.checkpoint_key: {each.slice_spec: each.tensor}} for each in shardable_tensors]


def shard_by_callback(directory: Path) -> None:
    """A sharding callback whose argument is annotated."""
    callback: jaxckpt.ShardingCallback = ByLayer()
    options = jaxckpt.CheckpointOptions(experimental_sharding_callback=callback)
    jaxckpt.Checkpoint(x=np.ones(3), y=np.ones(4)).write(directory / "x", options)


def explain_options() -> None:
    """The translation to Orbax's settings."""
    translation = assert_type(jaxckpt.to_orbax(jaxckpt.CheckpointOptions(enable_async=True)), jaxckpt.OrbaxTranslation)
    assert_type(translation.asynchronous, bool)
    assert_type(translation.io_process, int | None)
    assert_type(translation.array_settings, jaxckpt.WriteSettings)
    assert_type(translation.array_settings.chunk_byte_size, int)
    assert_type(str(translation), str)


def manage(directory: Path) -> None:
    """A manager in a training loop."""
    checkpoint = jaxckpt.Checkpoint(step=0)
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        max_to_keep=3,
        keep_checkpoint_every_n_hours=1,
        step_counter=lambda: checkpoint.step,
        checkpoint_interval=2,
        init_fn=lambda: print("a new run"),
        options=jaxckpt.CheckpointOptions(enable_async=True),
    )
    assert_type(manager.restore_or_initialize(skip_corrupt=True), str | None)
    for step in range(4):
        checkpoint.step = step
        assert_type(manager.save(), str | None)
    manager.sync()
    assert len(assert_type(manager.checkpoints, list[str])) == 2
    assert_type(manager.latest_checkpoint, str | None)
    assert_type(manager.directory, str)
    assert_type(manager.checkpoint, jaxckpt.Checkpoint)
    assert_type(manager.checkpoint_interval, int | None)
    assert_type(manager.last_checkpoint_step, int | None)
    jaxckpt.CheckpointManager(checkpoint, directory, None)


def keep_the_best(directory: Path) -> None:
    """Policies of Orbax, metrics, and saving after SIGTERM."""
    checkpoint = jaxckpt.Checkpoint(step=0)
    manager = jaxckpt.CheckpointManager(
        checkpoint,
        directory,
        None,
        step_counter=lambda: checkpoint.step,
        preservation_policy=ocp.checkpoint_managers.LatestN(2),
        save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
        numbers="step",
    )
    config = jaxckpt.TerminationConfig(exit_fn=lambda: print("bye"), grace_period=30)
    with jaxckpt.PreemptionCheckpointHandler(manager, config) as handler:
        for step in range(3):
            checkpoint.step = step
            assert_type(manager.save(metrics={"loss": 1.0 - step, "step": np.int32(step)}), str | None)
            handler.save_checkpoint_if_preempted()
    best = assert_type(manager.best_checkpoint("loss", mode="max"), str | None)
    assert best is not None
    assert_type(jaxckpt.load_checkpoint(best).metrics, dict[str, Any])


def look_at_a_directory(directory: Path) -> None:
    """What a directory of checkpoints says, under both names of its argument."""
    jaxckpt.Checkpoint(x=1).save(directory / "ckpt")
    assert_type(jaxckpt.latest_checkpoint(directory), str | None)
    assert_type(jaxckpt.latest_checkpoint(checkpoint_dir=str(directory)), str | None)
    # TensorFlow's second argument is the name of the state file.
    assert_type(jaxckpt.latest_checkpoint(directory, "checkpoint"), str | None)
    state = assert_type(jaxckpt.get_checkpoint_state(directory), jaxckpt.CheckpointState | None)
    assert state is not None
    assert_type(state.model_checkpoint_path, str)
    assert_type(state.all_model_checkpoint_paths, list[str])
    assert_type(state.all_model_checkpoint_timestamps, list[float])
    assert_type(state.last_preserved_timestamp, float)
    found = assert_type(jaxckpt.checkpoints_iterator(directory, timeout=0, timeout_fn=lambda: True), Iterator[str])
    assert next(found) == state.model_checkpoint_path


def read_without_targets(directory: Path) -> None:
    """A reader, and the functions around it."""
    path = jaxckpt.Checkpoint(model={"kernel": np.ones((4, 3), np.float32)}).write(directory / "x")
    reader = assert_type(jaxckpt.load_checkpoint(path), jaxckpt.Reader)
    for name in reader.keys():
        assert_type(name, str)
        assert_type(reader.shape(name), tuple[int, ...])
        assert_type(reader.dtype(name), np.dtype[Any])
        array: np.ndarray = reader.get_tensor(name)
        part: np.ndarray = reader.get_tensor(name, np.s_[:1] if array.shape else ())
        assert part.ndim == array.ndim
        assert array.shape == reader.shape(name)
        leaf = assert_type(reader.metadata(name), jaxckpt.LeafMetadata)
        assert_type(leaf.nbytes, int)
        assert_type(leaf.dtype, np.dtype[Any] | None)
        assert_type(leaf.sharding, str | None)
    assert_type(reader.keys("model/*"), list[str])
    assert reader.tree("model")["kernel"].shape == reader.pure_dict("model")["kernel"].shape == (4, 3)
    assert_type("model/kernel" in reader, bool)
    assert_type(len(reader), int)
    assert_type(reader.get_variable_to_shape_map(), dict[str, list[int]])
    assert_type(jaxckpt.list_variables(path), list[tuple[str, tuple[int, ...]]])
    kernel: np.ndarray = jaxckpt.load_variable(path, "model/kernel")
    assert kernel.dtype == np.float32

    report = assert_type(jaxckpt.verify(path, progress=lambda done, total: print(done, total)), jaxckpt.VerifyReport)
    assert_type(report.ok, bool)
    assert_type(report.problems, tuple[jaxckpt.Problem, ...])
    assert [problem.where for problem in report.problems] == []


def load_a_config(directory: Path) -> None:
    """A config of each source."""
    values: dict[str, Any] = {"directory": str(directory), "max_to_keep": 3}
    config = assert_type(jaxckpt.load_config(values, overrides=["options.enable_async=true"]), jaxckpt.CheckpointConfig)
    assert_type(config.options, jaxckpt.CheckpointOptions)
    assert_type(config.max_to_keep, int | None)
    assert_type(config.to_dict(), dict[str, Any])
    assert_type(config.manager(jaxckpt.Checkpoint(x=1), max_to_keep=None), jaxckpt.CheckpointManager)
    (directory / "run.yaml").write_text(f"directory: {directory}\nmax_to_keep: null\n")
    assert_type(jaxckpt.load_config(directory / "run.yaml", {"max_to_keep": 2}), jaxckpt.CheckpointConfig)


def handle_errors(directory: Path) -> None:
    """Each error is also one of Python's own, and has what its documentation names."""
    try:
        jaxckpt.load_checkpoint(directory / "nothing")
    except jaxckpt.CorruptCheckpointError as error:
        assert_type(error.where, str | None)
        assert_type(error.what, str | None)
    except jaxckpt.ProcessError as error:
        assert_type(error.processes, tuple[int, ...])
    except jaxckpt.CheckpointError:
        raise
    except FileNotFoundError as error:
        assert_type(error.filename, Any)
    damaged: ValueError = jaxckpt.CorruptCheckpointError("damaged")
    wrong: ValueError = jaxckpt.ConfigError("wrong")
    lost: RuntimeError = jaxckpt.ProcessError("lost", [1])
    assert all(isinstance(error, jaxckpt.CheckpointError) for error in (damaged, wrong, lost))


def start_a_job(directory: Path) -> jaxckpt.testing.Job:
    """What tests of several processes use; the job starts with a `with` statement."""
    job = jaxckpt.testing.Job(processes=2, timeout=30, cwd=directory)
    assert_type(job.processes, int)
    assert_type(jaxckpt.testing.private_disks_problem(), str | None)
    return job


def mistakes(directory: Path) -> None:
    """Never run: type checkers refuse each line."""
    checkpoint = jaxckpt.Checkpoint(x=1)
    checkpoint.save(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    checkpoint.restore(directory, jaxckpt.OrbaxSettings())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    checkpoint.restore(directory, rename=[("a", "b")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jaxckpt.CheckpointOptions(enable_async="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jaxckpt.CheckpointOptions(synchronous=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    jaxckpt.OrbaxSettings(compression="gzip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jaxckpt.CheckpointManager(checkpoint, directory)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    jaxckpt.CheckpointManager(checkpoint, directory, 1, numbers="steps")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jaxckpt.CheckpointManager(checkpoint, directory, 1, preservation_policy=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jaxckpt.latest_checkpoint()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    jaxckpt.save(directory)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
