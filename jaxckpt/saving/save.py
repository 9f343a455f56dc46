"""One save, from the values to the callbacks. The steps are the same in the foreground and background, with one or several processes.

`prepare` refuses everything that can be refused, before the other processes hear of the save and before any file exists.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxckpt import storage, telemetry
from jaxckpt._lib import user_code
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.directory import free_numbers, paths
from jaxckpt.directory.hooks import SaveHooks
from jaxckpt.job.agree import meeting
from jaxckpt.job.agree.call import Call, Contribution
from jaxckpt.job.modes import mode_of
from jaxckpt.job.session.session import Session, patience
from jaxckpt.options import CheckpointOptions, callbacks, policy_of, sharding, sharding_callback_of
from jaxckpt.saving import snapshot
from jaxckpt.storage import NO_FACTS, CheckpointPath, SaveFacts
from jaxckpt.storage.arrays.writer import Fill
from jaxckpt.storage.item.account import Account, versions
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.item.description import COUNTER, STEP
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.telemetry import SaveTimes
from jaxckpt.tree import flatten


class Save:
    """One save: `prepare` fixes the values, reserves the path and gets the other processes' agreement; `run` does the rest.

    Attributes:
      path: path of the checkpoint, as the call returns it.
      number: the value of `save_counter` after the save.
      times: measures the save, and tells about it.
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
        facts: SaveFacts = NO_FACTS,
        times: SaveTimes,
        registered: Callable[["Save"], None] = lambda save: None,
    ) -> None:
        """Creates a save that has not been prepared.

        Args:
          action: the call, for messages: "save" or "write".
          subject: the path or prefix that the caller passed.
          options: the caller's options.
          settings: the settings that the options were translated into.
          hooks: called at the steps of the save.
          replace: whether to replace a checkpoint that exists at the path.
          details: names and values that must be the same on every process, besides the options.
          facts: what the program says about this save. Those of the process that does the file access are stored.
          times: measures the save, and tells about it.
          registered: called with this save as soon as it is registered, on the process that does the file access. It is called even if
            an interrupt ends the save right after that.
        """
        self._registered = registered
        self.path = ""
        self.number = 0
        self.times = times
        self._settings = settings
        self._facts = facts
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
          values: returns the flattened values.
          reserve: chooses and reserves number and path for this save. Called only on the process that does the file access.

        Raises:
          BaseException: a value cannot be stored, or another process failed (see `meeting.meet`). The path is not reserved then.
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
        self.times.wait(before)
        with quiet_gc():
            facts: dict[str, Any] = {}
            if jax.process_index() == self._call.center:
                self._choose(reserve)
                facts = {"number": self.number, "path": self.path}
            flats = list(values())
            leaves = [leaf for flat in flats for leaf in flat.leaves]
            plan = self._mode.plan(leaves)
            # A sharding callback looks at every piece.
            pack = self._sharding_callback is None
            taken = snapshot.take(flats, plan, copy=self._settings.asynchronous, pack=pack)
            subject = paths.absolute(self._call.subject)
            storage.check(subject, taken, self._settings)
            self._taken = taken = self._mode.part(taken, subject, self._settings, self._arranged)
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
        """Most seconds to wait for the save: the timeout, and with several processes the time to find and name a late one."""
        return self._call.timeout + (patience(self._call.timeout) + 2 if meeting.several() else 0)

    def abandon(self) -> None:
        """Ends the session and releases the path, after the save failed before the background had taken it over. Idempotent."""
        self._session.close()
        self._release()

    def run(self, saved: Callable[[], None]) -> None:
        """Writes, commits and registers the checkpoint, runs the callbacks and deletes old checkpoints.

        Args:
          saved: called once the checkpoint is committed and registered.

        Raises:
          BaseException: the error of any process; every process raises. If `saved` was called, the checkpoint is saved anyway.
        """
        try:
            with self._session as session:
                try:
                    self._write(session)
                except BaseException as error:
                    self._hooks.failed(error)
                    raise
                saved()
                self._hooks.saved()
                self.times.written(self.path)
                with telemetry.within(self.times.mode):
                    session.decide(lambda: self._conclude(session))
        except BaseException as error:
            self.times.failed(self.path, error)
            raise
        finally:
            self._release()

    def _write(self, session: Session) -> None:
        transfer = Transfer()
        with telemetry.GoingOn(f"saving {self.path}", transfer):
            give = functools.partial(self._give_away, transfer)
            self._mode.write(session, give, self._settings, self._arranged, self._commit)

    def _give_away(self, transfer: Transfer) -> Snapshot:
        """Returns the snapshot and drops our reference to it, so that memory is freed as parts are written or sent.

        Args:
          transfer: is to count the bytes that are written.
        """
        taken, self._taken = self._taken, None
        assert taken is not None
        step = {} if self._facts.step is None else {STEP: self._facts.step}
        self.times.bytes = taken.nbytes
        if self._settings.io_process is None:
            transfer.expect(taken.share_bytes)
        elif jax.process_index() == self._call.center:
            transfer.expect(taken.nbytes)
        return dataclasses.replace(
            taken,
            record={COUNTER: self.number, **step},
            metrics=self._facts.metrics,
            transfer=transfer,
            account=self._account,
        )

    def _account(self) -> Account:
        return Account(**self.times.account(), processes=jax.process_count(), versions=versions())

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
        # If this process was suspended for a while, the others may have given up and closed their connections.
        self._session.check()
        self._hooks.register(self._place)
        self.times.is_saved = True
        self._registered(self)

    def _conclude(self, session: Session) -> None:
        self._run_callbacks()
        # If a process was lost since the commit, this raises, and the other processes hear of it.
        session.check()

    def _run_callbacks(self) -> None:
        try:
            with meeting.on_one_process():
                callbacks.run_callbacks(self._callbacks, self.path)
        finally:
            try:
                assert self._place is not None
                self._hooks.finished(self._place)
            except Exception as error:
                # The checkpoint is saved. The save must not fail because an old checkpoint could not be deleted.
                user_code.warn(
                    f"{self._place} is saved, but old checkpoints could not be deleted: {type(error).__name__}: {error}",
                    RuntimeWarning,
                )


def call_of(action: str, subject: str, options: CheckpointOptions, settings: WriteSettings, details: Any = ()) -> Call:
    """Returns the description of a call, which must be the same on every process of a job.

    Args:
      action: the method, such as "save".
      subject: the path or prefix that the caller passed.
      options: the caller's options.
      settings: the settings that the options were translated into.
      details: names and values that must agree, besides the options.
    """
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
