"""Leaves ↔ an Orbax directory. The only place that imports Orbax or TensorStore, and those only when they are first needed."""

from jaxckpt.storage.commit.by_rename import check, delete, save
from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.committed import is_checkpoint, list_numbered
from jaxckpt.storage.commit.leftovers import leftovers, sweep
from jaxckpt.storage.commit.temporary import Leftover
from jaxckpt.storage.joint import check_part, write_jointly, write_part
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.storage.verify import Problem, VerifyReport, verify

__all__ = [
    "CheckpointPath",
    "Leftover",
    "Problem",
    "StoredCheckpoint",
    "VerifyReport",
    "check",
    "check_part",
    "delete",
    "is_checkpoint",
    "leftovers",
    "list_numbered",
    "save",
    "sweep",
    "verify",
    "write_jointly",
    "write_part",
]
