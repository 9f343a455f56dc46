"""Programs that a signal ends in the middle of a save, and what the next program finds."""

import contextlib
import faulthandler
import json
import logging
import os
import random
import select
import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import jaxckpt
from jaxckpt.storage import owner
from tests.interrupts import children
from tests.interrupts.ground import Ground
from tests.interrupts.model import Model, values, version_of

_KEEP = 2
_AGAIN = 0.25
_END_SECS = 30.0
_LOST_SECS = 5.0
# What the state file may say after a program was killed between two steps: the next program that saves puts it in order.
_BETWEEN = ("the state file does not name", "the state file names what is not there")


@dataclass(frozen=True)
class End:
    """What the programs do.

    Attributes:
      asynchronous: whether they save in the background.
      managed: whether a manager saves.
    """

    asynchronous: bool = False
    managed: bool = False


END_SCENARIOS = {
    "end-save": End(),
    "end-async-save": End(asynchronous=True),
    "end-manager": End(managed=True),
    "end-async-manager": End(asynchronous=True, managed=True),
}


class Shot(NamedTuple):
    """How a program is ended: the signal, when it comes (a part of what a save takes), and when it comes again."""

    number: int
    when: float
    again: float | None

    def __str__(self) -> str:
        more = "" if self.again is None else f", again {self.again:.6f} s later"
        return f"{signal.Signals(self.number).name} after {self.when:.2f} of a save{more}"


