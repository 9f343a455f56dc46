"""Processes that save one structure again and again keep what depends on it alone, and notice every change of it."""

import mp_structures
import pytest

from jaxckpt import testing

MODES = [
    pytest.param(True, 1, marks=testing.requires_private_disks, id="io"),
    pytest.param(False, None, id="shared"),
]


@pytest.mark.parametrize(("private", "io"), MODES)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_structure_that_changes_between_saves(jobs, private: bool, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(3, private=private)
    assert job.run(mp_structures.changing, jobs.directory(job), io, asynchronous) == [11] * 3


@pytest.mark.parametrize(("private", "io"), MODES)
def test_a_disagreement_after_an_agreement(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    for found in job.run(mp_structures.disagreeing, jobs.directory(job), io):
        for (kinds, text), name in zip(found, ["model/leaf017", "model/step", "model/extra"], strict=True):
            assert "ProcessError" in kinds
            assert name in text


@pytest.mark.parametrize(("private", "io"), MODES)
def test_what_was_agreed_about_is_not_described_again(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    few = job.run(mp_structures.counted, jobs.directory(job), io, 8)
    many = job.run(mp_structures.counted, jobs.directory(job), io, 400)
    for process in range(3):
        for call in ("save", "restore"):
            messages, described = many[process][f"{call} 0"]
            again, described_again = many[process][f"{call} 1"]
            assert described >= 400
            assert described_again == 0
            assert again == messages
            assert not {"Lines", "AskLines"} & messages.keys()
            # A message to restore names at most 256 KiB of small arrays, and one to save 1 MiB of each process.
            assert sum(messages.values()) <= sum(few[process][f"{call} 1"][0].values()) + (
                16 if call == "restore" else 0
            )


@pytest.mark.parametrize(("private", "io"), MODES)
def test_very_small_arrays_are_copied_together(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    for alone in job.run(mp_structures.packed, jobs.directory(job), io):
        # Larger ones, keys and what other processes own are not in the pack, and the same in each save.
        assert len(set(alone)) == 1
        assert alone[0] < 90


@pytest.mark.parametrize(("private", "io"), MODES)
def test_a_very_small_array_that_was_deleted(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    for kinds, text in job.run(mp_structures.deleted, jobs.directory(job), io):
        assert "ValueError" in kinds
        assert "model/rows_int32: this array has been deleted" in text
