"""Orbax's checkpointer drives the saves of a job too, on one process alone; the ordinary saves of the whole job are none the worse."""

import beside_orbax
import orbax_events
import pytest

MODES = [pytest.param(None, id="shared"), pytest.param(0, id="io0"), pytest.param(1, id="io1")]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("io", MODES)
def test_orbax_saves_before_between_and_after(jobs, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(2, private=False)
    found = job.run(beside_orbax.taking_turns, jobs.directory(job), io, asynchronous)
    expected = orbax_events.ASYNCHRONOUS if asynchronous else orbax_events.SYNCHRONOUS
    # On the process that commits, and on no other.
    for process, (reported, _) in enumerate(found):
        assert reported == (dict.fromkeys(sorted(expected), 1) if process == (io or 0) else {}), process
    assert len({operations for _, operations in found}) == 1


@pytest.mark.parametrize("io", MODES)
def test_what_is_explained_is_what_happens(jobs, io: int | None) -> None:
    process = io or 0
    job = jobs.job(2, private=False)
    for index, (text, refused) in enumerate(job.run(beside_orbax.translation, jobs.directory(job), io)):
        assert f"MultiprocessingOptions(primary_host={process}, active_processes={{{process}}})" in text
        assert f"  -> ocp.AsyncCheckpointer on process {process}\n" in text
        assert "A save to a bucket does not use it." in text
        if io is None:
            assert refused == ([], "None")
            continue
        kinds, said = refused
        assert "ValueError" in kinds
        assert ("parts of this array are on other processes" if index == process else "subset of processes") in said


# A peer is not interrupted where it writes: its main thread is.
FAILURES = [
    *((io, who, "error", asynchronous) for io, who in ((None, 0), (None, 1), (1, 1)) for asynchronous in (False, True)),
    *((io, who, "interrupt", False) for io, who in ((None, 0), (1, 1))),
]


@pytest.mark.parametrize(("io", "who", "how", "asynchronous"), FAILURES)
def test_orbax_saves_after_a_failure(jobs, io: int | None, who: int, how: str, asynchronous: bool) -> None:
    job = jobs.job(2, private=False)
    found = job.run(beside_orbax.after_a_failure, jobs.directory(job), io, who, how, asynchronous)
    for process, (raised, _) in enumerate(found):
        own = "OSError" if how == "error" else "KeyboardInterrupt"
        assert (own if process == who or how == "error" else "ProcessError") in raised, process
    assert len({operations for _, operations in found}) == 1
