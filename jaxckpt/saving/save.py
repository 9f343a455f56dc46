"""One save, from the values to the callbacks: the same steps on the caller's thread and in the background, alone and among processes.

Everything that can be refused is refused while the save is prepared, before the other processes hear of it and before any file exists.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxckpt import storage
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.directory import free_numbers, paths
from jaxckpt.directory.hooks import SaveHooks
from jaxckpt.job.agree import meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.modes import mode_of
from jaxckpt.job.session.session import Session, patience
from jaxckpt.options import CheckpointOptions, callbacks, policy_of, sharding, sharding_callback_of
from jaxckpt.saving import snapshot
from jaxckpt.storage import CheckpointPath
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree import flatten


class Save:
    """One save that has been prepared: its values are fixed, its path is reserved, and the other processes have agreed to it.

    Attributes:
      path: of the checkpoint, as the caller is told.
      number: that `save_counter` takes.
    """

    def __init__(
        self,
        action: str,
        subject: str,
        options: CheckpointOptions,
        settings: WriteSettings,
        hooks: SaveHooks,
        *,
        replace: bool,
        details: Any = (),
        registered: Callable[["Save"], None] = lambda save: None,
    ) -> None:
        """Makes a save that has yet to be prepared.

        Args:
          action, subject: the call, for messages: "save" and what it was given.
          options, settings: how; the settings are what the options have turned into.
          hooks: what else happens.
          replace: put the checkpoint in the place of what is there.
          details: names and values that the processes have to agree about, besides the options.
          registered: called on the process that does the file access as soon as the save is registered, whatever interrupts the call.
        """
        self._registered = registered
        self.path = ""
        self.number = 0
        self._settings = settings
        self._mode = mode_of(settings.io_process)
        self._sharding_callback = sharding_callback_of(options)
        self._hooks = hooks
        self._replace = replace
        self._callbacks = tuple(options.experimental_write_callbacks or ())
        self._call = call_of(action, subject, options, settings, details)
        self._taken: Snapshot | None = None
        self._place: CheckpointPath | None = None
        self._reserved = ""
        self._session = Session()

    def prepare(
        self,
        before: Callable[[], None],
        values: Callable[[], Iterable[flatten.Flat]],
        reserve: Callable[["Save"], tuple[int, str]],
    ) -> None:
        """Takes the snapshot and meets the other processes.

        Args:
          before: waits for the save before this one, and raises its error.
          values: takes the values apart.
          reserve: chooses and reserves number and path for this save; called only on the process that does the file access.

        Raises:
          BaseException: what is wrong with the values, or on another process (see `meeting.meet`). Nothing is reserved then.
        """
        try:
            contribution = functools.partial(self._contribution, before, values, reserve)
            self._session = session = meeting.meet(self._call, contribution)
            session.adopt()
        except BaseException:
            self._release()
            raise
        self.number, self.path = int(session.facts["number"]), str(session.facts["path"])

    def _contribution(
        self,
        before: Callable[[], None],
        values: Callable[[], Iterable[flatten.Flat]],
        reserve: Callable[["Save"], tuple[int, str]],
    ) -> Contribution:
        before()
        with quiet_gc():
            facts: dict[str, Any] = {}
            if jax.process_index() == self._call.center:
                self._choose(reserve)
                facts = {"number": self.number, "path": self.path}
            flats = list(values())
            plan = self._mode.plan()
            taken = snapshot.take(flats, plan, copy=self._settings.asynchronous)
            subject = paths.absolute(self._call.subject)
            storage.check(subject, taken, self._settings)
            self._taken = taken = self._mode.part(taken, subject, self._settings, self._arranged)
            leaves = [leaf for flat in flats for leaf in flat.leaves]
            return self._mode.agree_to_save(leaves, taken, plan, facts)

    def _choose(self, reserve: Callable[["Save"], tuple[int, str]]) -> None:
        self.number, self.path = reserve(self)
        self._reserved = paths.absolute(self.path)
        self._place = place = CheckpointPath.of(self._reserved)
        self._hooks.check(place)

    def _arranged(self, taken: Snapshot) -> Snapshot:
        callback = self._sharding_callback
        return sharding.arranged(taken, callback, jax.process_index(), meeting.several())

    def _release(self) -> None:
        if self._reserved:
            free_numbers.release(self._reserved, self)

    @property
    def wait_secs(self) -> float:
        """How long to wait for the save: the timeout, and what it takes to say, and to hear, which process has not kept to it."""
        return self._call.timeout + (patience(self._call.timeout) + 2 if meeting.several() else 0)

    def abandon(self) -> None:
        """Lets go of the other processes and of the path, for a save that failed, or was not handed over. Idempotent."""
        self._session.close()
        self._release()

    def run(self, committed: Callable[[], None]) -> None:
        """Writes, commits, registers, runs the callbacks and deletes what is not kept.

        Args:
          committed: called once the checkpoint is committed and registered.

        Raises:
          BaseException: what went wrong, on every process. If `committed` has been called, the checkpoint is saved all the same.
        """
        try:
            with self._session as session:
                try:
                    self._write(session)
                except BaseException as error:
                    self._hooks.failed(error)
                    raise
                committed()
                self._hooks.saved()
                session.decide(lambda: self._conclude(session))
        finally:
            self._release()

    def _write(self, session: Session) -> None:
        self._mode.write(session, self._give_away, self._settings, self._arranged, self._commit)

    def _give_away(self) -> Snapshot:
        """Returns the snapshot and keeps no reference to it: what has been written or sent is let go of."""
        taken, self._taken = self._taken, None
        assert taken is not None
        return dataclasses.replace(taken, record={COUNTER: self.number})

    def _commit(self, taken: Snapshot, settings: WriteSettings, fill: Fill) -> None:
        """Writes, commits and registers the checkpoint, on the process that does the file access."""
        assert self._place is not None
        storage.save(
            self._place,
            taken,
            settings,
            replace=self._replace,
            write=fill,
            ready=self._session.confirm,
            register=self._register,
        )

    def _register(self) -> None:
        assert self._place is not None
        # If this process was stopped for a while, the others have given up.
        self._session.check()
        self._hooks.committed(self._place)
        self._registered(self)

    def _conclude(self, session: Session) -> None:
        self._run_callbacks()
        session.check()  # A process that was lost since the commit: the others have to know.

    def _run_callbacks(self) -> None:
        try:
            with meeting.on_one_process():
                callbacks.run_callbacks(self._callbacks, self.path)
        finally:
            try:
                assert self._place is not None
                self._hooks.finished(self._place)
            except Exception as error:
                # The checkpoint is there; that an old one could not be deleted is no reason to fail its save.
                warnings.warn(
                    f"After saving {self._place}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2
                )


def call_of(action: str, subject: str, options: CheckpointOptions, settings: WriteSettings, details: Any = ()) -> Call:
    """Returns what the processes of a job have to agree about, for a call with these options."""
    process, callback = settings.io_process, sharding_callback_of(options)
    return Call(
        action,
        subject,
        0 if process is None else process,
        settings.timeout_secs,
        {
            "experimental_io_device": "None" if process is None else f"process {process}",
            "enable_async": options.enable_async,
            "experimental_skip_slot_variables": options.experimental_skip_slot_variables,
            "experimental_sharding_callback": policy_of(options.experimental_sharding_callback)
            if callback is None
            else sharding.describe(callback),
            "the number of experimental_write_callbacks": len(list(options.experimental_write_callbacks or ())),
            "orbax": options.orbax,
            **dict(details),
        },
    )
