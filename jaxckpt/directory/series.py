"""A series: the numbered checkpoints of one name in one directory. Combines the state file, the disk and the rules of retention."""

import copy
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.directory import foreign_runs, on_disk, retention, state_file
from jaxckpt.directory.lock import update
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.storage import CheckpointPath, stores

_logger = logging.getLogger("jaxckpt")


class CheckpointSeries:
    """Lists, registers and deletes the checkpoints ``<name>-<number>`` of a manager. Reads the directory anew at each call.

    Every method takes the directory `root` as an absolute path, so that an operation in the background is not affected when the
    program changes its working directory. Names are relative to that directory.
    """

    def __init__(self, name: str, max_to_keep: int | None, every_n_hours: float | None) -> None:
        """Makes the series, without looking at the directory yet.

        Args:
          name: the part of the checkpoints' names before the number.
          max_to_keep: how many checkpoints stay listed; None for all.
          every_n_hours: a checkpoint that is due for deletion is preserved instead if it was saved at least this many hours after the
            last preserved one; None to preserve none.
        """
        self._name = name
        self._max_to_keep = max_to_keep
        self._every_n_hours = every_n_hours
        # When the first period of `every_n_hours` starts, if the state file does not tell; None until the directory has been read.
        self._started: float | None = None
        self._created = time.time()

    def start(self, root: str) -> tuple[float, foreign_runs.ForeignRun | None]:
        """Removes leftovers (temporary directories of killed processes) and registers checkpoints that a crash left unregistered.

        Args:
          root: the directory, as an absolute path.

        Returns:
          How many seconds, at least, the clock is behind the times in the state file (if it is not 0.0, checkpoints were not
          registered); and the checkpoints of another program, if there is not one of this manager.

        Raises:
          OSError: the directory cannot be read or changed; has errno.
        """
        now = self._created = time.time()
        if not stores.exists(root):
            # As in TensorFlow, the start lies in the past, so that a manager that is made again at once does not find the clock set back.
            self._started = now - 1.0
            return 0.0, None
        storage.sweep(root, self._name)
        storage.sweep(root, state_file.FILE)

        def adopt() -> tuple[float, foreign_runs.ForeignRun | None]:
            view = self._load(root)
            # If the clock is behind, this may be another machine that only reads here, so the file is not changed.
            behind = retention.behind(view.records, now)
            if view.unregistered is not None and not behind and not view.records.tensorflow:
                state_file.write(root, view.unregistered)
            return behind, self._foreign(root, view)

        return update(root, adopt)

    def foreign(self, root: str) -> foreign_runs.ForeignRun | None:
        """Returns the checkpoints of another program if there is not one of this manager. Raises OSError if `root` cannot be read."""
        return self._foreign(root, self._load(root))

    def _foreign(self, root: str, view: "_View") -> foreign_runs.ForeignRun | None:
        if next(self._newest_first(root, view.records), None) is not None:
            return None
        try:
            return foreign_runs.find(root, stores.names(root))
        except FileNotFoundError:
            return None

    def listed(self, root: str) -> list[str]:
        """Returns the names of the series' listed checkpoints, oldest first. Raises OSError if `root` cannot be read."""
        return self._load(root).listed

    def newest_first(self, root: str) -> Iterator[str]:
        """Yields the names of the candidates for a restore, best first. They may be damaged.

        The listed checkpoints come first, then the preserved ones. If there is not one of this series, the one that the state
        file calls the latest is yielded.

        Args:
          root: the directory, as an absolute path.

        Raises:
          OSError: the directory cannot be read.
        """
        yield from self._newest_first(root, self._load(root).records)

    def _newest_first(self, root: str, records: Records) -> Iterator[str]:
        listed = self._own(records.entries)
        yield from reversed(listed)
        preserved = self._own(records.kept - records.entries.keys())
        yield from sorted(preserved, key=lambda name: on_disk.commit_time(os.path.join(root, name)), reverse=True)
        if not listed and not preserved and records.latest is not None:
            yield records.latest

    def register(self, path: CheckpointPath) -> None:
        """Makes a committed checkpoint the latest.

        Args:
          path: the checkpoint.

        Raises:
          OSError: the state file cannot be written.
        """
        root, name = path.directory, path.name

        def change() -> None:
            view = self._load(root, new=name)
            records, now = view.records, time.time()
            if behind := retention.set_clock_back(records, view.listed, now):
                _logger.warning(
                    "The clock was set back by at least %g s; the checkpoints now in %s are kept for ever.",
                    behind,
                    root,
                )
            records.add(name, now)
            state_file.write(root, records)

        update(root, change)

    def retain(self, root: str) -> None:
        """Deletes or preserves the checkpoints that have `max_to_keep` newer ones.

        A checkpoint that cannot be deleted stays listed, so that the next call tries again. A warning is logged.

        Args:
          root: the directory, as an absolute path.

        Raises:
          OSError: the state file cannot be written.
        """
        # An interrupt must not come between a deletion and the update of the state file.
        if self._max_to_keep is not None:
            uninterrupted(lambda: self._retain(root))

    def _retain(self, root: str) -> None:
        def evict() -> dict[str, object | None]:
            view = self._load(root)
            records = view.records
            doomed = retention.evict(records, view.listed, self._max_to_keep, self._every_n_hours)
            if not _says(root, records):
                state_file.write(root, records)
            return {name: storage.identity(stores.join(root, name)) for name in doomed}

        doomed = update(root, evict)
        if not doomed:
            return
        # The lock is not held here, because removing many files can take long. Another checkpoint may be saved under the same name
        # meanwhile, so each is deleted only if it still has the identity found above.
        for name, identity in doomed.items():
            try:
                storage.delete(CheckpointPath(root, name), identity)
            except (OSError, ValueError) as error:
                _logger.warning("Could not delete the old checkpoint %s: %s", os.path.join(root, name), error)
        update(root, lambda: state_file.write(root, self._load(root).records))

    def _load(self, root: str, new: str | None = None) -> "_View":
        """Reads the state file, and corrects its records by the checkpoints on disk.

        Args:
          root: the directory, as an absolute path.
          new: a checkpoint to ignore, because it was just committed and is about to be registered.
        """
        unreadable = False
        try:
            records = state_file.read(root) or Records()
        except UnreadableStateError as error:
            unreadable = True
            records = on_disk.rebuilt(root, error)
            own = [name for name in self._own(records.entries) if name != new]
            records.kept.difference_update(retention.newest(own, self._max_to_keep))
        # The disk is read after the file, so that a checkpoint registered in between is found on disk.
        numbers = storage.list_numbered(os.path.join(root, self._name))
        committed = [name for number in numbers if (name := numbering.name_of(self._name, number)) != new]
        gone = on_disk.missing(root, records)
        on_disk.bound(root, records, gone, new)
        adopted = retention.adopt(
            records,
            committed,
            self._max_to_keep,
            lambda name: 0.0 if name == new else on_disk.commit_time(os.path.join(root, name)),
            own=self._own(records.entries),
            gone=gone - set(records.tensorflow),
            after=records.border(self._name),
        )
        unregistered = copy.deepcopy(records) if adopted or unreadable else None
        records.forget(gone | {new or ""})
        if self._started is None:
            # As in TensorFlow: if there are checkpoints but no time of the last preservation, the first one that is due is preserved.
            self._started = self._created - 1.0 if records.latest is None else 0.0
        records.last_preserved = records.last_preserved or self._started
        present = set(committed)
        return _View(records, [name for name in records.entries if name in present], unregistered)

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if numbering.prefix_of(name) == self._name]


@dataclass(frozen=True)
class _View:
    """The content of a directory at one moment.

    Attributes:
      records: the records of the state file, corrected by the checkpoints on disk.
      listed: the manager's listed names, oldest first.
      unregistered: the records to write if a crash left a checkpoint that the state file does not list; otherwise None.
    """

    records: Records
    listed: list[str]
    unregistered: Records | None


def _says(root: str, records: Records) -> bool:
    """Whether the state file has exactly these records."""
    try:
        there = state_file.read(root)
    except UnreadableStateError:
        return False
    return there == records and (there is None or list(there.entries) == list(records.entries))
