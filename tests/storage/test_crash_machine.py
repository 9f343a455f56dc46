"""Programs killed at random moments of save, write-over and retention, one after the other in one directory; after each, what
had been committed is there, the latest checkpoint is a whole one, and what is left over is found and removed.

`JAXCKPT_KILLS` is the number of programs to kill at least (for long runs).
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash_worker
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import jaxckpt
from jaxckpt import cli, storage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("JAXCKPT_KILLS", "40"))


class Worker:
    """The process that forks, and kills, programs."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "OPENBLAS_NUM_THREADS": "1"}
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", crash_worker.__file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        if self._line() != "ready\n":
            self.close()
            raise AssertionError("the worker did not start")

    def _line(self) -> str:
        assert self._process.stdout is not None
        # The worker bounds every wait of its own.
        line = self._process.stdout.readline()
        if not line:
            self._stderr.seek(0)
            raise AssertionError(f"the worker ended: {self._stderr.read()}")
        return line

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=90)
        finally:
            self._process.kill()
            self._process.wait(timeout=60)
            self._process.stdout.close()
            self._stderr.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    try:
        yield worker
    finally:
        worker.close()


# A save makes 60 to 120 operations on files; deleting a checkpoint, which comes after the commit, 40 to 70.
MOMENTS = st.one_of(
    st.fixed_dictionaries({"call": st.integers(0, 3), "after": st.just("begin"), "events": st.integers(0, 150)}),
    st.fixed_dictionaries({"call": st.integers(0, 3), "after": st.just("committed"), "events": st.integers(0, 60)}),
    st.fixed_dictionaries(
        {"call": st.integers(0, 3), "after": st.sampled_from(["begin", "committed"]), "seconds": st.floats(0, 0.08)}
    ),
)
# In memory if there is a place: killing a program loses nothing that it has given to the system, so a disk would only be slower.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
VARIANT = st.sampled_from(list(crash_worker.VARIANTS))


