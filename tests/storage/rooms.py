"""The stores and committers that the conformance suites are about. Nothing here imports pytest: it would be slow, in every process."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxckpt.storage import stores
from jaxckpt.storage.commit.by_marker import MarkerCommitter
from jaxckpt.storage.commit.by_rename import RenameCommitter
from jaxckpt.storage.commit.committer import Committer, Pending

if TYPE_CHECKING:
    import pytest

# How to make a new directory of each store. One that is added here is tested by the suite of stores.
PLACES: dict[str, "Callable[[pytest.FixtureRequest], str]"] = {
    "disk": lambda request: f"{request.getfixturevalue('tmp_path')}/run",
    "gs": lambda request: request.getfixturevalue("gs_bucket").path("run"),
    "s3": lambda request: request.getfixturevalue("s3_bucket").path("run"),
    "seaweedfs": lambda request: request.getfixturevalue("seaweedfs_bucket").path("run"),
}
# Each committer, and the store of its checkpoints. One that is added here is tested by the suite of committers.
COMMITTERS: dict[str, tuple[Callable[[], Committer], str]] = {
    "rename-disk": (RenameCommitter, "disk"),
    "marker-gs": (MarkerCommitter, "gs"),
    "marker-s3": (MarkerCommitter, "s3"),
    "marker-seaweedfs": (MarkerCommitter, "seaweedfs"),
    "marker-disk": (MarkerCommitter, "disk"),
}


def place(name: str, request: "pytest.FixtureRequest") -> str:
    """Returns a new, empty directory.

    Args:
      name: of the store, one of `PLACES`.
      request: of the fixture or test.
    """
    directory = PLACES[name](request)
    stores.make_directory(directory)
    return directory


def fill(committer: Committer, pending: Pending, value: int) -> None:
    """Writes the files of a checkpoint.

    Args:
      committer: of the checkpoint.
      pending: the checkpoint in the making.
      value: tells this checkpoint from others.
    """
    assert stores.exists(pending.new) == committer.in_place
    stores.make_directory(f"{pending.new}/d")
    stores.write(f"{pending.new}/d/data", b"%d" % value * 1000)
    stores.write(f"{pending.new}/_METADATA", json.dumps({"tree_metadata": {}, "value": value}).encode())
