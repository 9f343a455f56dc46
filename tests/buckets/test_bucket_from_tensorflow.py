"""Checkpoints of TensorFlow and safetensors files in a bucket restore as on a disk."""

from pathlib import Path

import numpy as np
import pytest
from bucket_server import Bucket
from from_tensorflow import written
from safetensors.numpy import save_file

import jaxckpt
from jaxckpt.storage import stores


def test_a_checkpoint_of_tensorflow(bucket: Bucket) -> None:
    golden = written.golden("tree")
    for path in golden.prefix.parent.iterdir():
        stores.write(bucket.path(f"run/{path.name}"), path.read_bytes())
    prefix = jaxckpt.latest_checkpoint(bucket.path("run"))
    assert prefix == bucket.path("run/ckpt-3")
    reader = jaxckpt.load_checkpoint(bucket.path("run"))
    for key, expected in golden.values.items():
        if "~" not in key:
            assert reader.get_tensor(key).tobytes() == expected.tobytes()
    assert jaxckpt.verify(prefix).ok
    checkpoint = jaxckpt.Checkpoint(step=0, model={"layers": {"0": {"kernel": np.zeros((4, 8), np.float32)}}})
    checkpoint.restore(prefix).assert_existing_objects_matched()
    assert (checkpoint.step, checkpoint.save_counter) == (7, 3)
    with pytest.raises(jaxckpt.CheckpointError, match="holds TensorFlow checkpoints"):
        checkpoint.save(bucket.path("run/ckpt"))
    shard = bucket.path("run/ckpt-3.data-00000-of-00001")
    stores.write(shard, stores.read(shard)[:100])
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        for key in reader.keys():
            reader.get_tensor(key)
    stores.remove(shard)
    with pytest.raises(jaxckpt.CorruptCheckpointError):
        jaxckpt.Checkpoint(step=0).restore(prefix)


def test_a_safetensors_file(bucket: Bucket, tmp_path: Path) -> None:
    save_file({"a.b": np.arange(5), "c": np.zeros((0, 2))}, tmp_path / "x.safetensors")
    stores.write(bucket.path("x.safetensors"), (tmp_path / "x.safetensors").read_bytes())
    checkpoint = jaxckpt.Checkpoint(a={"b": np.zeros(5, np.int64)})
    checkpoint.read(bucket.path("x.safetensors")).expect_partial()
    np.testing.assert_array_equal(checkpoint.a["b"], np.arange(5))
