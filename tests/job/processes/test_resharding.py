"""A checkpoint restores under other shardings, and in jobs of other numbers of processes."""

import sys
from pathlib import Path

import mp_resharding
import pytest

from jaxckpt import testing


@testing.requires_private_disks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "bool"])
def test_every_layout_restores_into_every_other(jobs, dtype: str) -> None:
    job = jobs.job(3)
    path, *_ = job.run(mp_resharding.save_layouts, jobs.directory(job), 2, dtype)
    job.run(mp_resharding.restore_layouts, path, 2, dtype)


@pytest.mark.parametrize("saved_by", [2, 4])
def test_a_shared_directory_serves_any_number_of_processes(jobs, saved_by: int) -> None:
    job = jobs.job(saved_by, private=False)
    path, *_ = job.run(mp_resharding.save_layouts, jobs.directory(job), None)
    for processes in (2, 3, 4):
        jobs.job(processes, private=False).run(mp_resharding.restore_layouts, path, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what a process reads")
@pytest.mark.parametrize(("saved", "restored"), [("rows", "columns"), ("columns", "rows"), ("rows", "rows")])
def test_a_process_reads_little_besides_its_part(jobs, saved: str, restored: str) -> None:
    job = jobs.job(4, private=False)
    for read, part, chunks in job.run(mp_resharding.reshard_large, jobs.directory(job), None, saved, restored):
        assert part == 16 << 20
        # Chunks of 1 MiB.
        assert chunks == 16
        assert part <= read <= 1.05 * part


@testing.requires_private_disks
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what a process reads")
def test_an_io_process_reads_each_chunk_once_if_no_two_processes_want_it(jobs) -> None:
    job = jobs.job(4)
    found = job.run(mp_resharding.reshard_large, jobs.directory(job), 1, "rows", "columns")
    assert [chunks for _, _, chunks in found] == [0, 64, 0, 0]
    assert 64 << 20 <= found[1][0] <= 1.05 * (64 << 20)


@testing.requires_private_disks
def test_a_disk_moves_to_a_job_of_another_number_of_processes(jobs, tmp_path: Path) -> None:
    job = jobs.job(3)
    path, *_ = job.run(mp_resharding.save_layouts, jobs.directory(job), 1)
    with testing.Job(
        processes=2, devices=2, private=job.private, disks=[testing.Disk(), job.disks[1]], timeout=90
    ) as other:
        other.run(mp_resharding.restore_layouts, path, 1)
        found = other.run(mp_resharding.save_layouts, path + "-again", 0)
    with testing.Job(processes=1, devices=2, private=job.private, disks=[other.disks[0]], timeout=90) as alone:
        alone.run(mp_resharding.restore_layouts, found[0], 0)
