"""What the processes of a job run: calls that all of them make, of which a signal interrupts one process.

No pytest here, and nothing that only the parent needs: it would be imported in every process.
"""

import gc
import json
import logging
import os
import random
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxckpt
from tests.interrupts import model
from tests.interrupts.ground import Ground
from tests.interrupts.signals import Moment, Outcome, Shooter

# A process that is interrupted before it joins a call is waited for so long, as one that never makes the call.
_TIMEOUT_SECS = 6
# Ten seconds where a process is interrupted between joining and connecting to an IO process that is not process 0.
LIMIT_SECS = 20.0
_MEET_MS = 60_000
# The sharded array: more than what travels in batches.
_ELEMENTS = 60_000
_KEEP = 2


@dataclass(frozen=True)
class JobScenario:
    """One kind of call that all processes make.

    Attributes:
      call: a method of `_Calls`, without its underscore.
      asynchronous: whether it saves in the background.
      registers: whether what it saves is registered.
      kept: how many checkpoints are kept; None for all.
    """

    call: str
    asynchronous: bool = False
    registers: bool = True
    kept: int | None = None


JOB_SCENARIOS = {
    "job-save": JobScenario("save"),
    "job-async-save": JobScenario("save", asynchronous=True),
    "job-overwrite": JobScenario("overwrite", registers=False),
    "job-async-overwrite": JobScenario("overwrite", asynchronous=True, registers=False),
    "job-restore": JobScenario("restore"),
    "job-manager": JobScenario("manager", kept=_KEEP),
    "job-async-manager": JobScenario("manager", asynchronous=True, kept=_KEEP),
    "job-sync": JobScenario("sync", asynchronous=True),
}


# -- the processes talk with each other, not through what is tested -----------------------------------------------------------------


class _Meetings:
    """Exchanges small values through JAX's coordination service."""

    def __init__(self) -> None:
        self._turn = 0

    def exchange(self, value: Any) -> list[Any]:
        """Returns what every process has given, in order. No process goes on before all are here."""
        from jax._src import distributed

        client = distributed.global_state.client
        me = jax.process_index()
        self._turn += 1
        client.key_value_set(f"interrupts/{self._turn}/{me}", json.dumps(value))
        found = [
            json.loads(client.blocking_key_value_get(f"interrupts/{self._turn}/{process}", _MEET_MS))
            for process in range(jax.process_count())
        ]
        # All had the values of the turn before the last one when they came to the last one.
        client.key_value_delete(f"interrupts/{self._turn - 2}/{me}")
        return found


_meetings = _Meetings()
# How long each kind of call takes on this process is measured once.
_shooters: list[Shooter] = []
_resources: dict[int | None, tuple[int, int]] = {}
_hits = 0


# -- values -------------------------------------------------------------------------------------------------------------------------


