"""Writes leaves into an Orbax directory, and reads them. Only this room imports Orbax and TensorStore, when they are first needed."""

from jaxckpt.storage.commit.checkpoint_path import CheckpointPath
from jaxckpt.storage.commit.checkpoints import delete, identity, is_checkpoint, leftovers, list_numbered, sweep
from jaxckpt.storage.commit.committer import Leftover
from jaxckpt.storage.commit.limits import check
from jaxckpt.storage.commit.save import save
from jaxckpt.storage.facts import NO_FACTS, SaveFacts, read_facts
from jaxckpt.storage.joint import check_part, save_token, write_jointly, write_part
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.storage.opening import open_checkpoint
from jaxckpt.storage.orbax_runs import latest_step
from jaxckpt.storage.verify import Problem, VerifyReport, verify

__all__ = [
    "NO_FACTS",
    "CheckpointPath",
    "Leftover",
    "Problem",
    "SaveFacts",
    "StoredCheckpoint",
    "VerifyReport",
    "check",
    "check_part",
    "delete",
    "identity",
    "is_checkpoint",
    "latest_step",
    "leftovers",
    "list_numbered",
    "open_checkpoint",
    "read_facts",
    "save",
    "save_token",
    "sweep",
    "verify",
    "write_jointly",
    "write_part",
]
