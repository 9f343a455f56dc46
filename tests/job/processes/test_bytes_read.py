"""Each byte is read once by the job, if the processes pass on what several of them want."""

import mp_bytes
import pytest

from jaxckpt import testing

STATE = 12 << 20


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("layout", ["replicated", "columns", "crossed", "rows"])
def test_a_shared_directory_is_read_once(jobs, layout: str, compression: str | None) -> None:
    job = jobs.job(4, private=False)
    path, *_ = job.run(mp_bytes.save_rows, jobs.directory(job), None, "rows", compression=compression)

    found = job.run(mp_bytes.bytes_read_by_restore, path, None, layout, read_once_per_job=True)

    assert STATE * 0.9 <= sum(found) <= 1.05 * STATE
    if layout == "rows":
        # Nothing is shared, so every process reads its own part.
        assert max(found) <= 1.25 * STATE / 4


def test_a_disk_of_this_machine_is_read_by_every_process(jobs) -> None:
    job = jobs.job(4, private=False)
    path, *_ = job.run(mp_bytes.save_rows, jobs.directory(job), None, "rows")

    assert min(job.run(mp_bytes.bytes_read_by_restore, path, None, "replicated")) >= STATE


@testing.requires_private_disks
@pytest.mark.parametrize("layout", ["replicated", "columns", "rows"])
def test_the_io_process_reads_once(jobs, layout: str) -> None:
    job = jobs.job(4)
    path, *_ = job.run(mp_bytes.save_rows, jobs.directory(job), 1, "rows")

    found = job.run(mp_bytes.bytes_read_by_restore, path, 1, layout)

    assert STATE <= found[1] <= 1.05 * STATE
    assert sum(found) - found[1] < 100_000
