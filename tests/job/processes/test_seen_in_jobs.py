"""What saves and restores tell in a job: each process its own times, the checkpoint those of the process that does the file access."""

import mp_seen
import pytest

from jaxckpt import testing

SIZE = 8 << 20


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "io_process", [pytest.param(1, marks=testing.requires_private_disks), None], ids=["io", "shared"]
)
def test_every_process_tells(jobs, io_process: int | None, mode: str) -> None:
    job = jobs.job(2, private=io_process is not None)
    found = job.run(mp_seen.save_and_restore, jobs.directory(job), io_process, mode == "async")
    for process in found:
        names = [name for name, _, _ in process["events"]]
        assert {"/jaxckpt/save/blocked_secs", "/jaxckpt/save/written_secs", "/jaxckpt/restore/secs"} <= {*names}
        assert [value for name, value, _ in process["events"] if name.endswith("bytes")] == [SIZE, SIZE]
        assert {label for name, _, label in process["events"] if "save" in name} == {mode}
        assert [line.split()[0] for line in process["lines"]] == ["saved", "restored"]
        assert all("8.0 MiB in " in line for line in process["lines"])
        assert process["orbax"] == []
    accounts = [process["account"] for process in found if process["account"] is not None]
    assert accounts == [(SIZE, 2, mode == "async")] * (2 if io_process is None else 1)
