"""What every committer does: the same tests for renames on a disk, and for markers in a bucket and on a disk.

A committer is added in rooms.py.
"""

import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from room_cases import cases
from rooms import COMMITTERS, fill, place

from jaxckpt.storage import CheckpointPath, stores
from jaxckpt.storage.commit import marker_directory
from jaxckpt.storage.commit.choice import committer_of
from jaxckpt.storage.commit.committer import Committer, Pending
from jaxckpt.storage.commit.leases import Lease, StoredLease
from jaxckpt.storage.stores import ABSENT, ChangedError

ROOT = Path(__file__).parents[2]
# Another process that makes a checkpoint, and stops, or kills itself, at a step.
PROGRAM = """
    import os, signal, sys

    sys.path.insert(0, sys.argv[1])
    import rooms
    from jaxckpt.storage import CheckpointPath

    committer, room, name, replace, step, end = rooms.COMMITTERS[sys.argv[2]][0](), *sys.argv[3:]

    def reached(here):
        if here != step:
            return
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        print(here, flush=True)
        sys.stdin.readline()

    pending = committer.begin(CheckpointPath(room, name), replace=replace == "replace")
    reached("begun")
    rooms.fill(committer, pending, 2)
    reached("filled")
    pending.seal()
    pending.publish(lambda: reached("registering"))
    print("published", flush=True)
"""


@dataclass
class Ground:
    """A committer and a directory.

    Attributes:
      committer: the one under test.
      room: the directory.
      kind: key of `COMMITTERS`.
    """

    committer: Committer
    room: str
    kind: str

    def path(self, name: str) -> CheckpointPath:
        """Returns the path of a checkpoint."""
        return CheckpointPath(self.room, name)

    def begin(self, name: str, value: int, *, replace: bool = False) -> Pending:
        """Writes a checkpoint up to its commit."""
        pending = self.committer.begin(self.path(name), replace=replace)
        pending.prepare(10)
        fill(self.committer, pending, value)
        pending.seal()
        return pending

    def save(self, name: str, value: int, *, replace: bool = False, register: Callable[[], None] = lambda: None) -> str:
        """Writes and commits a checkpoint; returns its path."""
        self.begin(name, value, replace=replace).publish(register)
        return str(self.path(name))

    def value(self, name: str) -> int | None:
        """Returns which checkpoint is committed under a name; None if there is none. It must be a whole one."""
        path = str(self.path(name))
        if not self.committer.is_committed(path):
            return None
        home = self.committer.home(path)
        assert home is not None
        value = int(json.loads(stores.read(f"{home}/_METADATA"))["value"])
        assert stores.read(f"{home}/d/data") == b"%d" % value * 1000
        return value

    def checkpoints(self) -> list[str]:
        """Returns the names of all committed checkpoints, sorted."""
        return sorted(self.committer.names(self.room, lambda _: True))

    def names(self) -> list[str]:
        """Returns the names of everything in the directory, sorted."""
        try:
            return sorted(stores.names(self.room))
        except FileNotFoundError:
            return []


@pytest.fixture(params=cases(COMMITTERS))
def ground(request: pytest.FixtureRequest) -> Ground:
    """A new, empty directory for each committer."""
    make, store = COMMITTERS[request.param]
    return Ground(make(), place(store, request), request.param)


def refuse() -> None:
    """A registration that fails."""
    raise OSError(errno.EROFS, "no registration")


def test_what_the_paths_of_each_store_have(room: str) -> None:
    assert committer_of(room).in_place == (not stores.is_local(room))


def test_a_checkpoint_is_there_when_it_is_published(ground: Ground) -> None:
    seen: list[int | None] = []
    pending = ground.begin("ckpt-1", 1)
    assert ground.value("ckpt-1") is None
    assert ground.checkpoints() == []
    assert not ground.committer.is_there(str(ground.path("ckpt-1")))
    assert ground.committer.identity(str(ground.path("ckpt-1"))) is None
    pending.publish(lambda: seen.append(ground.value("ckpt-1")))
    assert seen == [1]
    assert ground.value("ckpt-1") == 1
    assert ground.checkpoints() == ["ckpt-1"]
    assert ground.committer.is_there(str(ground.path("ckpt-1")))
    assert ground.committer.identity(str(ground.path("ckpt-1"))) is not None
    assert ground.committer.leftovers(ground.room) == []
    assert ground.committer.sweep(ground.room) == []
    assert ground.names() == ["ckpt-1"]


def test_one_that_is_discarded_leaves_nothing(ground: Ground) -> None:
    ground.begin("ckpt-1", 1).discard()
    assert ground.names() == []
    assert ground.save("ckpt-1", 2)
    assert ground.value("ckpt-1") == 2


