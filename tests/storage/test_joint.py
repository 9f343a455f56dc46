"""What is written without Orbax's checkpointer says the same as what Orbax's checkpointer writes."""

import json
from pathlib import Path

import numpy as np

from jaxckpt import storage
from jaxckpt.saving import snapshot
from jaxckpt.storage.joint import write_jointly
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree import flatten


def test_the_description_is_that_of_orbax(tmp_path: Path) -> None:
    taken = snapshot.take([flatten.flatten("value", {"a": np.arange(3), "s": "text"})], copy=False)
    settings = WriteSettings()

    def jointly(new: str, everything: snapshot.Snapshot, settings: WriteSettings) -> None:
        write_jointly(new, everything, settings, 0)

    storage.save(storage.CheckpointPath(str(tmp_path), "ours"), taken, settings, replace=False, write=jointly)
    storage.save(storage.CheckpointPath(str(tmp_path), "orbax"), taken, settings, replace=False)
    documents = [json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text()) for name in ("ours", "orbax")]
    for document in documents:
        assert document.pop("init_timestamp_nsecs") <= document.pop("commit_timestamp_nsecs")
    assert documents[0] == documents[1]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ours", "orbax")]
    # The mark of a commit, which the oldest Orbax makes in buckets only, and understands everywhere.
    assert set(names[1]) <= set(names[0]) <= {*names[1], "commit_success.txt"}
