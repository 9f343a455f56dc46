"""Every kind of leaf, saved by jobs of several processes, comes back bit for bit; only the IO process's disk is touched."""

import pytest

from jaxckpt import testing

import mp_programs


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
