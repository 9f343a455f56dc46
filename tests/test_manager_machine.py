"""CheckpointManager: calls in any order, compared with a model (Hypothesis)."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from examples import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from manager_helpers import ASYNC, HOUR, Clock, names, names_in

import jaxckpt
from jaxckpt.directory import on_disk


class ManagerMachine(RuleBasedStateMachine):
    """A manager against a model of the rules, over restarts, crashes, deletions and lost state files."""

    NUMBERS = st.integers(0, 6)

    @initialize(keep=st.sampled_from([1, 2, 3, None]), hours=st.sampled_from([None, 1.5, 2.5]))
    def begin(self, keep: int | None, hours: float | None) -> None:
        self.patch = pytest.MonkeyPatch()
        logging.getLogger("jaxckpt").setLevel(logging.CRITICAL)
        self.directory = Path(tempfile.mkdtemp(prefix="jaxckpt-test-"))
        self.clock = Clock(self.patch, 0.0, goes_on=True)
        # When the commit of each name began.
        self.times: dict[str, float] = {}
        self.patch.setattr(on_disk, "commit_time", lambda path: self.times.get(os.path.basename(path), 0.0))
        self.checkpoint = jaxckpt.Checkpoint(value=np.zeros(2), saved=0)
        self.saved = 0
        # Which save wrote each number: the order of commits.
        self.contents: dict[int, int] = {}
        # The hour of each number.
        self.committed_at: dict[int, int] = {}
        self.hour = 0
        # The hour of each listed number, oldest first.
        self.listed: dict[int, int] = {}
        self.kept: set[int] = set()
        self.preserved: int | None = None
        self.restart(keep, hours)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            logging.getLogger("jaxckpt").setLevel(logging.NOTSET)
            shutil.rmtree(self.directory)

    # --- The model. `listed` and `kept` are what the state file says; what else is on disk is adopted when it is looked
    # at.

    def newest(self, listed: dict[int, int]) -> set[int]:
        return set(listed if self.keep is None else list(listed)[-self.keep :])

    def committed(self, number: int, began: float) -> None:
        self.times[f"name-{number}"] = began
        self.committed_at[number] = self.hour
        self.saved += 1
        self.contents[number] = self.saved

    def view(self, new: int | None = None) -> tuple[dict[int, int], set[int]]:
        """What is listed and kept once checkpoints that no list names (but for a new one) have been adopted."""
        listed = {number: hour for number, hour in self.listed.items() if number in self.contents and number != new}
        kept = self.kept & set(self.contents)
        order = list(listed)
        unknown = set(self.contents) - set(listed) - kept - {new}
        for number in sorted(unknown, key=lambda number: self.contents[number]):
            place = len(order)
            while place and self.contents[order[place - 1]] > self.contents[number]:
                place -= 1
            order.insert(place, number)
        listed = {number: listed.get(number, self.committed_at[number]) for number in order}
        return listed, kept | (unknown - self.newest(listed))

    def registered(self, number: int) -> None:
        self.listed, self.kept = self.view(new=number)
        if self.preserved is None:
            self.preserved = self.started
        self.listed.pop(number, None)
        self.listed[number] = self.hour
        self.kept.discard(number)
        for old in [number for number in self.listed if number not in self.newest(self.listed)]:
            hour = self.listed.pop(old)
            if old in self.kept:
                continue
            if self.hours is not None and hour - self.hours >= self.preserved:
                self.preserved = hour
                self.kept.add(old)
            else:
                del self.contents[old]

    # --- What happens.

    @rule(keep=st.sampled_from([1, 2, 3, None]), hours=st.sampled_from([None, 1.5, 2.5]))
    def restart(self, keep: int | None, hours: float | None) -> None:
        self.keep, self.hours = keep, hours
        self.manager = jaxckpt.CheckpointManager(self.checkpoint, self.directory, keep, hours, checkpoint_name="name")
        listed, kept = self.view()
        # A period starts with the manager, if the directory is empty; otherwise long ago, so that the first that is due
        # is preserved.
        self.started = -(10**6) if listed else self.hour
        if listed:
            self.listed, self.kept = listed, kept
            self.preserved = self.started if self.preserved is None else self.preserved

    @rule()
    def save(self) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        number = self.checkpoint.save_counter + 1
        if number in self.contents:
            number = max(self.contents) + 1
        assert self.manager.save() == str(self.directory / f"name-{number}")
        self.committed(number, began)
        self.registered(number)

    @rule(number=NUMBERS)
    def save_number(self, number: int) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        assert self.manager.save(number) == str(self.directory / f"name-{number}")
        self.committed(number, began)
        self.registered(number)

    @rule()
    def save_in_background_with_a_failing_callback(self) -> None:
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        number = max([*self.contents, 0]) + 1

        def fail() -> None:
            raise ZeroDivisionError

        self.manager.save(number, options=ASYNC(experimental_write_callbacks=[fail]))
        with pytest.raises(ZeroDivisionError):
            self.manager.sync()
        self.committed(number, began)
        self.registered(number)

    @rule()
    def save_fails(self) -> None:
        self.checkpoint.bad = object()
        with pytest.raises(TypeError, match="bad"):
            self.manager.save()
        del self.checkpoint.bad

    @rule()
    def commit_without_registering(self) -> None:
        """As a crash between the two leaves it."""
        # Not a number that the state file lists although its checkpoint was deleted: the new one would count as registered when the
        # deleted one was, and what was committed before it, as taken out of the list by the user. The model does not know that.
        number = max([*self.contents, *self.listed, 0]) + 1
        self.checkpoint.saved, began = self.saved + 1, self.clock.time()
        self.checkpoint.write(self.directory / f"name-{number}")
        self.committed(number, began)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def delete_externally(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.contents)))
        shutil.rmtree(self.directory / f"name-{number}")
        del self.contents[number]

    @rule(hours=st.integers(1, 3))
    def wait(self, hours: int) -> None:
        self.hour += hours
        self.clock.now += hours * HOUR

    @rule(garbage=st.sampled_from([None, "garbage", ""]))
    def lose_the_state_file(self, garbage: str | None) -> None:
        if not self.directory.exists():
            return
        (self.directory / "checkpoint").unlink(missing_ok=True)
        if garbage is not None:
            (self.directory / "checkpoint").write_text(garbage)
        self.listed, self.kept, self.preserved = {}, set(), None

    @precondition(lambda self: self.manager.latest_checkpoint is not None)
    @rule()
    def restore(self) -> None:
        listed, kept = self.view()
        expected = list(listed)[-1] if listed else max(kept, key=lambda number: self.contents[number])
        checkpoint, self.checkpoint = self.checkpoint, jaxckpt.Checkpoint(value=np.ones(2), saved=-1)
        checkpoint.sync()
        self.checkpoint.save_counter = checkpoint.save_counter
        self.restart(self.keep, self.hours)
        assert self.manager.restore_or_initialize() == str(self.directory / f"name-{expected}")
        assert self.checkpoint.saved == self.contents[expected]

    # --- What must hold.

    @invariant()
    def lists_agree(self) -> None:
        if not hasattr(self, "manager"):
            return
        listed, kept = self.view()
        assert names(self.manager.checkpoints) == [f"name-{number}" for number in listed]
        assert set(self.contents) == set(listed) | kept
        found = set(names_in(self.directory)) if self.directory.exists() else set()
        assert found == {f"name-{number}" for number in self.contents}
        if listed:
            assert self.manager.latest_checkpoint == str(self.directory / f"name-{list(listed)[-1]}")
        elif not self.contents:
            assert self.manager.latest_checkpoint is None


ManagerMachine.TestCase.settings = hypothesis.settings(
    max_examples=examples(25), stateful_step_count=15, suppress_health_check=list(hypothesis.HealthCheck)
)
TestManagerMachine = ManagerMachine.TestCase
