"""What options turn into, against the real Orbax."""

import copy
import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.translate import OrbaxTranslation, to_orbax


def callback(path):
    """Does nothing."""


def test_defaults():
    translation = to_orbax(CheckpointOptions())
    assert isinstance(translation, OrbaxTranslation)
    assert translation.asynchronous is False
    assert translation.io_process is None
    assert translation.array_settings == WriteSettings()
    assert translation.exit_timeout_secs == 600
    assert translation.multiprocessing_options == ocp.options.MultiprocessingOptions()
    assert isinstance(translation.async_options, ocp.AsyncOptions)


def test_every_setting_is_carried_over():
    orbax = OrbaxSettings(
        timeout_secs=30.5,
        exit_timeout_secs=7,
        compression="zstd",
        chunk_byte_size=1 << 20,
        target_data_file_size=1 << 22,
        memory_limit_bytes=1 << 23,
        read_once_per_job=False,
    )
    # A new field needs a value here, so that one that is accepted and ignored fails.
    assert all(getattr(orbax, field.name) != field.default for field in dataclasses.fields(OrbaxSettings))
    translation = to_orbax(CheckpointOptions(enable_async=True, orbax=orbax))
    reached = {
        **dataclasses.asdict(translation.array_settings),
        "exit_timeout_secs": translation.exit_timeout_secs,
        "read_once_per_job": translation.read_once_per_job,
    }
    assert {field.name: reached[field.name] for field in dataclasses.fields(OrbaxSettings)} == dataclasses.asdict(orbax)
    assert translation.asynchronous is True
    assert translation.exit_timeout_secs == 7
    assert translation.async_options.timeout_secs == 30
    assert translation.array_settings == WriteSettings(
        asynchronous=True,
        io_process=None,
        compression="zstd",
        chunk_byte_size=1 << 20,
        target_data_file_size=1 << 22,
        max_file_size=None,
        memory_limit_bytes=1 << 23,
        timeout_secs=30.5,
    )


@pytest.mark.parametrize("device", [0, "/job:localhost", "CPU:0", "/job:worker/task:0", "device"])
def test_device_of_a_job_of_one_process_leaves_orbax_as_it_is(device):
    translation = to_orbax(CheckpointOptions(jax.devices()[1] if device == "device" else device))
    assert translation.io_process == 0
    assert translation.array_settings.io_process == 0
    assert translation.multiprocessing_options == ocp.options.MultiprocessingOptions(primary_host=0)


@pytest.mark.parametrize("device", [1, "/task:1", "/job:worker", "/job:ps", "/gpu:0", "/device:CPU:99"])
def test_device_that_does_not_exist_is_refused(device):
    options = CheckpointOptions(device)
    with pytest.raises(ValueError, match="This job has one process"):
        to_orbax(options)


@pytest.mark.parametrize("value", [None, {}, "options", CheckpointOptions, OrbaxSettings()])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match=r"options must be a jaxckpt\.CheckpointOptions.*, got"):
        to_orbax(value)


@pytest.mark.parametrize(("wrong", "kind"), [("print", TypeError), (lambda a, b: None, ValueError)])
def test_what_was_put_into_the_list_of_callbacks_is_checked(wrong, kind):
    options = CheckpointOptions(experimental_write_callbacks=[callback])
    options.experimental_write_callbacks.append(wrong)
    with pytest.raises(kind, match=r"experimental_write_callbacks\[1\]"):
        to_orbax(options)


@pytest.mark.parametrize("limit", [1, 100, 10 << 20, 32 << 20, 1 << 30])
def test_max_shard_size_bounds_chunks_and_files(limit):
    settings = to_orbax(CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(limit))).array_settings
    assert settings.max_file_size == limit
    assert settings.chunk_byte_size == min(limit, 16 << 20)
    assert settings.target_data_file_size == min(limit, 64 << 20)


def test_shard_by_task_is_the_default():
    policy = ShardByTaskPolicy()
    assert to_orbax(CheckpointOptions(experimental_sharding_callback=policy)).array_settings == WriteSettings()


def test_memory_limit_bounds_chunks():
    orbax = OrbaxSettings(memory_limit_bytes=1 << 20)
    assert to_orbax(CheckpointOptions(orbax=orbax)).array_settings.chunk_byte_size == 1 << 20


def test_callbacks_are_not_given_to_orbax():
    translation = to_orbax(CheckpointOptions(experimental_write_callbacks=[callback], enable_async=True))
    assert translation.async_options.post_finalization_callback is None


