"""One save, from the values to the callbacks: the same steps on the caller's thread and in the background, alone and among processes.

Everything that can be refused is refused while the save is prepared, before the other processes hear of it and before any file exists.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxckpt import storage
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.directory import paths
from jaxckpt.directory.hooks import SaveHooks
from jaxckpt.job.agree import leaves, meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.modes import gather, shared
from jaxckpt.job.plan import Plan, digest_of
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.session import Session, patience
from jaxckpt.options import CheckpointOptions, callbacks, policy_of, sharding, sharding_callback_of
from jaxckpt.saving import snapshot
from jaxckpt.storage import CheckpointPath
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

        @quiet_gc()
        def contribution() -> Contribution:
            if not meeting.several():
                self._choose(reserve)
                self._take(list(values()))
                return Contribution()
            flats = list(values())
            found = self._take_part(flats)
            if jax.process_index() == self._call.center:
                self._choose(reserve)
                found = {**found, "facts": {"number": self.number, "path": self.path}}
            return Contribution(**found)

        def prepared() -> Contribution:
            before()
            return contribution()

        try:
            self._session = session = meeting.meet(self._call, prepared)
            session.adopt()
        except BaseException:
            self._release()
            raise
        if session.several:
            self.number, self.path = int(session.facts["number"]), str(session.facts["path"])

    def _choose(self, reserve: Callable[["Save"], tuple[int, str]]) -> None:
        self.number, self.path = reserve(self)
        self._reserved = paths.absolute(self.path)
        self._place = place = CheckpointPath.of(self._reserved)
        self._hooks.check(place)

    def _take(self, flats: list[flatten.Flat]) -> None:
        taken = self._arranged(snapshot.take(flats, copy=self._settings.asynchronous))
        storage.check(str(self._place), taken, self._settings)
        self._taken = taken

    def _take_part(self, flats: list[flatten.Flat]) -> dict[str, Any]:
        plan = Plan(jax.process_index(), self._settings.io_process)
        taken = snapshot.take_part(flats, plan, copy=self._settings.asynchronous)
        subject = paths.absolute(self._call.subject)
        storage.check(subject, taken, self._settings)
        if self._settings.io_process is None:
            storage.check_part(subject, self._settings)
            taken = self._arranged(taken)
        self._taken = taken
        named = [leaf for flat in flats for leaf in flat.leaves]
        described = leaves.descriptions(named, plan)
        described += [(entry.name, "empty") for entry in taken.entries[len(named) :]]
        hosts = leaves.host_contents(named)
        return {
            "digest": digest_of(described),
            "leaves": lambda: described,
            "host_digest": digest_of(hosts),
            "host_contents": lambda: hosts,
        }

    def _arranged(self, taken: Snapshot) -> Snapshot:
        callback = self._sharding_callback
        return sharding.arranged(taken, callback, jax.process_index(), meeting.several())

    def _release(self) -> None:
        if self._reserved:
            paths.release(self._reserved, self)

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
        taken, self._taken = self._taken, None
        assert taken is not None
        taken = dataclasses.replace(taken, record={COUNTER: self.number})
        settings, process = self._settings, session.process
        write: Any = None
        if isinstance(session, Center):
            # Where a peer does not answer, that is what has to be said, and not that the write took long.
            settings = dataclasses.replace(
                settings, timeout_secs=settings.timeout_secs + patience(settings.timeout_secs)
            )
            if self._settings.io_process is None:

                def write(new: str, everything: Snapshot, settings: Any) -> None:
                    shared.write(new, everything, settings, session)
            else:

                def write(new: str, everything: Snapshot, settings: Any) -> None:
                    storage.write_jointly(new, self._arranged(gather.complete(everything, session)), settings, process)
        elif session.several:
            with contextlib.ExitStack() as closing:
                if self._settings.io_process is None:
                    handlers = shared.Writer(taken, settings, process).handlers()
                else:
                    supplier = closing.enter_context(contextlib.closing(gather.Supplier(taken)))
                    handlers = supplier.handlers()
                del taken  # What has been sent is let go of.
                session.decide(_nothing, handlers)
            return

        place = self._place
        assert place is not None

        def register() -> None:
            # Should this process have been stopped meanwhile, the others have given up.
            session.check()
            self._hooks.committed(place)
            self._registered(self)

        def commit() -> None:
            storage.save(
                place, taken, settings, replace=self._replace, write=write, ready=session.confirm, register=register
            )

        session.decide(commit, asks=True)

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


def _nothing() -> None:
    """The work of a process that does no file access."""