class Programs:
    """Programs of one scenario, one after the other, in the same directory."""

    def __init__(self, name: str, base: Path, where: str, seed: int) -> None:
        self._scenario = END_SCENARIOS[name]
        self._ground = Ground(base, where)
        self._random = random.Random(seed)
        self._version = 0
        # What the programs have told: the checkpoints that there were, and the version of the last save that returned.
        self._told: dict[str, Any] = {"versions": {}, "newest": -1}
        # The version of the save that was in the way of the signal, and what it returned if it counts as saved.
        self._last: tuple[int, str | None] = (0, None)
        # Whether the signal came in the middle of the save.
        self.hit = False

    def one(self, output: int) -> tuple[list[str], str]:
        """Runs a program and ends it. Returns what was wrong, and how it ended."""
        self._version += 2
        again = self._random.random() < _AGAIN
        shot = Shot(
            self._random.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL]),
            self._random.uniform(0, 1.3),
            self._random.uniform(0, 0.02) if again else None,
        )
        waits = self._random.random() < 0.5
        pid, read = children.fork(lambda write: _program(self, write, waits), output)
        lines = os.fdopen(read, "rb", buffering=0)
        found, returned, told = self._follow(lines, pid, shot)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"{shot}; it told {told}; then ended with {code}"
        if not found and code != -shot.number:
            found.append(f"the program was ended by signal {shot.number}, and its exit status is {code}")
        self._last = (self._version, returned)
        return found, how

    def _follow(self, lines: IO[bytes], pid: int, shot: Shot) -> tuple[list[str], str | None, list[str]]:
        told: list[str] = []
        with lines:
            # Unbuffered: what follows is waited for by its descriptor.
            first = lines.readline()
            if not first:
                return ["the program ended before it had come to its second save"], None, told
            message = json.loads(first)
            if message["found"]:
                # It ends by itself.
                return message["found"], None, told
            self._told = message["known"]
            time.sleep(shot.when * message["secs"])
            _send(pid, shot.number)
            if shot.again is not None:
                time.sleep(shot.again)
                _send(pid, shot.number)
            once = shot.again is None
            # Python loses an interrupt that comes in a finalizer, or in a callback of the garbage collector: the user sends another.
            text = b""
            while True:
                if not select.select([lines], [], [], _LOST_SECS)[0]:
                    once = False
                    _send(pid, shot.number)
                elif chunk := os.read(lines.fileno(), 65536):
                    text += chunk
                else:
                    break
            rest = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
        told = [message["told"] for message in rest]
        self.hit = "saved" not in told
        path = rest[0]["path"] if rest else None
        # The end of a program waits for a save in flight, if it has the time.
        waited = shot.number == signal.SIGINT and once
        return [], path if "saved" in told or (path is not None and waited) else None, told

    # -- in the program ---------------------------------------------------------------------------------------------------------------

    def work(self, report: IO[str], waits: bool) -> None:
        """Looks at what the last program left, saves, and then saves once more, which a signal ends."""
        found, how = self._look()

        def tell(**message: Any) -> None:
            report.write(json.dumps(message) + "\n")
            report.flush()

        tell(found=[*found, *how] if found else [], known=self._told, secs=self._secs)
        if found:
            return
        self._set(self._version)
        path = self._save()
        tell(told="handed over" if self._scenario.asynchronous else "saved", path=path)
        if self._scenario.asynchronous and waits:
            self._checkpoint.sync()
            tell(told="saved", path=path)
        # Training goes on, until the signal.
        time.sleep(2 * _END_SECS)

    def _look(self) -> tuple[list[str], list[str]]:
        ground, scenario = self._ground, self._scenario
        ground.enter()
        version, returned = self._last
        before = ground.entries()
        how = [f"before: {before}"]
        model = Model(ground.directory)
        model.versions, model.newest = self._told["versions"], self._told["newest"]
        kept = _KEEP if scenario.managed else None
        found = ground.harm() or model.problems(
            before, version, returned, registers=True, kept=kept, most=_KEEP + 2, clean=False
        )
        found = [text for text in found if not text.startswith(_BETWEEN)]
        if found:
            return found, how
        latest = jaxckpt.latest_checkpoint(ground.directory)
        self._options = jaxckpt.CheckpointOptions(enable_async=scenario.asynchronous)
        self._checkpoint = jaxckpt.Checkpoint(**values(-1))
        self._manager = None
        if scenario.managed:
            self._manager = jaxckpt.CheckpointManager(
                self._checkpoint, ground.directory, max_to_keep=_KEEP, checkpoint_name="ckpt"
            )
            latest = self._manager.restore_or_initialize()
        elif latest is not None:
            self._checkpoint.restore(latest).assert_consumed()
        if latest is not None and version_of(self._checkpoint) != {model.versions[os.path.basename(latest)]}:
            found.append(f"{latest} was restored as {version_of(self._checkpoint)}; there is {model.versions}")
        if latest is not None and max(version_of(self._checkpoint)) < model.newest:
            found.append(f"{latest} is older than a save that had returned, of {model.newest}")
        state = jaxckpt.get_checkpoint_state(ground.directory)
        listed = [] if state is None else [os.path.basename(path) for path in state.all_model_checkpoint_paths]
        # What was committed and never registered has not been saved; a manager adopts it, and a plain save leaves it alone.
        unnamed = [] if scenario.managed else sorted(model.versions.keys() - set(listed))
        self._set(self._version - 1)
        began = time.monotonic()
        path = self._save()
        self._checkpoint.sync()
        self._secs = time.monotonic() - began
        after = ground.entries()
        how.append(f"after: {after}")
        problems = ground.harm() or model.problems(
            after, self._version - 1, path, registers=True, kept=kept, most=None, clean=True
        )
        found += [text for text in problems if text != f"{_BETWEEN[0]} {unnamed}"]
        if left := [name for name in after if owner.is_temporary(name)]:
            found.append(f"the save of the next program left {left}")
        alive = model.versions.keys() - model.forgotten
        self._told = {"versions": {name: model.versions[name] for name in alive}, "newest": model.newest}
        return found, how

    def _set(self, version: int) -> None:
        for name, value in values(version).items():
            setattr(self._checkpoint, name, value)

    def _save(self) -> str | None:
        if self._manager is not None:
            return self._manager.save(options=self._options)
        return self._checkpoint.save(self._ground.prefix, self._options)

    _secs = 0.0


def _program(programs: Programs, write: int, waits: bool) -> int:
    logging.getLogger("jaxckpt").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", RuntimeWarning)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A program that hangs ends itself, and says where.
    faulthandler.dump_traceback_later(_END_SECS, exit=True)
    report = os.fdopen(write, "w")
    try:
        programs.work(report, waits)
    except Exception:
        with contextlib.suppress(OSError):
            report.write(json.dumps({"found": [traceback.format_exc()], "told": "failed", "path": None}) + "\n")
            report.flush()
        raise
    return 0


def _send(pid: int, number: int) -> None:
    # It is not waited for yet, so its id is not another's.
    os.kill(pid, number)
