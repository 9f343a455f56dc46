"""The calls that are interrupted, one after the other with the same objects, and what has to be so after each."""

import contextlib
import gc
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxckpt
from jaxckpt import storage
from tests.interrupts.ground import Ground
from tests.interrupts.model import STATE_FILE, Model, stored_version, values, version_of
from tests.interrupts.signals import Outcome, Shooter

# Of a call, which takes milliseconds on an idle machine; a wait that nothing ends takes as long as the timeout.
LIMIT_SECS = 30.0
_TIMEOUT_SECS = 60
# Errors that the contract names, where something is in the way on purpose.
_CONTRACT = (OSError, jaxckpt.CheckpointError)
_WIPE_EVERY = 15
_RESOURCES_EVERY = 50
_KEEP = 2


@dataclass(frozen=True)
class Scenario:
    """One kind of call.

    Attributes:
      call: a method of `Tries`, without its underscore.
      asynchronous: whether it saves in the background.
      registers: whether what it saves is registered.
      kept: how many checkpoints are kept; None for all.
      full: whether the disk is full at times.
    """

    call: str
    asynchronous: bool = False
    registers: bool = True
    kept: int | None = None
    full: bool = False


SCENARIOS = {
    "save": Scenario("save"),
    "async-save": Scenario("save", asynchronous=True),
    "write": Scenario("write", registers=False),
    "async-write": Scenario("write", asynchronous=True, registers=False),
    "overwrite": Scenario("overwrite", registers=False),
    "async-overwrite": Scenario("overwrite", asynchronous=True, registers=False),
    "restore": Scenario("restore"),
    "async-restore": Scenario("restore", asynchronous=True),
    "manager": Scenario("manager", kept=_KEEP),
    "async-manager": Scenario("manager", asynchronous=True, kept=_KEEP),
    "initialize": Scenario("initialize", kept=_KEEP),
    "async-initialize": Scenario("initialize", asynchronous=True, kept=_KEEP),
    "sync": Scenario("sync", asynchronous=True),
    "close": Scenario("close", asynchronous=True),
    "full-save": Scenario("save", full=True),
    "full-async-save": Scenario("save", asynchronous=True, full=True),
    "full-manager": Scenario("manager", kept=_KEEP, full=True),
    "full-async-overwrite": Scenario("overwrite", asynchronous=True, registers=False, full=True),
}

Check = Callable[[Outcome], list[str]]


