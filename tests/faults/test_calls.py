"""Processes that do not call, come late, stop, or fail: the same outcome on all, in bounded time, and the next call works."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_programs as programs
import pytest

from jaxckpt import testing

pytestmark = [testing.requires_private_disks, pytest.mark.timeout(180)]
PROCESSES = 3
# Far more than any bound here; far less than waiting for all bounds in turn.
PATIENCE = 30.0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("faults") / "disk")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def job(disk: str) -> Iterator[testing.Job]:
    with testing.Job(processes=PROCESSES, private=disk, private_size="100M", heartbeat_timeout=200, timeout=60) as job:
        yield job


class Numbers:
    def __init__(self) -> None:
        self.version = 0

    def next(self) -> int:
        self.version += 1
        return self.version


@pytest.fixture(scope="module")
def numbers() -> Numbers:
    return Numbers()


def assert_works(job: testing.Job, prefix: str, io: int | None, version: int) -> None:
    saved = job.run(programs.save, prefix, io, version, secs=20)
    assert [found["error"] for found in saved] == [None] * PROCESSES, saved
    restored = job.run(programs.restore, prefix, io, secs=20)
    assert [found["value"] for found in restored] == [(saved[0]["value"], version)] * PROCESSES, restored


def assert_nothing_left(job: testing.Job, prefix: str) -> None:
    for listed in job.run(programs.files, os.path.dirname(prefix)):
        assert not [name for name in listed if "tmp" in name], listed


def assert_named(found: dict[str, Any] | None, process: int) -> None:
    assert found is not None
    assert found["error"], found
    assert "ProcessError" in found["error"], found
    assert found["processes"] == (process,), found
    assert str(process) in found["text"]
    assert found["secs"] < PATIENCE, found


def assert_the_others_name_it(job: testing.Job, stalled: int, place: str) -> None:
    """Stops one process in a call that has started, until the others have ended it with an error that names that process."""
    job.wait_for(stalled, place)
    job.stall(stalled)
    job.release(place)
    others = sorted(set(range(PROCESSES)) - {stalled})
    for process in others:
        job.wait_for(process, "done")
    job.resume(stalled)
    found = [result.value for result in job.results()]
    for process in others:
        assert_named(found[process], stalled)
    assert found[stalled]["error"], found[stalled]


@pytest.mark.parametrize(
    ("io", "absent", "action"),
    [(0, 0, "save"), (0, 2, "restore"), (1, 0, "restore"), (1, 1, "save"), (1, 2, "save"), (1, 1, "restore")],
)
def test_a_process_that_does_not_call(
    job: testing.Job, disk: str, numbers: Numbers, io: int, absent: int, action: str
) -> None:
    prefix = f"{disk}/absent{io}/ckpt"
    assert_works(job, prefix, io, numbers.next())
    if action == "save":
        found = job.run(programs.save, prefix, io, numbers.next(), absent=absent)
    else:
        found = job.run(programs.restore, prefix, io, absent=absent)
    for process in set(range(PROCESSES)) - {absent}:
        assert_named(found[process], absent)
    for _ in range(3):
        assert_works(job, prefix, io, numbers.next())
    assert_nothing_left(job, prefix)


@pytest.mark.parametrize("late", [0, 2])
def test_a_process_that_comes_late(job: testing.Job, disk: str, numbers: Numbers, late: int) -> None:
    prefix = f"{disk}/late/ckpt"
    version = numbers.next()
    found = job.run(programs.save, prefix, 1, version, secs=20, late=(late, 1.0))
    assert [each["error"] for each in found] == [None] * PROCESSES
    # Too late: it raises as well, and names a process that was not there any more.
    job.start(programs.save, prefix, 1, numbers.next(), late=(late, None))
    for process in set(range(PROCESSES)) - {late}:
        job.wait_for(process, "done")
    job.release("late")
    found = [result.value for result in job.results()]
    for process in range(PROCESSES):
        if process != late:
            assert_named(found[process], late)
    assert found[late]["error"], found[late]
    assert "ProcessError" in found[late]["error"], found[late]
    assert_works(job, prefix, 1, numbers.next())
    assert_nothing_left(job, prefix)


@pytest.mark.parametrize(
    ("stalled", "place", "nth", "asynchronous"),
    [
        *[(2, "piece", 2, False), (2, "vote", 1, True), (0, "piece", 1, True)],
        *[(1, "fetch", 2, False), (1, "sync", 1, True), (1, "commit", 1, False)],
    ],
)
def test_a_process_that_is_stopped_in_a_save(
    job: testing.Job, disk: str, numbers: Numbers, stalled: int, place: str, nth: int, asynchronous: bool
) -> None:
    prefix = f"{disk}/stopped/ckpt"
    before = numbers.next()
    assert_works(job, prefix, 1, before)
    job.start(programs.save, prefix, 1, numbers.next(), asynchronous=asynchronous, fault=(stalled, place, "pause", nth))
    job.wait_for(stalled, place)
    job.stall(stalled)
    job.release(place)
    others = sorted(set(range(PROCESSES)) - {stalled})
    # The other processes do not wait until it goes on.
    for process in others:
        job.wait_for(process, "done")
    job.resume(stalled)
    found = [result.value for result in job.results()]
    for process in others:
        assert_named(found[process], stalled)
    assert found[stalled]["error"], found[stalled]
    assert job.run(programs.restore, prefix, 1, secs=20)[0]["value"][1] == before
    assert_nothing_left(job, prefix)
    assert_works(job, prefix, 1, numbers.next())


@pytest.mark.parametrize(("stalled", "place"), [(2, "part"), (2, "arrays"), (1, "vote"), (0, "sync")])
def test_a_process_that_is_stopped_in_a_save_to_a_shared_directory(
    job: testing.Job, shared: str, numbers: Numbers, stalled: int, place: str
) -> None:
    prefix = f"{shared}/stopped/ckpt"
    before = numbers.next()
    assert_works(job, prefix, None, before)
    job.start(programs.save, prefix, None, numbers.next(), fault=(stalled, place, "pause", 1))
    assert_the_others_name_it(job, stalled, place)
    assert job.run(programs.restore, prefix, None, secs=20)[0]["value"][1] == before
    assert_nothing_left(job, prefix)
    assert_works(job, prefix, None, numbers.next())


@pytest.mark.parametrize(
    ("process", "place", "kind"),
    [(2, "part", "raise"), (0, "arrays", "raise"), (0, "commit", "raise"), (1, "arrays", "interrupt")],
)
def test_an_error_in_a_save_to_a_shared_directory(
    job: testing.Job, shared: str, numbers: Numbers, process: int, place: str, kind: str
) -> None:
    prefix = f"{shared}/errors/ckpt"
    before = numbers.next()
    assert_works(job, prefix, None, before)
    found = job.run(programs.save, prefix, None, numbers.next(), secs=20, fault=(process, place, kind, 1))
    assert found[process]["error"][0] == ("PermissionError" if kind == "raise" else "KeyboardInterrupt")
    for other in set(range(PROCESSES)) - {process}:
        assert_named(found[other], process)
        assert found[other]["errno"] == (13 if kind == "raise" else None)
    assert job.run(programs.restore, prefix, None, secs=20)[0]["value"][1] == before
    assert_nothing_left(job, prefix)


@pytest.mark.parametrize("absent", [0, 2])
def test_a_process_that_does_not_call_a_save_to_a_shared_directory(
    job: testing.Job, shared: str, numbers: Numbers, absent: int
) -> None:
    prefix = f"{shared}/absent/ckpt"
    found = job.run(programs.save, prefix, None, numbers.next(), absent=absent)
    for process in set(range(PROCESSES)) - {absent}:
        assert_named(found[process], absent)
    assert_works(job, prefix, None, numbers.next())
    assert_nothing_left(job, prefix)


@pytest.mark.parametrize(("stalled", "place", "nth"), [(2, "request", 2), (0, "request", 3), (1, "provide", 2)])
def test_a_process_that_is_stopped_in_a_restore(
    job: testing.Job, disk: str, numbers: Numbers, stalled: int, place: str, nth: int
) -> None:
    prefix = f"{disk}/stopped/ckpt"
    version = numbers.next()
    assert_works(job, prefix, 1, version)
    job.start(programs.restore, prefix, 1, fault=(stalled, place, "pause", nth))
    assert_the_others_name_it(job, stalled, place)
    assert_works(job, prefix, 1, numbers.next())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("process", "place", "kind"),
    [
        *[(2, "piece", "raise"), (1, "fetch", "raise"), (1, "commit", "raise"), (0, "verdict", "raise")],
        *[(2, "piece", "interrupt"), (1, "fetch", "interrupt"), (0, "verdict", "interrupt")],
    ],
)
def test_an_error_on_one_process_reaches_all(
    job: testing.Job, disk: str, numbers: Numbers, process: int, place: str, kind: str, asynchronous: bool
) -> None:
    prefix = f"{disk}/errors/ckpt"
    before = numbers.next()
    assert_works(job, prefix, 1, before)
    found = job.run(
        programs.save, prefix, 1, numbers.next(), secs=20, asynchronous=asynchronous, fault=(process, place, kind, 1)
    )
    own = "PermissionError" if kind == "raise" else "KeyboardInterrupt"
    assert found[process]["error"][0] == own
    for other in set(range(PROCESSES)) - {process}:
        assert_named(found[other], process)
        assert (own in found[other]["error"]) == (kind == "raise")
        assert found[other]["errno"] == (13 if kind == "raise" else None)
    restored = job.run(programs.restore, prefix, 1, secs=20)
    assert [each["value"][1] for each in restored] == [before] * PROCESSES
    assert_nothing_left(job, prefix)
    assert_works(job, prefix, 1, numbers.next())


@pytest.mark.parametrize("first", [1, 2])
def test_an_interrupt_when_some_have_been_told_to_go_ahead(
    job: testing.Job, disk: str, numbers: Numbers, first: int
) -> None:
    """The IO process, or another one, then waits for processes that have been told that nothing comes of it."""
    prefix = f"{disk}/errors/ckpt"
    assert_works(job, prefix, 1, numbers.next())
    # The process that comes first is told first.
    late = (3 - first, 0.5)
    found = job.run(programs.save, prefix, 1, numbers.next(), secs=20, fault=(0, "agreed", "interrupt", 2), late=late)
    assert found[0]["error"][0] == "KeyboardInterrupt"
    for other in (1, 2):
        assert_named(found[other], 0)
        assert "KeyboardInterrupt" in found[other]["text"]
    assert_works(job, prefix, 1, numbers.next())


@pytest.mark.parametrize(("process", "place"), [(2, "request"), (1, "provide")])
def test_an_interrupted_restore(job: testing.Job, disk: str, numbers: Numbers, process: int, place: str) -> None:
    prefix = f"{disk}/errors/ckpt"
    assert_works(job, prefix, 1, numbers.next())
    found = job.run(programs.restore, prefix, 1, secs=20, fault=(process, place, "interrupt", 1))
    for other in range(PROCESSES):
        if other == 2 and place == "request":
            assert found[other]["error"][0] == "KeyboardInterrupt"
        elif other != process:
            assert_named(found[other], process)
    assert_works(job, prefix, 1, numbers.next())


@pytest.mark.parametrize(("process", "what", "kind"), [(0, "leaf", "TypeError"), (2, "leaf", "TypeError")])
@pytest.mark.parametrize("io", [0, 1, None])
def test_a_leaf_that_one_process_cannot_save(
    job: testing.Job, disk: str, numbers: Numbers, process: int, what: str, kind: str, io: int | None
) -> None:
    prefix = f"{disk}/leaves/ckpt"
    found = job.run(programs.save, prefix, io, numbers.next(), secs=20, bad=(process, what))
    for index, each in enumerate(found):
        assert kind in each["error"], each
        assert ("ProcessError" in each["error"]) == (index != process)
        if index != process:
            assert_named(each, process)
    assert job.run(programs.files, f"{disk}/leaves") == [[]] * PROCESSES


def test_an_object_that_does_not_serialize_on_one_process(job: testing.Job, disk: str, numbers: Numbers) -> None:
    prefix = f"{disk}/leaves/ckpt"
    found = job.run(programs.save, prefix, 1, numbers.next(), secs=20, bad=(2, "object"))
    assert "LookupError" in found[2]["error"], found[2]
    for other in (0, 1):
        assert_named(found[other], 2)
        assert "LookupError" in found[other]["error"]
    assert job.run(programs.files, f"{disk}/leaves") == [[]] * PROCESSES


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("io", [0, 1])
def test_a_disk_that_refuses(job: testing.Job, disk: str, numbers: Numbers, io: int, asynchronous: bool) -> None:
    prefix = f"{disk}/refusing{io}{asynchronous}/ckpt"
    before = numbers.next()
    assert_works(job, prefix, io, before)
    directory = Path(job.disks[io].path) / Path(prefix).parent.name

    def refuse(number: int, target: str) -> None:
        for index, each in enumerate(
            job.run(programs.save, target, io, numbers.next(), secs=20, asynchronous=asynchronous)
        ):
            assert each["error"], each
            assert "OSError" in each["error"], each
            assert each["errno"] == number, each
            assert ("ProcessError" in each["error"]) == (index != io), each
            if index != io:
                assert_named(each, io)

    filler = directory / "filler"
    try:
        # Unbuffered: what does not fit must not be written again when the file is closed.
        with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 16))
        refuse(errno.ENOSPC, prefix)
    finally:
        filler.unlink()
    refuse(errno.ENAMETOOLONG, f"{disk}/refusing{io}{asynchronous}/{'x' * 250}")
    (directory / "file").write_text("")
    refuse(errno.ENOTDIR, f"{disk}/refusing{io}{asynchronous}/file/ckpt")
    (directory / "file").unlink()
    assert [each["value"][1] for each in job.run(programs.restore, prefix, io, secs=20)] == [before] * PROCESSES
    assert_nothing_left(job, prefix)
    saved = job.run(programs.save, prefix, io, numbers.next(), secs=20)
    # A number was not used up.
    assert [each["value"] for each in saved] == [f"{prefix}-2"] * PROCESSES, saved


def test_two_saves_at_once(job: testing.Job, disk: str) -> None:
    assert job.run(programs.two_at_once, f"{disk}/two", 1) == [[1.0, 2.0, 1.0]] * PROCESSES


@pytest.mark.parametrize("asynchronous", [False, True])
def test_calls_in_a_callback_are_refused(job: testing.Job, disk: str, asynchronous: bool) -> None:
    found = job.run(programs.calls_in_callback, f"{disk}/callback{asynchronous}/ckpt", 1, asynchronous)
    assert [each["error"] for each in found] == [None] * PROCESSES
    assert [len(each["value"]) for each in found] == [0, 2, 0]
    for refused in found[1]["value"]:
        assert refused["error"][0] == "RuntimeError"
        assert "callback" in refused["text"]


@pytest.mark.parametrize("io", [0, 1])
def test_nothing_leaks(job: testing.Job, disk: str, io: int) -> None:
    for before, more, call_secs in job.run(programs.many, f"{disk}/many/ckpt", io, 60):
        assert more is None, (before, more)
        print(f"a joint call takes {1000 * call_secs:.1f} ms")
    assert job.run(programs.keys_left)[0] == []


@pytest.mark.parametrize("io", [0, 1, None])
def test_interrupts_at_random_moments(job: testing.Job, disk: str, shared: str, io: int | None) -> None:
    prefix = f"{shared if io is None else disk}/interrupts{io}/ckpt"
    for problems in job.run(programs.interrupted_at_random, prefix, io, 15, 3 if io is None else io):
        assert problems == []
    assert_nothing_left(job, prefix)
