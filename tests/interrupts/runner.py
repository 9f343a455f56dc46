"""Starts the programs and the jobs, and collects what they find."""

import faulthandler
import json
import logging
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import orbax.checkpoint  # noqa: F401
import tensorstore  # noqa: F401

import jaxckpt.cli
import jaxckpt.manager
import jaxckpt.storage  # noqa: F401
from jaxckpt.testing import namespaces
from jaxckpt.testing.disks import Disk, private_disks_problem
from tests.interrupts import jobs
from tests.interrupts.children import ChildProgram, fork
from tests.interrupts.ends import END_SCENARIOS, Programs
from tests.interrupts.ground import Ground
from tests.interrupts.scenarios import SCENARIOS, Tries, describe

# The first ones come first where there is little time.
NAMES = (*jobs.NAMES, *END_SCENARIOS, *SCENARIOS)
_BATCH = 60
_LEAST = 8
# A program that is ended takes as long as so many interrupted calls.
_WEIGHT = 4
_TRY_SECS = 100.0
_PLACES = ("ckpt", "sub/ckpt", "{elsewhere}/ckpt", "../work/ckpt")


def run(
    names: Sequence[str] | None, tries: int, secs: float | None, seed: int, most_findings: int
) -> Callable[[], int]:
    """Runs programs until there were enough tries; in a child process returns at once, with what the child has to do."""
    runs = _Runs(seed, most_findings, None if secs is None else time.monotonic() + secs)
    try:
        found = runs.all(list(names or NAMES), tries)
    except ChildProgram as become:
        program = become.args[0]
        assert callable(program)
        return program
    return lambda: found


class _Runs:
    def __init__(self, seed: int, most_findings: int, end: float | None) -> None:
        self._seed = seed
        self._most = most_findings
        self._end = end
        self._findings = 0
        self._hits = 0
        self._disk_problem = private_disks_problem()

    def all(self, names: list[str], tries: int) -> int:
        if self._disk_problem is not None:
            full = [name for name in names if name.startswith("full-")]
            print(f"skipped: {', '.join(full)}: {self._disk_problem}", flush=True)
            names = [name for name in names if name not in full]
        done = dict.fromkeys(names, 0)
        self._all_of_jobs([name for name in names if name in jobs.NAMES], tries, done)
        programs = [name for name in names if name not in jobs.NAMES]
        # In little time each has its turn.
        batch = min(_BATCH, max(_LEAST, tries // max(1, 4 * len(names))))
        while sum(done.values()) < tries and programs and not self._over():
            name = min(programs, key=lambda each: done[each] * (_WEIGHT if each in END_SCENARIOS else 1))
            done[name] += max(1, self._batch(name, min(batch, tries - sum(done.values()))))
        for name, count in done.items():
            print(f"{name}: {count} tries", flush=True)
        print(f"{sum(done.values())} tries, {self._hits} hit, {self._findings} findings", flush=True)
        return 1 if self._findings else 0

    def _all_of_jobs(self, names: list[str], tries: int, done: dict[str, int]) -> None:
        """Makes the tries with jobs, all before the first fork: a fork must not have what belongs to a job."""
        if not names:
            return
        share = len(names) / len(done)
        now = time.monotonic()
        end = None if self._end is None else now + share * (self._end - now)
        for batch in jobs.batches(names, max(1, round(tries * share)), self._seed, end):
            done[batch.name] += batch.made
            self._hits += batch.hits
            if batch.finding is not None:
                self._findings += 1
                print(batch.finding, flush=True)
            if self._over():
                break

    def _over(self) -> bool:
        return self._findings >= self._most or (self._end is not None and time.monotonic() > self._end)

    def _batch(self, name: str, tries: int) -> int:
        """Runs one program, and returns how many tries it made."""
        seed = self._seed
        self._seed += 1
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        base = Path(tempfile.mkdtemp(prefix="jaxckpt-interrupts-", dir=shared))
        try:
            made = self._program(name, tries, seed, base)
        except ChildProgram:
            # The child: the directory is where it works.
            raise
        except BaseException:
            shutil.rmtree(base, ignore_errors=True)
            raise
        shutil.rmtree(base, ignore_errors=True)
        return made

    def _program(self, name: str, tries: int, seed: int, base: Path) -> int:
        ground = base / "ground"
        ground.mkdir()
        output = os.open(base / "output", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        if name in END_SCENARIOS:
            made, finding = self._ending_programs(name, tries, seed, ground, output)
        else:
            made, finding = self._one_program(name, tries, seed, ground, output)
        os.close(output)
        printed = (base / "output").read_text(errors="replace")
        if finding is not None:
            self._findings += 1
            print(finding, flush=True)
            if printed.strip():
                print("    it printed:\n" + "\n".join("    " + line for line in printed.splitlines()[-60:]), flush=True)
        return made

    def _one_program(self, name: str, tries: int, seed: int, ground: Path, output: int) -> tuple[int, str | None]:
        disk = Disk(size="4M") if SCENARIOS[name].full else None
        pid, read = fork(lambda write: _loop(name, tries, seed, ground, disk, os.fdopen(write, "w")), output)
        with os.fdopen(read) as lines:
            made, finding = self._listen(lines, pid, tries)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if disk is not None:
            disk.close()
        if finding is None and code != 0:
            finding = f"FOUND {name} seed {seed} try {made}: the program ended with {code}"
        return made, finding

    def _ending_programs(self, name: str, tries: int, seed: int, ground: Path, output: int) -> tuple[int, str | None]:
        where = _PLACES[seed % len(_PLACES)]
        programs = Programs(name, ground, where, seed)
        tries = max(1, tries // _WEIGHT)
        for made in range(1, tries + 1):
            os.ftruncate(output, 0)
            found, how = programs.one(output)
            self._hits += programs.hit
            if found:
                return made, describe(name, where, seed, made, found, how)
        return tries, None

    def _listen(self, lines: IO[str], pid: int, tries: int) -> tuple[int, str | None]:
        made, hits, finding = 0, 0, None
        for line in lines:
            message = json.loads(line)
            made, hits = message["made"], message["hits"]
            finding = finding or message.get("finding")
        self._hits += hits
        return made, finding


def _loop(name: str, tries: int, seed: int, base: Path, disk: Disk | None, report: IO[str]) -> int:
    """The program: makes tries until one finds something."""
    # What is warned of, such as a state file that is a directory, is on purpose here.
    logging.getLogger("jaxckpt").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", RuntimeWarning)
    if disk is not None:
        namespaces.see_at(str(base), *disk.mount)
    where = _PLACES[seed % len(_PLACES)]
    # With a directory in the place of the state file nothing that registers can be restored.
    occupied = where == "ckpt" and seed % 3 == 0 and SCENARIOS[name].call not in ("restore", "initialize")
    ground = Ground(base, where, occupied=occupied)
    ground.enter()
    made = Tries(SCENARIOS[name], ground, seed)

    def tell(**message: Any) -> None:
        report.write(json.dumps(message) + "\n")
        report.flush()

    for version in range(1, tries + 1):
        tell(made=version, hits=made.hits)
        # A program that hangs ends itself, and says where.
        faulthandler.dump_traceback_later(_TRY_SECS, exit=True)
        try:
            found, how = made.one(version)
        except BaseException:
            found, how = [traceback.format_exc()], "the harness itself failed"
        if found:
            tell(made=version, hits=made.hits, finding=describe(name, ground.prefix, seed, version, found, how))
            os._exit(0)
    os._exit(0)
