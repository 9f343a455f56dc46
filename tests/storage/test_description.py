"""What is written without Orbax's checkpointer says the same as what Orbax's checkpointer writes."""

import json
from pathlib import Path

import numpy as np

from jaxckpt.saving import snapshot
from jaxckpt.storage import orbax
from jaxckpt.storage.arrays import writer
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree import flatten


def test_the_description_is_that_of_orbax(tmp_path: Path) -> None:
    taken = snapshot.take([flatten.flatten("value", {"a": np.arange(3), "s": "text"})], copy=False)
    settings = WriteSettings()
    orbax.write_item_without_orbax(str(tmp_path / "ours"), taken, settings, writer.write)
    orbax.write_item(str(tmp_path / "orbax"), taken, settings, writer.write)
    documents = [json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text()) for name in ("ours", "orbax")]
    for document in documents:
        assert document.pop("init_timestamp_nsecs") <= document.pop("commit_timestamp_nsecs")
    assert documents[0] == documents[1]
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("ours", "orbax")]
    # Where the caller has no bucket, whose commit is the marker, it writes this too.
    assert names[0] | {"commit_success.txt"} == names[1]