class Tries:
    """Interrupted calls of one scenario in one process."""

    def __init__(self, scenario: Scenario, ground: Ground, seed: int) -> None:
        self._scenario = scenario
        self._ground = ground
        self._random = random.Random(seed)
        self._shooter = Shooter(seed)
        self._options = jaxckpt.CheckpointOptions(
            enable_async=scenario.asynchronous, orbax=jaxckpt.OrbaxSettings(timeout_secs=_TIMEOUT_SECS)
        )
        self._checkpoint = jaxckpt.Checkpoint(**values(0))
        self._manager_or_none: jaxckpt.CheckpointManager | None = None
        self._model = Model(ground.directory)
        self._version = 0
        # What the save of the present try returned, and what the sync after it raised.
        self._path: str | None = None
        # The call of the present try is not interrupted, and what earlier ones dropped is gone.
        self._collected = False
        self._settled: BaseException | None = None
        self._resources: tuple[int, int] | None = None
        self._stray: list[str] = []
        # In how many tries a signal came during the call.
        self.hits = 0
        # A directory is where the state file belongs: what registers fails, and says so.
        self._blocked = scenario.registers and (ground.directory / STATE_FILE).is_dir()
        sys.unraisablehook = lambda args: self._note("ignored", args.exc_value, args.object)
        threading.excepthook = lambda args: self._note("in a thread", args.exc_value, args.thread)

    def _note(self, where: str, error: BaseException | None, subject: Any) -> None:
        # An interrupt that comes while a finalizer runs is lost. That is Python's way.
        lost = where == "ignored" and isinstance(error, (KeyboardInterrupt, SystemExit))
        # And asyncio's loops, which Orbax makes, complain where an interrupt came while they were made.
        unmade = where == "ignored" and getattr(subject, "__qualname__", "") == "BaseEventLoop.__del__"
        if not lost and not unmade:
            self._stray.append(f"{where}: {type(error).__name__}: {error} ({subject})")

    def one(self, version: int) -> tuple[list[str], str]:
        """Makes one try. Returns what was wrong after it, and how it went."""
        self._version, self._path = version, None
        call, check = getattr(self, f"_{self._scenario.call}")()
        moment = self._shooter.moment(self._scenario.call)
        self._collected = moment is None
        if self._collected:
            # What an interrupted call dropped may still be held by its traceback.
            gc.collect()
        filler = self._fill() if self._scenario.full else None
        outcome = self._shooter.call(self._scenario.call, call, moment)
        self.hits += outcome.fired > 0
        began = time.monotonic()
        self._settled = self._sync_twice()
        waited = time.monotonic() - began
        if filler is not None:
            filler.unlink()
        found = self._ground.harm()
        if not found:
            found += self._of_errors(outcome)
            found += [
                f"{what} took {secs:.1f} s"
                for what, secs in (("it", outcome.secs), ("sync", waited))
                if secs > LIMIT_SECS
            ]
            found += check(outcome)
        how = (
            f"{moment}; {outcome.fired} signals; raised {outcome.error!r}; then sync raised {self._settled!r}; "
            f"returned {self._path}; directory {self._ground.entries()}"
        )
        # Its traceback holds what the call held, and with it what is not swept while it is in use.
        del outcome
        self._settled = None
        if not found and version % _WIPE_EVERY == 0:
            found = self._wipe()
        if not found and version % _RESOURCES_EVERY == 0:
            found = self._look_at_resources()
        found += self._stray
        return found, how

    def _sync_twice(self) -> BaseException | None:
        """Waits for the background, and returns its error, which is raised once."""
        first = _error_of(self._checkpoint.sync)
        second = _error_of(self._checkpoint.sync)
        if second is not None:
            self._stray.append(f"a second sync raised {second!r}")
        return first

    def _of_errors(self, outcome: Outcome) -> list[str]:
        found = []
        for error in (outcome.error, self._settled):
            if error is None or (error is outcome.error and outcome.interrupted and outcome.fired):
                continue
            if not (self._blocked or self._scenario.full) or not isinstance(error, _CONTRACT):
                found.append("it raised what it may not raise:\n" + "".join(traceback.format_exception(error)))
        return found

    # -- calls that save ----------------------------------------------------------------------------------------------------------

    def _set(self) -> None:
        for name, value in values(self._version).items():
            setattr(self._checkpoint, name, value)

    def _save(self) -> tuple[Callable[[], Any], Check]:
        self._set()

        def call() -> None:
            self._path = self._checkpoint.save(self._ground.prefix, self._options)

        return call, self._saved

    def _sync(self) -> tuple[Callable[[], Any], Check]:
        save, check = self._save()
        # Where the place of the state file is taken, it fails already; there is nothing to wait for then.
        if self._blocked:
            with contextlib.suppress(*_CONTRACT):
                save()
        else:
            save()
        return self._checkpoint.sync, check

    def _close(self) -> tuple[Callable[[], Any], Check]:
        save, check = self._save()

        def call() -> None:
            with self._checkpoint:
                save()

        return call, check

    def _write(self) -> tuple[Callable[[], Any], Check]:
        return self._write_to(f"{self._ground.prefix}-new{self._version}")

    def _overwrite(self) -> tuple[Callable[[], Any], Check]:
        return self._write_to(f"{self._ground.prefix}-same")

    def _write_to(self, path: str) -> tuple[Callable[[], Any], Check]:
        self._set()

        def call() -> None:
            self._path = self._checkpoint.write(path, self._options)

        return call, self._saved

    def _manager(self) -> tuple[Callable[[], Any], Check]:
        self._set()
        renew = self._random.random() < 0.1

        def call() -> None:
            if renew or self._manager_or_none is None:
                self._manager_or_none = self._new_manager()
            self._path = self._manager_or_none.save(options=self._options)

        return call, self._saved

    def _new_manager(self) -> jaxckpt.CheckpointManager:
        directory = os.path.dirname(self._ground.prefix) or "."
        return jaxckpt.CheckpointManager(self._checkpoint, directory, max_to_keep=_KEEP, checkpoint_name="ckpt")

    def _saved(self, outcome: Outcome) -> list[str]:
        # A sync or the end of a with block may be what was interrupted, and raise the error of the save.
        failed = outcome.error is not None and not outcome.interrupted
        done = self._path is not None and self._settled is None and not failed
        return self._model.problems(
            self._ground.entries(),
            self._version,
            self._path if done else None,
            registers=self._scenario.registers,
            kept=self._scenario.kept,
            most=None if self._scenario.full else _KEEP + 2,
            clean=done and self._collected and outcome.error is None,
        )

    # -- calls that restore -------------------------------------------------------------------------------------------------------

    def _restore(self) -> tuple[Callable[[], Any], Check]:
        self._set()
        self._path = self._checkpoint.save(self._ground.prefix, self._options)
        saved = sorted(self._model.versions.keys() - self._model.forgotten)
        path = self._path
        if saved and self._random.random() < 0.5:
            path = os.path.join(self._ground.directory, self._random.choice(saved))
        return lambda: self._checkpoint.restore(path, self._options), lambda outcome: self._restored(outcome, path)

    def _initialize(self) -> tuple[Callable[[], Any], Check]:
        if self._manager_or_none is None:
            self._manager_or_none = self._new_manager()
        manager = self._manager_or_none
        self._set()
        path = self._path = manager.save(options=self._options)
        assert path is not None
        return lambda: manager.restore_or_initialize(self._options), lambda outcome: self._restored(outcome, path)

    def _restored(self, outcome: Outcome, path: str) -> list[str]:
        found = self._saved(outcome)
        now, stored = version_of(self._checkpoint), stored_version(path)
        if len(now) != 1:
            found.append(f"the restored values are torn: versions {sorted(now)}")
        elif now - {stored, self._version}:
            found.append(f"the values have version {now}, neither that of before nor the one of the checkpoint")
        elif outcome.error is None and now != {stored}:
            found.append(f"restore returned, and the values have version {now} instead of {stored}")
        return found

    # -- what is looked at now and then ---------------------------------------------------------------------------------------------

    def _fill(self) -> Path:
        """Fills the disk, but for a random rest."""
        filler = self._ground.base / "filler"
        status = os.statvfs(self._ground.base)
        rest = self._random.choice([0, self._random.randint(0, 200_000), 10**7])
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - rest))
        return filler

    def _wipe(self) -> list[str]:
        """Sweeps, after which nothing but checkpoints may be there; then removes them, so that the directory stays small."""
        directory = str(self._ground.directory)
        if not os.path.isdir(directory):
            return []
        # What an interrupted call dropped may still be held by its traceback.
        gc.collect()
        storage.sweep(directory)
        left = set(self._ground.entries()) - self._model.versions.keys() - {STATE_FILE}
        if left:
            return [f"a sweep does not remove {sorted(left)}"]
        if self._scenario.kept is None:
            for name in self._ground.entries():
                path = self._ground.directory / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._model.forget()
        return []

    def _look_at_resources(self) -> list[str]:
        end = time.monotonic() + 10
        while True:
            gc.collect()
            now = len(os.listdir("/proc/self/fd")), threading.active_count()
            if self._resources is None:
                self._resources = now
            # A signal between opening a file and the next step leaves it open: one in a hundred may.
            allowed = 3 + self._version // 100
            if all(new <= old + allowed for new, old in zip(now, self._resources, strict=True)):
                return []
            if time.monotonic() > end:
                return [f"descriptors and threads were {self._resources}, are {now}: {threading.enumerate()}"]
            time.sleep(0.05)


def _error_of(work: Callable[[], Any]) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None


def describe(scenario: str, prefix: str, seed: int, version: int, found: list[str], how: str) -> str:
    """Returns a finding as text."""
    listed = "\n".join(f"    {line}" for text in found for line in text.splitlines())
    return f"FOUND {scenario} seed {seed} try {version} prefix {prefix!r}: {how}\n{listed}"