@pytest.mark.parametrize("name", ["a b-1", "ünï ✓-1", "x" * 150, "100%25-1", "a.jaxckpt-tmp-x-1"])
def test_odd_names(ground: Ground, name: str) -> None:
    ground.save(name, 1)
    ground.save(name, 2, replace=True)
    assert ground.value(name) == 2
    assert ground.checkpoints() == [name]
    ground.committer.delete(ground.path(name))
    assert ground.names() == []


class TestOccupied:
    def test_by_a_checkpoint(self, ground: Ground) -> None:
        ground.save("ckpt-1", 1)
        with pytest.raises(FileExistsError):
            ground.committer.begin(ground.path("ckpt-1"), replace=False)
        assert ground.value("ckpt-1") == 1
        assert ground.names() == ["ckpt-1"]

    @pytest.mark.parametrize("replace", [False, True])
    def test_by_what_is_none(self, ground: Ground, replace: bool) -> None:
        path = str(ground.path("thesis"))
        stores.make_directory(path)
        stores.write(f"{path}/chapter", b"text")
        with pytest.raises(FileExistsError):
            ground.committer.begin(ground.path("thesis"), replace=replace)
        with pytest.raises(OSError, match="not a checkpoint, so it was not deleted") as caught:
            ground.committer.delete(ground.path("thesis"))
        assert caught.value.errno == errno.EINVAL
        assert ground.committer.sweep(ground.room) == []
        assert ground.committer.is_there(path)
        assert ground.checkpoints() == []
        assert stores.tree(ground.room) == ["thesis/chapter"]

    def test_of_two_at_the_same_time_one_wins(self, ground: Ground) -> None:
        first, outcomes = ground.begin("ckpt-1", 1), []
        for attempt in (lambda: ground.save("ckpt-1", 2), lambda: first.publish(lambda: None)):
            try:
                attempt()
                outcomes.append("won")
            except FileExistsError:
                outcomes.append("lost")
        assert sorted(outcomes) == ["lost", "won"]
        assert ground.value("ckpt-1") == (2 if outcomes[0] == "won" else 1)
        assert ground.names() == ["ckpt-1"]


class TestReplacing:
    def test_a_checkpoint(self, ground: Ground) -> None:
        ground.save("best", 1)
        before = ground.committer.identity(str(ground.path("best")))
        seen: list[int | None] = []
        pending = ground.begin("best", 2, replace=True)
        assert ground.value("best") == 1
        pending.publish(lambda: seen.append(ground.value("best")))
        assert seen == [2]
        assert ground.value("best") == 2
        assert ground.committer.identity(str(ground.path("best"))) not in (None, before)
        assert ground.names() == ["best"]

    def test_nothing(self, ground: Ground) -> None:
        ground.save("best", 1, replace=True)
        assert ground.value("best") == 1
        assert ground.names() == ["best"]

    def test_that_is_discarded(self, ground: Ground) -> None:
        ground.save("best", 1)
        ground.begin("best", 2, replace=True).discard()
        assert ground.value("best") == 1
        assert ground.names() == ["best"]

    def test_that_cannot_be_registered(self, ground: Ground) -> None:
        ground.save("best", 1)
        with pytest.raises(OSError, match="no registration"):
            ground.save("best", 2, replace=True, register=refuse)
        # Where files are copied, the old ones are gone by then.
        assert ground.value("best") == (2 if ground.committer.in_place else 1)
        assert ground.names() == ["best"]


def test_a_new_one_that_cannot_be_registered_is_taken_back(ground: Ground) -> None:
    with pytest.raises(OSError, match="no registration"):
        ground.save("ckpt-1", 1, register=refuse)
    assert ground.value("ckpt-1") is None
    assert ground.names() == []