def test_translation_does_not_follow_later_changes():
    options = CheckpointOptions(experimental_write_callbacks=[callback])
    translation = to_orbax(options)
    text = str(translation)
    options.enable_async = True
    options.experimental_write_callbacks.append(print)
    assert translation.asynchronous is False
    assert str(translation) == text
    assert translation != to_orbax(options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        translation.exit_timeout_secs = 1


limits = st.none() | st.integers(1, 1 << 40).map(MaxShardSizePolicy)
settings = st.builds(
    OrbaxSettings,
    timeout_secs=st.floats(0.01, 1e6),
    exit_timeout_secs=st.floats(0.01, 1e6),
    compression=st.sampled_from([None, "zstd"]),
    chunk_byte_size=st.integers(16, 1 << 40),
    target_data_file_size=st.integers(1, 1 << 40),
    memory_limit_bytes=st.integers(16, 1 << 40),
    read_once_per_job=st.none() | st.booleans(),
)


@given(st.booleans(), st.none() | st.just("CPU:0"), limits, st.none() | settings)
def test_translation_is_pure(asynchronous, device, policy, orbax):
    options = CheckpointOptions(device, enable_async=asynchronous, experimental_sharding_callback=policy, orbax=orbax)
    before = copy.deepcopy(options)
    translation = to_orbax(options)
    assert options == before
    assert to_orbax(options) == translation
    assert translation.asynchronous is asynchronous
    written = translation.array_settings
    assert written.chunk_byte_size <= written.memory_limit_bytes
    assert written.chunk_byte_size <= (written.max_file_size or written.chunk_byte_size)
    assert translation.async_options.timeout_secs >= 1
    assert str(translation).count("\n  -> ") == 12


# -- the explanation ---------------------------------------------------------------------------------------------------


def test_explanation_names_every_option_and_its_value():
    options = CheckpointOptions(
        "/job:localhost",
        experimental_write_callbacks=[callback],
        enable_async=True,
        experimental_skip_slot_variables=True,
        experimental_sharding_callback=MaxShardSizePolicy(1000),
        orbax=OrbaxSettings(timeout_secs=33),
    )
    lines = str(to_orbax(options)).splitlines()
    for line in (
        "experimental_io_device = '/job:localhost'",
        "enable_async = True",
        "experimental_write_callbacks = [callback]",
        "experimental_skip_slot_variables = True",
        "experimental_sharding_callback = MaxShardSizePolicy(max_shard_size=1000)",
        "  -> ocp.AsyncCheckpointer",
        "  -> data files of at most 1000 bytes",
        "  -> ocp.AsyncOptions(timeout_secs=33)",
    ):
        assert line in lines
    for item in dataclasses.fields(OrbaxSettings):
        assert any(line.startswith(f"orbax.{item.name} = ") for line in lines)
    assert all(len(line) <= 160 and line.isascii() for line in lines)


def test_explanation_says_why_callbacks_are_not_orbaxs():
    assert "post_finalization_callback runs before" in str(to_orbax(CheckpointOptions()))


@pytest.mark.parametrize(
    ("device", "once", "text"),
    [
        (0, False, "reads for all, whatever"),
        (None, None, "read once from buckets"),
        (None, True, "one process reads what several want"),
        (None, False, "every process reads"),
    ],
)
def test_explanation_says_who_reads(device, once, text):
    assert text in str(to_orbax(CheckpointOptions(device, orbax=OrbaxSettings(read_once_per_job=once))))


def test_explanation_shows_sizes_that_were_made_smaller():
    policy = MaxShardSizePolicy(1 << 20)
    assert "smaller than the option" in str(to_orbax(CheckpointOptions(experimental_sharding_callback=policy)))
    assert "smaller than the option" not in str(to_orbax(CheckpointOptions()))


def test_explanation_of_a_synchronous_save_has_no_async_options():
    text = str(to_orbax(CheckpointOptions()))
    assert "  -> ocp.Checkpointer\n" in text
    assert "ocp.AsyncOptions(" not in text


# -- the checkpointer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("device", [None, "CPU:0"])
def test_checkpointer_saves_what_orbax_restores(tmp_path, asynchronous, device):
    translation = to_orbax(CheckpointOptions(device, enable_async=asynchronous))
    tree = {"weights": np.arange(12.0, dtype=np.float32).reshape(3, 4), "step": np.int32(7)}
    path = os.path.join(tmp_path, "checkpoint")
    with translation.checkpointer() as checkpointer:
        assert isinstance(checkpointer, ocp.Checkpointer)
        assert isinstance(checkpointer, ocp.AsyncCheckpointer) is asynchronous
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as plain:
        restored = plain.restore(path)
    np.testing.assert_array_equal(restored["weights"], tree["weights"])
    assert restored["step"] == 7


@pytest.mark.slow
def test_translating_imports_no_orbax():
    program = (
        "import sys\n"
        "from jaxckpt.options import CheckpointOptions\n"
        "from jaxckpt.translate import to_orbax\n"
        "to_orbax(CheckpointOptions('CPU:0', enable_async=True))\n"
        "assert not {'orbax', 'tensorstore', 'flax', 'optax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