class Crashes(RuleBasedStateMachine):
    """A directory, and what must be in it.

    `saved` has the seed of each numbered checkpoint that may be there, in the order in which they were saved; `required` those of
    them that nothing may have deleted.
    """

    worker: Worker
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="jaxckpt-crashes-", dir=SCRATCH)
        # The seed by path.
        self.saved: dict[str, int] = {}
        self.required: set[str] = set()
        # Paths that were ever committed under a number that jaxckpt chose.
        self.numbers: set[str] = set()
        # The latest checkpoint when the last program had ended.
        self.latest: str | None = None
        self.exact: int | None = None
        self.seeds = 0
        self.history: list[str] = []

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    # -- programs ---------------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), variant=VARIANT, moment=MOMENTS, sync=st.booleans())
    def save(self, count: int, variant: str, moment: dict[str, Any], sync: bool) -> None:
        self.program([{"kind": "save", "variant": variant}] * count, moment, sync)

    @rule(count=st.integers(1, 3), variant=VARIANT, moment=MOMENTS)
    def write_over(self, count: int, variant: str, moment: dict[str, Any]) -> None:
        self.program([{"kind": "write", "variant": variant}] * count, moment, True)

    @rule(keep=st.integers(1, 3), count=st.integers(1, 4), variant=VARIANT, moment=MOMENTS, sync=st.booleans())
    def retain(self, keep: int, count: int, variant: str, moment: dict[str, Any], sync: bool) -> None:
        self.program([{"kind": "manager", "variant": variant, "max_to_keep": keep}] * count, moment, sync)

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 5), keep=st.integers(1, 3), variant=VARIANT, moment=MOMENTS)
    def save_a_number_again(self, which: int, keep: int, variant: str, moment: dict[str, Any]) -> None:
        path = list(self.saved)[which % len(self.saved)]
        number = int(path.rpartition("-")[2])
        self.program([{"kind": "manager", "variant": variant, "max_to_keep": keep, "number": number}], moment, True)

    def program(self, calls: list[dict[str, Any]], moment: dict[str, Any], sync: bool) -> None:
        """Runs a program in which these calls are made, and is killed at a moment; then looks at what it left."""
        calls = [{**call, "seed": self.seeds + index + 1} for index, call in enumerate(calls)]
        self.seeds += len(calls)
        when = {name: value for name, value in moment.items() if name in ("events", "seconds")}
        index = moment["call"] % len(calls)
        # Little happens after the last commit, unless old checkpoints are deleted.
        late = index < len(calls) - 1 or "max_to_keep" in calls[0]
        when["after"] = f"{moment['after'] if late else 'begin'} {index}"
        job = {"directory": self.directory, "calls": calls, "moment": when, "sync": sync}
        answer = self.worker.run(job)
        self.history.append(f"{job} -> {answer}")
        assert not answer["hung"], answer
        assert answer["status"] in (0, -signal.SIGKILL), answer
        killed = answer["status"] != 0
        kind = "write over" if calls[0]["kind"] == "write" else "retention" if "max_to_keep" in calls[0] else "save"
        self.counts[f"{'killed' if killed else 'survived'}: {kind}"] += 1
        begun = [int(report[1]) for report in answer["reports"] if report[0] == "begin"]
        committed = {int(report[1]): report[2] for report in answer["reports"] if report[0] == "committed"}
        for report in answer["reports"]:
            if report[0] == "done" and (sync or calls[0].get("variant") != "async"):
                assert committed[int(report[1])] == report[2], "save returned without its callback"
        if not killed:
            assert committed.keys() == set(range(len(calls)))
        for index, path in committed.items():
            self.is_committed(calls[index], path)
        # Asynchronous saves are begun one after the other, each after the one before has ended.
        if not killed and "max_to_keep" in calls[0]:
            state = jaxckpt.get_checkpoint_state(self.directory)
            assert state is not None
            assert len(state.all_model_checkpoint_paths) <= calls[0]["max_to_keep"]
        flying = [calls[index] for index in begun if index not in committed and killed]
        numbered = [path for index, path in committed.items() if calls[index]["kind"] != "write"]
        try:
            self.look(flying, numbered[-1] if numbered else None)
        # A kill at that moment may never happen again.
        except Exception as error:
            error.add_note(
                "\n".join([f"what {self.directory} has seen:", *self.history, str(sorted(os.listdir(self.directory)))])
            )
            raise

    def is_committed(self, call: dict[str, Any], path: str) -> None:
        if call["kind"] == "write":
            assert path == os.path.join(self.directory, "exact")
            self.exact = call["seed"]
            return
        if "number" not in call:
            assert path not in self.numbers, "a number was given twice"
            self.numbers.add(path)
        self.saved.pop(path, None)
        self.saved[path] = call["seed"]
        self.required.add(path)
        # Deletion comes next; it may have happened, or not.
        if "max_to_keep" in call:
            self.required &= set(list(self.saved)[-call["max_to_keep"] :])

    # -- what is there ----------------------------------------------------------------------------------------------------------

    def look(self, flying: list[dict[str, Any]], committed: str | None) -> None:
        """Checks the directory.

        Args:
          flying: calls that may or may not have been committed.
          committed: the last numbered checkpoint that the program reported, if it did.
        """
        in_flight = {call["seed"] for call in flying}
        there = self.numbered()
        seeds = {path: crash_worker.seed_of(path) for path in there}
        assert self.required <= seeds.keys(), "a committed checkpoint that is not due for deletion is missing"
        for path, seed in seeds.items():
            if seed in in_flight:
                call = next(call for call in flying if call["seed"] == seed)
                assert call["kind"] != "write"
                assert "number" in call or path not in self.numbers, "a number was given twice"
            else:
                assert self.saved.get(path) == seed, f"{path} holds what was not saved there"
        latest = jaxckpt.latest_checkpoint(self.directory)
        # What was committed but not reported is the latest from the next manager, or from never, on.
        last = {committed} if committed else {self.latest, next(reversed(self.saved), None)}
        assert latest in last or seeds.get(latest or "") in in_flight, "not the last that was committed"
        self.latest = latest
        exact = os.path.join(self.directory, "exact")
        if self.exact is not None or storage.is_checkpoint(exact):
            seed = crash_worker.seed_of(exact)
            assert seed == self.exact or seed in in_flight
            self.exact = seed
            assert jaxckpt.verify(exact).ok
        self.leftovers_are_listed()
        # What was committed by the killed program, but not reported, counts from now on; where in the order a number that was
        # saved again stands is not known.
        for path, seed in seeds.items():
            if seed in in_flight:
                if next(call for call in flying if call["seed"] == seed).get("number") is None:
                    self.numbers.add(path)
                    self.saved[path] = seed
                    self.required.add(path)
                elif latest == path:
                    self.saved.pop(path)
                    self.saved[path] = seed
                else:
                    self.saved[path] = seed
                    self.required &= {path, *list(self.saved)[-1:]}
        for path in self.saved.keys() - seeds.keys():
            del self.saved[path]

    def leftovers_are_listed(self) -> None:
        names = {name for name in os.listdir(self.directory) if "tmp" in name}
        left = storage.leftovers(self.directory)
        assert {os.path.basename(leftover.path) for leftover in left} == names
        assert not any(leftover.live for leftover in left)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            # 1 where there is not a single checkpoint.
            assert cli.main(["list", self.directory, "--json"]) in (0, 1)
        listed = json.loads(output.getvalue())
        assert {os.path.basename(leftover["path"]) for leftover in listed["leftovers"]} == names
        self.counts["leftovers"] += len(names)

    @precondition(lambda self: self.seeds)
    @rule(keep=st.integers(1, 3))
    def next_manager(self, keep: int) -> None:
        """The next program, here: its manager finds all checkpoints and removes what is left over, and restores the latest."""
        checkpoint = jaxckpt.Checkpoint(**crash_worker.values(0))
        manager = jaxckpt.CheckpointManager(checkpoint, self.directory, keep)
        left = {leftover.final for leftover in storage.leftovers(self.directory)}
        assert left <= {os.path.join(self.directory, "exact")}, "leftovers are not removed"
        assert set(manager.checkpoints) <= self.saved.keys()
        assert self.required <= set(self.numbered()), "starting a manager deleted a checkpoint"
        restored = manager.restore_or_initialize()
        assert restored == jaxckpt.latest_checkpoint(self.directory)
        assert restored == next(reversed(self.saved), None)
        self.latest = restored
        if restored is not None:
            assert checkpoint.step == self.saved[restored]
            assert jaxckpt.verify(restored).ok
        storage.sweep(self.directory)
        assert not [name for name in os.listdir(self.directory) if "tmp" in name]

    def numbered(self) -> list[str]:
        prefix = os.path.join(self.directory, "ckpt")
        return [f"{prefix}-{number}" for number in storage.list_numbered(prefix)]


@pytest.mark.timeout(max(300, KILLS * 3))
def test_killed_at_any_moment(worker: Worker) -> None:
    """Prints what was done with ``pytest -s``."""
    counts: Counter[str] = Counter()
    machine = type("Machine", (Crashes,), {"worker": worker, "counts": counts})
    settings = hypothesis.settings(
        max_examples=5,
        stateful_step_count=8,
        database=None,
        # The moment of a kill is not repeatable to the microsecond, so there is nothing to shrink.
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        deadline=None,
    )
    start = time.monotonic()

    def killed() -> int:
        return sum(count for name, count in counts.items() if name.startswith("killed"))

    while killed() < KILLS:
        run_state_machine_as_test(machine, settings=settings)
    print(f"\n{killed()} kills in {time.monotonic() - start:.1f} s: {dict(counts)}")