def test_a_save_that_began_earlier_is_not_mixed_with_one_that_ended_meanwhile(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ground.committer.in_place:
        pytest.skip("Each save has a directory of its own until it is renamed.")
    init = Lease.__init__
    saved: list[str] = []

    def late(lease: Lease, *arguments: Any) -> None:
        if not saved:
            saved.append("")
            saved.append(ground.save("ckpt-1", 2))
        init(lease, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "__init__", late)
        with pytest.raises(FileExistsError, match="at the same time"):
            ground.begin("ckpt-1", 1)
    assert len(saved) == 2
    assert ground.value("ckpt-1") == 2
    assert ground.names() == ["ckpt-1"]
    ground.save("ckpt-1", 3, replace=True)


class TestDeleting:
    def test_a_checkpoint(self, ground: Ground) -> None:
        ground.save("ckpt-1", 1)
        ground.save("ckpt-10", 10)
        ground.committer.delete(ground.path("ckpt-1"))
        ground.committer.delete(ground.path("ckpt-1"))
        assert ground.names() == ["ckpt-10"]
        assert ground.value("ckpt-10") == 10

    def test_only_the_one_that_is_meant(self, ground: Ground) -> None:
        path = ground.save("ckpt-1", 1)
        old = ground.committer.identity(path)
        ground.save("ckpt-1", 2, replace=True)
        with pytest.raises(OSError, match="saved at this path meanwhile") as caught:
            ground.committer.delete(ground.path("ckpt-1"), old)
        assert caught.value.errno == errno.EBUSY
        assert ground.value("ckpt-1") == 2
        ground.committer.delete(ground.path("ckpt-1"), ground.committer.identity(path))
        assert ground.names() == []

    def test_not_one_that_is_saved_while_it_begins(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
        if not ground.committer.in_place:
            pytest.skip("A checkpoint that can be renamed is looked at again after it was renamed away.")
        path = ground.save("ckpt-1", 1)
        old = ground.committer.identity(path)
        init = Lease.__init__
        saved: list[str] = []

        def late(lease: Lease, directory: str, action: Any, *more: Any) -> None:
            if action == "delete" and not saved:
                saved.append(ground.save("ckpt-1", 2, replace=True))
            init(lease, directory, action, *more)

        monkeypatch.setattr(Lease, "__init__", late)
        with pytest.raises(OSError, match="saved at this path meanwhile"):
            ground.committer.delete(ground.path("ckpt-1"), old)
        assert saved
        assert ground.value("ckpt-1") == 2
        assert ground.names() == ["ckpt-1"]
        ground.save("ckpt-1", 3, replace=True)

    def test_not_one_whose_replacement_a_killed_process_left(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not ground.committer.in_place:
            pytest.skip("A rename replaces at once.")
        path = ground.save("ckpt-1", 1)
        old = ground.committer.identity(path)

        def failing(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
            patch.setattr(stores, "copy", failing)
            ground.save("ckpt-1", 2, replace=True)
        with pytest.raises(OSError, match="saved at this path meanwhile"):
            ground.committer.delete(ground.path("ckpt-1"), old)
        assert ground.value("ckpt-1") == 2
        ground.committer.sweep(ground.room, "ckpt")
        assert ground.value("ckpt-1") == 2


class TestUnfinishedWork:
    def test_of_this_process(self, ground: Ground) -> None:
        path = str(ground.path("ckpt-1"))
        pending = ground.begin("ckpt-1", 1)
        (found,) = ground.committer.leftovers(ground.room)
        assert (found.final, found.live, found.owner) == (path, True, f"process {os.getpid()}")
        assert ground.committer.saving(path) == f"process {os.getpid()}"
        assert ground.committer.saving(str(ground.path("ckpt-10"))) is None
        assert ground.committer.sweep(ground.room) == []
        pending.publish(lambda: None)
        assert ground.committer.saving(path) is None
        assert ground.value("ckpt-1") == 1

    @pytest.mark.parametrize("replace", [False, True])
    def test_that_an_interrupt_dropped_has_no_owner(self, ground: Ground, replace: bool) -> None:
        if replace:
            ground.save("ckpt-1", 1)
        pending = ground.begin("ckpt-1", 2, replace=replace)
        del pending
        gc.collect()
        (found,) = ground.committer.leftovers(ground.room)
        assert (found.final, found.live) == (str(ground.path("ckpt-1")), False)
        assert found.owner == f"process {os.getpid()}, which has ended"
        assert ground.committer.saving(str(ground.path("ckpt-1"))) is None
        assert ground.committer.leftovers(ground.room, "other") == []
        assert ground.committer.sweep(ground.room, "ckpt-1") == [found.path]
        assert ground.value("ckpt-1") == (1 if replace else None)
        assert ground.names() == (["ckpt-1"] if replace else [])

    def test_of_the_same_name_is_removed_by_the_next_save(self, ground: Ground) -> None:
        for name in ("ckpt-1", "ckpt-2", "other-1"):
            pending = ground.begin(name, 1)
            del pending
        gc.collect()
        ground.save("ckpt-3", 3)
        assert [left.final for left in ground.committer.leftovers(ground.room)] == [str(ground.path("other-1"))]
        assert ground.checkpoints() == ["ckpt-3"]

    def test_that_is_committed_while_a_sweep_begins_stays(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not ground.committer.in_place:
            pytest.skip("What a rename commits is no longer among the unfinished work.")
        pending = ground.begin("ckpt-1", 1)
        tree = stores.tree

        def listed(directory: str) -> list[str]:
            # The process that saves commits, and is killed before it removes its lease.
            found = tree(directory)
            marker_directory.mark(pending.new)
            pending._lease.stop()  # type: ignore[attr-defined]
            return found

        with monkeypatch.context() as patch:
            patch.setattr(stores, "tree", listed)
            assert ground.committer.sweep(ground.room) == []
        assert ground.value("ckpt-1") == 1
        assert ground.names() == ["ckpt-1"]

    def test_another_save_that_begins_while_a_sweep_removes_one_stays(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not ground.committer.in_place:
            pytest.skip("Each save has a directory of its own until it is renamed.")
        ground.begin("ckpt-1", 1)._lease.stop()  # type: ignore[attr-defined]
        is_live = StoredLease.live.fget
        saved: list[str] = []

        def live(lease: StoredLease) -> bool:
            found = is_live(lease)
            if not saved:
                saved.append("")
                saved.append(ground.save("ckpt-1", 2))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(StoredLease, "live", property(live))
            assert ground.committer.sweep(ground.room) == []
        assert len(saved) == 2
        assert ground.value("ckpt-1") == 2
        assert ground.names() == ["ckpt-1"]

    def test_a_replacement_that_begins_while_a_sweep_removes_a_lease_keeps_its_own(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not ground.committer.in_place:
            pytest.skip("There are no leases.")
        path = ground.save("ckpt-1", 1)
        Lease(path, "delete").stop()
        is_live = StoredLease.live.fget
        looked: list[StoredLease] = []
        held: list[Lease] = []

        def live(lease: StoredLease) -> bool:
            looked.append(lease)
            if len(looked) == 1:
                held.append(Lease(path, "replace"))
                return False
            return is_live(lease)

        with monkeypatch.context() as patch:
            patch.setattr(StoredLease, "live", property(live))
            assert ground.committer.sweep(ground.room) == []
        held[0].confirm()
        held[0].release()
        assert ground.value("ckpt-1") == 1

    @pytest.mark.slow
    def test_of_another_process_is_left_alone(self, ground: Ground) -> None:
        path = str(ground.path("ckpt-1"))
        with program(ground, "ckpt-1", "filled", "wait") as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "filled\n"
            (found,) = ground.committer.leftovers(ground.room)
            assert (found.final, found.live, found.owner) == (path, True, f"process {process.pid}")
            assert ground.committer.saving(path) == f"process {process.pid}"
            assert ground.committer.sweep(ground.room) == []
            ground.save("ckpt-2", 3)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "published\n"
        assert ground.value("ckpt-1") == 2
        assert ground.names() == ["ckpt-1", "ckpt-2"]

    @pytest.mark.slow
    @pytest.mark.parametrize("step", ["begun", "filled", "registering"])
    @pytest.mark.parametrize("replace", [False, True])
    def test_of_a_killed_process(self, ground: Ground, step: str, replace: bool) -> None:
        if replace:
            ground.save("best", 1)
        with program(ground, "best", step, "kill", replace=replace) as process:
            assert process.wait(60) == -signal.SIGKILL
        expected = 2 if step == "registering" else 1 if replace else None
        assert ground.value("best") == expected
        assert ground.committer.is_there(str(ground.path("best"))) == (expected is not None)
        assert ground.committer.saving(str(ground.path("best"))) is None
        assert not any(left.live for left in ground.committer.leftovers(ground.room))
        ground.committer.sweep(ground.room)
        assert ground.committer.leftovers(ground.room) == []
        assert ground.value("best") == expected
        assert ground.names() == ([] if expected is None else ["best"])
        ground.save("best", 3, replace=True)
        assert ground.value("best") == 3
        assert ground.names() == ["best"]


@contextlib.contextmanager
def program(
    ground: Ground, name: str, step: str, end: str, *, replace: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Runs another process that makes the checkpoint `name`. Ends it at the end."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", textwrap.dedent(PROGRAM), str(Path(__file__).parent)),
            *(ground.kind, ground.room, name, "replace" if replace else "new", step, end),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


class TestFilesBesideCheckpoints:
    def test_are_replaced_as_a_whole(self, ground: Ground) -> None:
        path = ground.path("checkpoint")
        ground.committer.replace_file(path, b"1", ABSENT)
        content, version = stores.read_versioned(str(path))
        assert content == b"1"
        ground.committer.replace_file(path, b"2", version)
        assert stores.read(str(path)) == b"2"
        assert ground.names() == ["checkpoint"]

    def test_that_others_have_changed(self, ground: Ground) -> None:
        path = ground.path("checkpoint")
        ground.committer.replace_file(path, b"old", ABSENT)
        _, stale = stores.read_versioned(str(path))
        stores.write(str(path), b"others'")
        for expected in (ABSENT, stale):
            # Where writers keep each other out by a lock, the version does not matter.
            with pytest.raises(ChangedError) if ground.committer.in_place else contextlib.nullcontext():
                ground.committer.replace_file(path, b"mine", expected)
        assert stores.read(str(path)) == (b"others'" if ground.committer.in_place else b"mine")
