"""The state file in a bucket: no lock, and yet no update is lost."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from bucket_server import Bucket, Request

import jaxckpt
from jaxckpt.storage import stores

ROOT = Path(__file__).parents[2]
WRITER = """
    import sys
    import numpy as np
    import jaxckpt

    checkpoint = jaxckpt.Checkpoint(value=np.arange(3.0))
    for _ in range(3):
        checkpoint.save(sys.argv[1])
"""


def listed(directory: str) -> set[str]:
    state = jaxckpt.get_checkpoint_state(directory)
    assert state is not None
    return {os.path.basename(path) for path in state.all_model_checkpoint_paths}


def test_written_by_another_process_in_between(bucket: Bucket) -> None:
    saved = jaxckpt.Checkpoint(value=np.arange(3.0))
    saved.write(bucket.path("run/other-1"))
    saved.save(bucket.path("run/ckpt"))
    meanwhile = b'model_checkpoint_path: "other-1"\nall_model_checkpoint_paths: "other-1"\n'

    def rule(request: Request) -> None:
        if request == Request("write", "run/checkpoint"):
            bucket.rule(None)
            stores.write(bucket.path("run/checkpoint"), meanwhile)

    bucket.rule(rule)
    saved.save(bucket.path("run/ckpt"))
    assert listed(bucket.path("run")) == {"other-1", "ckpt-2"}
    assert jaxckpt.latest_checkpoint(bucket.path("run")) == bucket.path("run/ckpt-2")


def test_made_by_another_process_in_between(bucket: Bucket) -> None:
    saved = jaxckpt.Checkpoint(value=np.arange(3.0))
    saved.write(bucket.path("run/other-1"))

    def rule(request: Request) -> None:
        if request == Request("write", "run/checkpoint"):
            bucket.rule(None)
            stores.write(bucket.path("run/checkpoint"), b'model_checkpoint_path: "other-1"\n')

    bucket.rule(rule)
    saved.save(bucket.path("run/ckpt"))
    assert listed(bucket.path("run")) == {"other-1", "ckpt-1"}


def test_several_processes(bucket: Bucket) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), bucket.path(f"run/{name}")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.wait(30)
    assert listed(bucket.path("run")) == {f"{name}-{number}" for name in "ab" for number in (1, 2, 3)}


def test_addresses_of_other_tools(bucket: Bucket) -> None:
    path = jaxckpt.Checkpoint(value=np.arange(3.0)).write(bucket.path("elsewhere/best"))
    stores.write(bucket.path("run/checkpoint"), f'model_checkpoint_path: "{path}"\n'.encode())
    assert jaxckpt.latest_checkpoint(bucket.path("run")) == path
    stores.write(bucket.path("elsewhere/checkpoint"), f'model_checkpoint_path: "{path}"\n'.encode())
    assert jaxckpt.latest_checkpoint(bucket.path("elsewhere")) == path


def test_one_written_by_hand_is_obeyed(bucket: Bucket) -> None:
    for value in range(3):
        jaxckpt.Checkpoint(value=np.full(3, float(value))).save(bucket.path("run/ckpt"))
    text = b'model_checkpoint_path: "ckpt-2"\n'
    stores.write(bucket.path("run/checkpoint"), text)
    jaxckpt.Checkpoint(value=np.full(3, 9.0)).write(bucket.path("run/ckpt-7"))
    manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=np.zeros(3)), bucket.path("run"), 1)
    assert manager.restore_or_initialize() == bucket.path("run/ckpt-2") == manager.latest_checkpoint
    assert manager.checkpoint.value[0] == 1.0
    assert stores.read(bucket.path("run/checkpoint")) == text
    assert manager.save() == bucket.path("run/ckpt-8")
    assert {key.split("/")[1] for key in bucket.keys} == {"checkpoint", "ckpt-1", "ckpt-3", "ckpt-7", "ckpt-8"}


def test_what_a_crash_left_is_found(bucket: Bucket) -> None:
    jaxckpt.Checkpoint(value=np.zeros(3)).save(bucket.path("run/ckpt"))
    jaxckpt.Checkpoint(value=np.full(3, 9.0)).write(bucket.path("run/ckpt-2"))
    manager = jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=np.zeros(3)), bucket.path("run"), 1)
    assert manager.restore_or_initialize() == bucket.path("run/ckpt-2") == jaxckpt.latest_checkpoint(bucket.path("run"))


@pytest.mark.parametrize("state", [True, False])
def test_that_of_tensorflow_is_left_alone(state: bool, bucket: Bucket) -> None:
    for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001", *(["checkpoint"] if state else [])):
        stores.write(bucket.path(f"run/{name}"), b'model_checkpoint_path: "ckpt-1"\n')
    before = {key: stores.read(bucket.path(key)) for key in bucket.keys}
    with pytest.warns(UserWarning, match="holds TensorFlow checkpoints"):
        manager = jaxckpt.CheckpointManager(
            jaxckpt.Checkpoint(value=np.zeros(3)), bucket.path("run"), 1, checkpoint_name="mine", init_fn=pytest.fail
        )
    for call in (
        manager.restore_or_initialize,
        manager.save,
        lambda: manager.checkpoint.write(bucket.path("run/ckpt-1")),
    ):
        with pytest.raises(jaxckpt.CheckpointError, match="TensorFlow checkpoints"):
            call()
    assert {key: stores.read(bucket.path(key)) for key in bucket.keys} == before


def test_a_run_of_orbax_is_recognised(bucket: Bucket) -> None:
    stores.write(bucket.path("run/10/default/_METADATA"), b"{}")
    with pytest.warns(UserWarning, match=rf"holds Orbax checkpoints.*checkpoint.restore\('{bucket}/run/10/default'\)"):
        jaxckpt.CheckpointManager(jaxckpt.Checkpoint(value=np.zeros(3)), bucket.path("run"), 1)
