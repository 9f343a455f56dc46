"""The IO process never holds the whole state, and the others hold nothing beyond their own."""

from pathlib import Path

import fault_programs as programs
import pytest

from jaxckpt import testing

MEGABYTES = 512


@pytest.mark.timeout(180)
@testing.requires_private_disks
def test_memory(tmp_path: Path) -> None:
    disk = str(tmp_path / "disk")
    with testing.Job(processes=3, private=disk, timeout=150) as job:
        grown = job.run(programs.peak, f"{disk}/ckpt", 1, MEGABYTES, False)
    print(grown)
    for process, (more, own) in enumerate(grown):
        assert more < (MEGABYTES - own if process == 1 else 40), grown
