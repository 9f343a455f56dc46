"""Plain Orbax and jaxckpt read each other's checkpoints in a bucket of Google Cloud Storage, which is all that Orbax writes.

Orbax runs in a process of its own: it caches listings."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from bucket_server import Bucket

import jaxckpt
from jaxckpt import storage
from jaxckpt.storage import stores

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None,
    reason="plain Orbax reaches buckets only with gcsfs, which is not installed",
)

READER = """
    import json, sys
    import orbax.checkpoint as ocp
    from orbax.checkpoint import v1

    def outcome(call):
        try:
            found = call()
        except Exception as error:
            return type(error).__name__
        return {"value": [float(element) for element in found["value"]], "text": found["text"]}

    print(json.dumps({path: {
        "v0": outcome(lambda: ocp.PyTreeCheckpointer().restore(path)),
        "v1": outcome(lambda: v1.load(path)),
        "finalized": ocp.utils.is_checkpoint_finalized(path),
        "is": v1.is_orbax_checkpoint(path),
    } for path in sys.argv[1:]}))
"""

WRITER = """
    import sys
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    from orbax.checkpoint import v1

    root = sys.argv[1]
    tree = {"value": jnp.arange(4.0), "nested": [1, {"text": "text"}]}
    ocp.PyTreeCheckpointer().save(root + "/v0", tree)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=False)).save(root + "/files", tree)
    v1.save(root + "/v1", tree)
    with ocp.CheckpointManager(root + "/manager") as manager:
        manager.save(3, args=ocp.args.PyTreeSave(tree))
"""


def run(program: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *arguments],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_orbax_reads_ours(gs_bucket: Bucket) -> None:
    saved = jaxckpt.Checkpoint(value=np.arange(3.0), text="text")
    whole = saved.save(gs_bucket.path("run/ckpt"))
    replaced = gs_bucket.path("best")
    saved.write(replaced)
    saved.write(replaced)
    half = saved.write(gs_bucket.path("half"))
    stores.remove(f"{half}/commit_success.txt")
    stores.write(f"{half}/_JAXCKPT_OWNER", b"{}")
    found = json.loads(run(READER, whole, replaced, half).splitlines()[-1])
    content = {"value": [0.0, 1.0, 2.0], "text": "text"}
    expected = {"v0": content, "v1": content, "finalized": True, "is": True}
    assert found[whole] == expected
    assert found[replaced] == expected
    assert found[half] == {"v0": "ValueError", "v1": "InvalidLayoutError", "finalized": False, "is": False}


def test_ours_reads_orbax(gs_bucket: Bucket) -> None:
    run(WRITER, gs_bucket.path("orbax"))
    for name in ("v0", "files", "v1", "manager/3", "manager/3/default"):
        path = gs_bucket.path(f"orbax/{name}")
        assert storage.is_checkpoint(path)
        tree = jaxckpt.load_checkpoint(path).tree()
        np.testing.assert_array_equal(tree["value"], np.arange(4.0))
        assert tree["nested"] == [1, {"text": "text"}]
        assert storage.verify(path).ok
    stores.remove(gs_bucket.path("orbax/v0/commit_success.txt"))
    with pytest.raises(jaxckpt.CheckpointError, match="not a committed"):
        jaxckpt.load_checkpoint(gs_bucket.path("orbax/v0"))
