"""What must be true of a directory of checkpoints after a call, whatever interrupted it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jaxckpt
from jaxckpt.storage import owner

STATE_FILE = "checkpoint"


def values(version: int) -> dict[str, Any]:
    """Values whose every leaf tells the version."""
    return {"a": np.full(3_000, float(version)), "b": [np.full(7, version), {"c": float(version)}], "step": version}


def version_of(checkpoint: jaxckpt.Checkpoint) -> set[float]:
    """The versions that a Checkpoint's leaves tell: one, if it is whole."""
    found = {float(each) for array in (checkpoint.a, checkpoint.b[0]) for each in np.unique(array)}
    return found | {float(checkpoint.b[1]["c"]), float(checkpoint.step)}


def stored_version(path: str | os.PathLike[str]) -> int:
    """Restores a checkpoint and returns its version. Raises if it is damaged or torn."""
    reader = jaxckpt.Checkpoint(**values(-1))
    reader.restore(path).assert_consumed()
    found = version_of(reader)
    if len(found) != 1:
        raise AssertionError(f"{path} holds several versions: {sorted(found)}")
    return int(found.pop())


class Model:
    """What is known of the checkpoints of one directory.

    Attributes:
      directory: where they are.
      versions: by name, every checkpoint that was ever there.
      newest: the version of the last save that had returned.
      forgotten: the names of those that were removed on purpose.
    """

    def __init__(self, directory: Path, stored: Callable[[str], int] = stored_version) -> None:
        """Knows of nothing yet.

        Args:
          directory: where the checkpoints are.
          stored: restores a checkpoint and returns its version.
        """
        self.directory = directory
        self._stored = stored
        self.versions: dict[str, int] = {}
        self.newest = -1
        self.forgotten: set[str] = set()

    def problems(
        self,
        entries: list[str],
        version: int,
        returned: str | None,
        *,
        registers: bool,
        kept: int | None,
        most: int | None,
        clean: bool,
    ) -> list[str]:
        """Returns what is wrong after a save is over.

        Args:
          entries: what is in the directory.
          version: that the save had.
          returned: the path that it returned, if it did and its `sync` raised nothing.
          registers: whether what is here is registered; otherwise a state file is a problem.
          kept: how many a manager keeps; None if nothing is deleted.
          most: how many there may be where interrupts kept a manager from deleting; None if that is not known.
          clean: nothing was interrupted and nothing failed.
        """
        found = []
        committed = {}
        for name in entries:
            path = self.directory / name
            if owner.is_temporary(name) or name == STATE_FILE:
                continue
            if not jaxckpt.storage.is_checkpoint(str(path)):
                found.append(f"{name} is neither a checkpoint nor a leftover")
                continue
            try:
                committed[name] = self._version(name)
            except Exception as error:
                found.append(f"{name} does not restore: {type(error).__name__}: {error}")
        for name, stored in committed.items():
            known = self.versions.get(name)
            if registers and (name in self.forgotten or known not in (None, stored)):
                found.append(f"{name} is a number that was given before, for version {known}")
            if known != stored and stored != version:
                found.append(f"{name} holds version {stored}, which was not saved now ({version}), and is new")
        gone = self.versions.keys() - self.forgotten - committed.keys()
        if kept is None and gone:
            found.append(f"{sorted(gone)} disappeared")
        if registers:
            self.forgotten |= gone
        self.versions |= committed
        own = "" if returned is None else os.path.basename(returned)
        left = [name for name in entries if owner.is_temporary(name) and owner.final_name(name) == own]
        if clean and left:
            found.append(f"after a call that nothing disturbed there are leftovers: {left}")
        limit = kept if clean else most
        if kept is not None and limit is not None and len(committed) > limit:
            found.append(f"{len(committed)} are kept instead of {kept}: {sorted(committed)}")
        if returned is not None:
            name = os.path.basename(returned)
            if committed.get(name) != version:
                found.append(f"{name} was returned for version {version}, and {committed.get(name)} is there")
            self.newest = version
        return found + (self._registered(committed) if registers else self._unregistered(entries))

    def _version(self, name: str) -> int:
        path = str(self.directory / name)
        if name not in self.versions:
            report = jaxckpt.verify(path)
            if not report.ok:
                raise AssertionError(str(report))
        return self._stored(path)

    def _registered(self, committed: dict[str, int]) -> list[str]:
        found = []
        state = jaxckpt.get_checkpoint_state(self.directory)
        if state is None:
            if (self.directory / STATE_FILE).exists() and not (self.directory / STATE_FILE).is_dir():
                found.append("the state file cannot be read")
            listed = []
        else:
            listed = [os.path.relpath(path, self.directory) for path in state.all_model_checkpoint_paths]
            latest = os.path.relpath(state.model_checkpoint_path, self.directory)
            if latest != listed[-1]:
                found.append(f"the latest, {latest}, is not the last that is listed")
            if committed.get(latest, -1) < self.newest:
                found.append(f"the latest is {latest}, older than a save that had returned (version {self.newest})")
            if jaxckpt.latest_checkpoint(self.directory) != state.model_checkpoint_path:
                found.append("latest_checkpoint is not what the state file says")
        if sorted(listed) != sorted(set(listed)):
            found.append(f"the state file names some twice: {listed}")
        if missing := sorted(set(listed) - committed.keys()):
            found.append(f"the state file names what is not there: {missing}")
        if unnamed := sorted(committed.keys() - set(listed)):
            found.append(f"the state file does not name {unnamed}")
        if self.newest >= 0 and not listed:
            found.append("a save had returned, and there is no latest")
        return found

    def _unregistered(self, entries: list[str]) -> list[str]:
        return ["a state file was written"] if STATE_FILE in entries else []

    def forget(self) -> None:
        """Says that everything was removed on purpose; its numbers must not come back."""
        self.forgotten |= self.versions.keys()
        self.newest = -1
