"""Every kind of leaf, saved by jobs of several processes, comes back bit for bit; only the IO process's disk is touched."""

import mp_programs
import mp_sizes
import pytest

from jaxckpt import testing


@testing.requires_private_disks
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("processes", "io"), [(n, io) for n in (2, 3, 4) for io in range(n)])
def test_every_kind_comes_back_from_the_disk_of_one_process(jobs, processes: int, io: int, asynchronous: bool) -> None:
    job = jobs.job(processes)
    directory = jobs.directory(job)
    before = [disk.files() for disk in job.disks]
    found = job.run(mp_programs.round_trip, directory, io, asynchronous)
    assert found == [(f"{directory}/ckpt-1", f"{directory}/exact", 1)] * processes
    for process, disk in enumerate(job.disks):
        assert (disk.files() == before[process]) == (process != io)


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_every_kind_comes_back_from_a_shared_directory(jobs, processes: int, asynchronous: bool) -> None:
    job = jobs.job(processes, private=False)
    directory = jobs.directory(job)
    found = job.run(mp_programs.round_trip, directory, None, asynchronous)
    assert found == [(f"{directory}/ckpt-1", f"{directory}/exact", 1)] * processes


def test_an_io_process_may_be_chosen_for_a_shared_directory(jobs) -> None:
    job = jobs.job(3, private=False)
    directory = jobs.directory(job)
    assert (
        job.run(mp_programs.round_trip, directory, 2, False) == [(f"{directory}/ckpt-1", f"{directory}/exact", 1)] * 3
    )


@testing.requires_private_disks
@pytest.mark.parametrize(("io", "without_memory"), [(0, []), (1, [0]), (2, [0, 1])])
def test_large_pieces_do_not_go_through_the_connections_of_a_host(jobs, io: int, without_memory: list[int]) -> None:
    job = jobs.job(3)
    found = job.run(mp_sizes.large_round_trip, jobs.directory(job), io, without_memory)
    for process, (filled, taken) in enumerate(found):
        sharing = process != io and process not in without_memory
        assert (filled > 0, taken > 0) == (sharing, sharing), found


@testing.requires_private_disks
def test_many_chunks_of_others_at_once_some_of_which_find_no_slot(jobs) -> None:
    job = jobs.job(3)
    (by_slot, by_connection), *others = job.run(mp_sizes.many_chunks_at_once, jobs.directory(job), 0)
    assert by_slot > 100
    assert by_connection > 10
    assert others == [(0, 0)] * 2


@pytest.mark.parametrize("io", [None, 0, 2])
def test_small_arrays_travel_in_batches_and_are_one_chunk_each(jobs, io: int | None) -> None:
    """The number of messages does not depend on the number of leaves."""
    job = jobs.job(3, private=False)
    directory = jobs.directory(job)
    few = job.run(mp_sizes.many_small, directory + "/few", io, 20)
    many = job.run(mp_sizes.many_small, directory + "/many", io, 400)
    assert [messages for messages, _ in many] == [messages for messages, _ in few]
    assert [whole for _, whole in many] == [{True} if process == (io or 0) else set() for process in range(3)]


@testing.requires_private_disks
def test_shared_memory_goes_without_garbage_collection(jobs) -> None:
    """Apart from that of one save, which its process keeps for the next one."""
    job = jobs.job(3)
    for (descriptors, mappings), after in job.run(mp_sizes.left_behind, jobs.directory(job), 1):
        assert after[0] <= descriptors
        assert after[1] <= mappings <= 1


@testing.requires_private_disks
def test_shared_memory_is_kept_for_the_next_save_unless_a_save_fails(jobs) -> None:
    """After a failure the IO process may still be reading it."""
    job = jobs.job(3)
    io_process, *others = job.run(mp_sizes.kept_memory_of_saves, jobs.directory(job), 0)
    assert io_process == [None] * 4
    for first, second, after_failure, last in others:
        assert first == second == after_failure
        assert last is not None
        assert last != first


@testing.requires_private_disks
@pytest.mark.parametrize("io", [0, 2])
def test_a_data_file_of_another_checkpoint_is_found_out_everywhere(jobs, io: int) -> None:
    """Its chunks carry checksums that are right: only its name, in the file, tells."""
    job = jobs.job(3)
    for kind, text, left in job.run(mp_sizes.exchanged, jobs.directory(job), io):
        # The error says so if the file is another process's.
        assert kind.endswith("CorruptCheckpointError")
        assert "it is not the one that was written" in text
        assert "/d/" in text
        assert left == 0