def _values(version: int) -> dict[str, Any]:
    """As `model.values`, with an array that all processes hold a part of."""
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    shape = (_ELEMENTS // jax.device_count() * jax.device_count(),)
    array = jax.make_array_from_callback(
        shape, sharding, lambda index: np.full(shape[0], version, np.float32)[index[0]]
    )
    return {**model.values(version), "a": array}


def _version_of(checkpoint: jaxckpt.Checkpoint) -> set[float]:
    """The versions that this process's parts of the leaves tell: one, if they are whole."""
    array = checkpoint.a
    parts = [np.asarray(shard.data) for shard in array.addressable_shards] if isinstance(array, jax.Array) else [array]
    parts += [np.asarray(checkpoint.b[0]), np.asarray(checkpoint.b[1]["c"]), np.asarray(checkpoint.step)]
    return {float(edge) for part in parts for edge in (part.min(), part.max())}


def _stored_version(path: str) -> int:
    """Reads a checkpoint on this process alone, and returns its version."""
    reader = jaxckpt.load_checkpoint(path)
    found = {
        float(edge)
        for name in ("a", "b/0", "b/1/c", "step")
        for array in [np.asarray(reader.get_tensor(name))]
        for edge in (array.min(), array.max())
    }
    if len(found) != 1:
        raise AssertionError(f"{path} holds several versions: {sorted(found)}")
    return int(found.pop())


# -- tries --------------------------------------------------------------------------------------------------------------------------


def tries(name: str, io: int | None, base: str, seed: int, times: int) -> dict[str, Any]:
    """Makes calls that are interrupted, until something is found.

    Args:
      name: of the scenario.
      io: the process that does the file access; None for all.
      base: a directory; with `io` every process sees its own there.
      seed: of what is chosen.
      times: how many calls.

    Returns:
      How many were `made`, how many of them were `hits` on this process, and what was `found`.
    """
    logging.getLogger("jaxckpt").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", RuntimeWarning)
    warnings.simplefilter("ignore", UserWarning)
    me = jax.process_index()
    home, directory = os.environ["HOME"], os.getcwd()
    if io is not None or me == 0:
        Path(base).mkdir()
    _meetings.exchange("the directory is there")
    where = ("sub/ckpt", "{elsewhere}/ckpt", "ckpt", "../work/ckpt")[seed % 4]
    ground: Ground | None = None
    for process in range(jax.process_count()):
        # One after the other: where they share it, the first one makes it.
        if process == me:
            ground = Ground(Path(base), where, made=io is None and me != 0)
        _meetings.exchange("the ground is there")
    assert ground is not None
    ground.enter()
    try:
        return _Calls(JOB_SCENARIOS[name], io, ground, seed).all(name, times)
    finally:
        os.chdir(directory)
        os.environ["HOME"] = home
        if io is not None:
            shutil.rmtree(base, ignore_errors=True)


class _Calls:
    """Calls of one scenario, made by every process of the job."""

    def __init__(self, scenario: JobScenario, io: int | None, ground: Ground, seed: int) -> None:
        self._scenario = scenario
        self._io = io
        self._ground = ground
        self._random = random.Random(seed)
        self._me = jax.process_index()
        self._has_files = io is None or io == self._me
        # One of those that have the files looks at them.
        self._looks = self._me == (io or 0)
        self._options = jaxckpt.CheckpointOptions(
            experimental_io_device=io,
            enable_async=scenario.asynchronous,
            orbax=jaxckpt.OrbaxSettings(timeout_secs=_TIMEOUT_SECS),
        )
        self._checkpoint = jaxckpt.Checkpoint(**_values(0))
        self._other = jaxckpt.Checkpoint(**_values(-1))
        self._manager_or_none: jaxckpt.CheckpointManager | None = None
        self._model = model.Model(ground.directory, _stored_version)
        self._version = 0
        self._path: str | None = None
        self._restored_from: str | None = None
        self._stray: list[str] = []
        if not _shooters:
            _shooters.append(Shooter(self._me))
        self._shooter = _shooters[0]
        sys.unraisablehook = lambda args: self._note("ignored", args.exc_value, args.object)
        threading.excepthook = lambda args: self._note("in a thread", args.exc_value, args.thread)

    def _note(self, where: str, error: BaseException | None, subject: Any) -> None:
        # As in a program of one process: see `scenarios`.
        lost = where == "ignored" and isinstance(error, (KeyboardInterrupt, SystemExit))
        unmade = where == "ignored" and getattr(subject, "__qualname__", "") == "BaseEventLoop.__del__"
        if not lost and not unmade:
            text = "" if error is None else "".join(traceback.format_exception(error))
            self._stray.append(f"{where}: {text} ({subject})")

    def all(self, name: str, times: int) -> dict[str, Any]:
        """Makes the calls."""
        global _hits
        hits, made = 0, 0
        found: list[str] = []
        for version in range(1, times + 1):
            made = version
            hit, found = self._one(name, version)
            hits += hit
            if found:
                break
        if not found:
            _hits += hits
            found = self._look_at_resources()
            # The others must not begin something else while one looks.
            _meetings.exchange("resources")
        return {"made": made, "hits": hits, "found": found}

    def _one(self, name: str, version: int) -> tuple[bool, list[str]]:
        self._version, self._path, self._restored_from = version, None, None
        # The same on every process.
        who = self._random.randrange(jax.process_count())
        kind = f"{name} {self._io}"
        call = getattr(self, f"_{self._scenario.call}")()
        _meetings.exchange("all begin")
        moment: Moment | None = self._shooter.moment(kind) if who == self._me else None
        outcome = self._shooter.call(kind, call, moment)
        settled = self._settle()
        records = _meetings.exchange(self._record(outcome, settled))
        found = self._of_outcomes(who, records) if self._me == 0 else []
        found += [f"process {self._me}: {text}" for text in self._own(outcome, records)]
        told = [{name: value for name, value in record.items() if name != "text"} for record in records]
        how = f"try {version}: process {who} was interrupted; here: {moment}, {outcome.error!r}; on all: {told}"
        # Its traceback holds what the call held.
        del outcome, settled
        found += [f"process {self._me}: {text}" for text in self._stray]
        hit = bool(records[who]["fired"]) and who == self._me
        if not any(_meetings.exchange(bool(found))):
            found = self._next_call()
            if not any(_meetings.exchange(bool(found))):
                return hit, []
        return hit, [*found, how]

    def _settle(self) -> BaseException | None:
        try:
            self._checkpoint.sync()
        except BaseException as error:
            return error
        return None

    def _record(self, outcome: Outcome, settled: BaseException | None) -> dict[str, Any]:
        """What the other processes are told of how the call ended here."""
        interrupted = outcome.interrupted and outcome.fired > 0
        error = settled if outcome.error is None or interrupted else outcome.error
        return {
            "interrupted": interrupted,
            "fired": outcome.fired,
            "error": None if error is None else type(error).__name__,
            "joint": isinstance(error, jaxckpt.ProcessError),
            "processes": list(getattr(error, "processes", ())),
            "text": None if error is None else "".join(traceback.format_exception(error)),
            "path": self._path,
            "secs": outcome.secs,
            # Where `path` was returned too, it is saved.
            "done": error is None,
        }

    def _of_outcomes(self, who: int, records: list[dict[str, Any]]) -> list[str]:
        """What is wrong with how the call ended on the processes."""
        found = []
        fired = bool(records[who]["fired"])
        for process, record in enumerate(records):
            if record["secs"] > LIMIT_SECS:
                found.append(f"the call took {record['secs']:.1f} s on process {process}")
            if record["error"] is None:
                continue
            if not fired or not record["joint"] or who not in record["processes"]:
                found.append(f"process {process} raised {record['error']} for {record['processes']}:\n{record['text']}")
        others = {record["error"] is None for process, record in enumerate(records) if process != who}
        # A second interrupt ends the wait for telling the others.
        if len(others) > 1 and records[who]["fired"] < 2:
            found.append("the call succeeded on some of the other processes, and failed on others")
        return found

    def _own(self, outcome: Outcome, records: list[dict[str, Any]]) -> list[str]:
        """What is wrong on this process."""
        found = self._ground.harm()
        if found:
            return found
        if not self._has_files and self._ground.entries():
            found.append(f"its disk is not that of the checkpoints, and has {self._ground.entries()}")
        if self._looks:
            done = [record["path"] for record in records if record["done"] and record["path"] is not None]
            clean = not any(record["fired"] for record in records)
            found += self._model.problems(
                self._ground.entries(),
                self._version,
                done[0] if done else None,
                registers=self._scenario.registers,
                kept=self._scenario.kept,
                most=_KEEP + 2,
                clean=clean,
            )
        if self._scenario.call == "restore":
            now = _version_of(self._checkpoint)
            if len(now) != 1:
                found.append(f"the restored values are torn: versions {sorted(now)}")
            elif outcome.error is None and now != {_number(self._restored_from)}:
                found.append(f"restore of {self._restored_from} returned, and the values have version {now}")
            elif now - {_number(self._restored_from), float(self._version)}:
                found.append(f"the values have version {now}, neither that of before nor the one of the checkpoint")
        return found

    def _next_call(self) -> list[str]:
        """Makes the next call of all processes: it has to work, whatever became of the one before."""
        found: list[str] = []
        versions: set[float] = set()
        path: str | None = None
        try:
            if self._scenario.registers:
                path = jaxckpt.latest_checkpoint(self._ground.directory, self._options)
            else:
                path = f"{self._ground.prefix}-same"
                there = _meetings.exchange(os.path.basename(path) in self._model.versions)
                path = path if there[self._io or 0] else None
            if path is not None:
                self._other.restore(path, self._options).assert_consumed()
                versions = _version_of(self._other)
        except BaseException as error:
            found.append(f"process {self._me}: the next call raised:\n" + "".join(traceback.format_exception(error)))
        if path is not None and not found and self._looks:
            known = self._model.versions.get(os.path.basename(path))
            if versions != {known}:
                found.append(f"the next call restored {versions} from {path}, which holds {known}")
        told = _meetings.exchange(sorted(versions))
        if any(each != told[0] for each in told):
            found.append(f"the next call restored different versions: {told}")
        return found

    def _look_at_resources(self) -> list[str]:
        # A signal between opening a file and the next step leaves it open: one in a hundred may.
        allowed = 4 + _hits // 100
        # Threads end a moment after what needed them.
        end = time.monotonic() + 10
        while True:
            gc.collect()
            # Not those that an interrupt kept from starting, which Python lists all the same.
            now = len(os.listdir("/proc/self/fd")), sum(each.is_alive() for each in threading.enumerate())
            before = _resources.setdefault(self._io, now)
            if all(new <= old + allowed for new, old in zip(now, before, strict=True)):
                return []
            if time.monotonic() > end:
                return [f"descriptors and threads were {before}, are {now}: {threading.enumerate()}"]
            time.sleep(0.05)

    # -- calls ------------------------------------------------------------------------------------------------------------------------

    def _set(self) -> None:
        for name, value in _values(self._version).items():
            setattr(self._checkpoint, name, value)

    def _save(self) -> Callable[[], Any]:
        self._set()

        def call() -> None:
            self._path = self._checkpoint.save(self._ground.prefix, self._options)

        return call

    def _sync(self) -> Callable[[], Any]:
        self._save()()
        return self._checkpoint.sync

    def _overwrite(self) -> Callable[[], Any]:
        self._set()

        def call() -> None:
            self._path = self._checkpoint.write(f"{self._ground.prefix}-same", self._options)

        return call

    def _manager(self) -> Callable[[], Any]:
        self._set()
        if self._manager_or_none is None or self._random.random() < 0.1:
            self._manager_or_none = jaxckpt.CheckpointManager(
                self._checkpoint,
                os.path.dirname(self._ground.prefix) or ".",
                max_to_keep=_KEEP,
                checkpoint_name="ckpt",
                options=self._options,
            )
        manager = self._manager_or_none

        def call() -> None:
            self._path = manager.save(options=self._options)

        return call

    def _restore(self) -> Callable[[], Any]:
        self._set()
        path = self._path = self._checkpoint.save(self._ground.prefix, self._options)
        if self._random.random() < 0.5:
            # Any of those that are there: none of them is ever deleted here.
            number = self._random.randint(1, self._version)
            path = f"{self._ground.prefix}-{number}"
        self._restored_from = path
        return lambda: self._checkpoint.restore(path, self._options)


def _number(path: str | None) -> float:
    """The version of a checkpoint of a scenario whose saves are never interrupted: its number."""
    assert path is not None
    return float(path.rpartition("-")[2])
