"""The checkpoints of one name in one directory: state file, disk and the rules of retention, brought together."""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator

from jaxckpt import retention, state_file
from jaxckpt.directory_lock import update
from jaxckpt.state_text import Records, UnreadableStateError
from jaxckpt.storage import CheckpointPath, files

_logger = logging.getLogger("jaxckpt")


class ManagedDirectory:
    """Lists, registers and deletes the checkpoints ``<name>-<number>``. It remembers nothing that stands on disk.

    Every method is given the directory as an absolute path, so that an operation that runs in the background stays in
    its place when the program changes its working directory. Methods work with names, relative to that directory.
    """

    def __init__(self, name: str, max_to_keep: int | None, every_n_hours: float | None) -> None:
        """Args: as of `CheckpointManager`."""
        self._name = name
        self._max_to_keep = max_to_keep
        self._every_n_hours = every_n_hours
        # Where periods start as long as no state file says when they do. As for TensorFlow, 0.0 preserves the first one
        # that is due.
        self._started = 0.0

    def start(self, root: str) -> float:
        """Removes the leftovers of killed processes and registers what they did not.

        Returns:
          How many seconds the clock is behind what the state file shows, at least; 0.0 if it is not.

        Raises:
          OSError: with errno; the directory cannot be read or changed.
        """
        from jaxckpt import storage

        now = time.time()
        if not files.exists(root):
            self._started = now - 1.0  # As TensorFlow: a manager that is made again at once sees no clock set back.
            return 0.0
        storage.sweep(root, self._name)
        storage.sweep(root, state_file.FILE)

        def adopt() -> float:
            records, managed = self._load(root)
            if records.latest is None:
                self._started = now - 1.0
                return 0.0
            behind = retention.set_clock_back(records, managed, now)
            if not _says(root, records):
                state_file.write_state(root, records)
            return behind

        return update(root, adopt)

    def listed(self, root: str) -> list[str]:
        """Returns the names of the managed checkpoints, oldest first. Raises OSError if `root` cannot be read."""
        return self._load(root)[1]

    def newest_first(self, root: str) -> Iterator[str]:
        """Yields the names of what could be restored, best first; not all of them need be sound checkpoints.

        These are the listed ones, then the preserved ones. Where there is none of this name, it is what the state file
        calls the latest.

        Raises:
          OSError: the directory cannot be read.
        """
        records, _ = self._load(root)
        listed = self._own(records.entries)
        yield from reversed(listed)
        preserved = self._own(records.kept - records.entries.keys())
        yield from sorted(preserved, key=lambda name: state_file.commit_time(os.path.join(root, name)), reverse=True)
        if not listed and not preserved and records.latest is not None:
            yield records.latest

    def register(self, path: CheckpointPath) -> None:
        """Makes a committed checkpoint the latest. Raises OSError if the state file cannot be written."""
        root, name = path.directory, path.name

        def change() -> None:
            records, managed = self._load(root, new=name)
            now = time.time()
            if behind := retention.set_clock_back(records, managed, now):
                _logger.warning(
                    "The clock was set back, by %g s at least; what %s holds now is kept for ever.", behind, root
                )
            records.add(name, now)
            state_file.write_state(root, records)

        update(root, change)

    def retain(self, root: str) -> None:
        """Deletes or preserves what `max_to_keep` newer ones have pushed out.

        What cannot be deleted stays listed, so that the next call tries again; a warning is logged.

        Raises:
          OSError: the state file cannot be written.
        """
        from jaxckpt import storage

        if self._max_to_keep is None:
            return

        def evict() -> list[str]:
            records, managed = self._load(root)
            doomed = retention.evict(records, managed, self._max_to_keep, self._every_n_hours)
            if not _says(root, records):
                state_file.write_state(root, records)
            return doomed

        doomed = update(root, evict)
        if not doomed:
            return
        for name in doomed:  # Not under the lock: removing many files can take long.
            try:
                storage.delete(CheckpointPath(root, name))
            except (OSError, ValueError) as error:
                _logger.warning("Could not delete the old checkpoint %s: %s", os.path.join(root, name), error)
        update(root, lambda: state_file.write_state(root, self._load(root)[0]))

    def _load(self, root: str, new: str | None = None) -> tuple[Records, list[str]]:
        """Returns the state file, put right by what is on disk, and the names of the managed checkpoints, oldest first.

        Args:
          root: the directory.
          new: a checkpoint to overlook: it was committed just now, and is about to be registered.
        """
        from jaxckpt import storage

        try:
            records = state_file.read_state(root) or Records()
        except UnreadableStateError as error:
            records = state_file.rebuilt(root, error)
            own = [name for name in self._own(records.entries) if name != new]
            records.kept.difference_update(retention.newest(own, self._max_to_keep))
        # The disk is looked at after the file: what was registered in between is found on disk.
        on_disk = [f"{self._name}-{number}" for number in storage.list_numbered(os.path.join(root, self._name))]
        on_disk = [name for name in on_disk if name != new]
        state_file.drop_missing(root, records)
        records.entries = {name: at for name, at in records.entries.items() if name != new}
        retention.adopt(
            records, on_disk, self._max_to_keep, lambda name: state_file.commit_time(os.path.join(root, name))
        )
        records.last_preserved = records.last_preserved or self._started
        present = set(on_disk)
        return records, [name for name in records.entries if name in present]

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if re.fullmatch(re.escape(self._name) + r"-(0|[1-9][0-9]*)", name)]


def _says(root: str, records: Records) -> bool:
    """Whether the state file says exactly this."""
    try:
        there = state_file.read_state(root)
    except UnreadableStateError:
        return False
    return there == records and (there is None or list(there.entries) == list(records.entries))
