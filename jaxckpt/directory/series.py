"""A series: the numbered checkpoints of one name in one directory. Combines the state file, the disk and the rules of retention."""

import copy
import logging
import os
import time
from collections.abc import Iterable, Iterator

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt.directory import foreign_runs, on_disk, policies, retention, state_file
from jaxckpt.directory.keeping import Keeping, View
from jaxckpt.directory.lock import update
from jaxckpt.directory.policies import CheckpointInfo, PreservationPolicy
from jaxckpt.directory.saved_infos import SavedInfos
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.storage import CheckpointPath, stores

_logger = logging.getLogger("jaxckpt")


class CheckpointSeries:
    """Lists, registers and deletes the checkpoints ``<name>-<number>`` of a manager. Reads the directory anew at each call.

    Every method takes the directory `root` as an absolute path, so that an operation in the background is not affected when the
    program changes its working directory. Names are relative to that directory.
    """

    def __init__(
        self,
        name: str,
        max_to_keep: int | None,
        every_n_hours: float | None,
        policy: PreservationPolicy | None = None,
    ) -> None:
        """Makes the series, without looking at the directory yet.

        Args:
          name: the part of the checkpoints' names before the number.
          max_to_keep: how many checkpoints stay listed; None for all.
          every_n_hours: a checkpoint that is due for deletion is preserved instead if it was saved at least this many hours after the
            last preserved one; None to preserve none.
          policy: what it preserves stays listed too. If `max_to_keep` is None, it alone decides.
        """
        self._name = name
        self._keeping = Keeping(max_to_keep, every_n_hours, policy)
        self._infos = SavedInfos()
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

    def _foreign(self, root: str, view: View) -> foreign_runs.ForeignRun | None:
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

    def retain(self, root: str, new: str) -> None:
        """Deletes or preserves the checkpoints that neither `max_to_keep` nor the policy keeps; see `Keeping.retain`.

        Args:
          root: the directory, as an absolute path.
          new: the checkpoint that was just saved, which is never deleted.

        Raises:
          OSError: the state file cannot be read or written.
        """
        self._keeping.retain(root, new, lambda: self._load(root), lambda: self.infos(root))

    def infos(self, root: str) -> dict[str, CheckpointInfo]:
        """Returns what policies are told about the listed checkpoints, by name, oldest first. Damaged ones are left out.

        Args:
          root: the directory, as an absolute path.

        Raises:
          OSError: the directory cannot be read.
        """
        view = self._load(root)
        return self._infos.of(root, {name: view.records.entries[name] for name in view.listed})

    def numbers(self, root: str) -> list[int]:
        """Returns the numbers of all committed checkpoints of the series on disk, ascending. Raises OSError."""
        return storage.list_numbered(os.path.join(root, self._name))

    def best(self, root: str, metric: str, sign: int) -> str | None:
        """Returns the name of the checkpoint with the best value of a metric; None if no checkpoint has it.

        Listed and preserved checkpoints count. NaN never wins, and the newest of several best ones does.

        Args:
          root: the directory, as an absolute path.
          metric: name of the metric.
          sign: 1 if the largest value is the best, -1 if the smallest is.

        Raises:
          OSError: the directory cannot be read.
        """
        records = self._load(root).records
        names = self._own(self._newest_first(root, records))
        infos = self._infos.of(root, {name: records.entries.get(name, 0.0) for name in names})
        return policies.best(infos, metric, sign)

    def _load(self, root: str, new: str | None = None) -> View:
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
            records.kept.difference_update(retention.newest(own, self._keeping.least))
        # The disk is read after the file, so that a checkpoint registered in between is found on disk.
        committed = [name for number in self.numbers(root) if (name := numbering.name_of(self._name, number)) != new]
        gone = on_disk.missing(root, records)
        on_disk.bound(root, records, gone, new)
        adopted = retention.adopt(
            records,
            committed,
            self._keeping.least,
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
        return View(records, [name for name in records.entries if name in present], unregistered)

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if numbering.prefix_of(name) == self._name]
