"""Replicated arrays are divided among the processes that hold them, so that all write about as many bytes."""

from pathlib import Path

import mp_bytes
import pytest


def written(path: str) -> list[int]:
    """Returns the bytes of the data files of each process."""
    parts = sorted(Path(path).glob("**/ocdbt.process_*"), key=lambda part: int(part.name.rsplit("_", 1)[1]))
    return [sum(file.stat().st_size for file in part.glob("d/*")) for part in parts]


@pytest.mark.parametrize(
    "settings",
    [{}, {"chunk_byte_size": 40_000}, {"compression": "zstd"}],
    ids=["large chunks", "small chunks", "zstd"],
)
def test_every_process_writes_as_much_of_replicated_arrays(jobs, settings: dict) -> None:
    job = jobs.job(4, private=False)
    path, *_ = job.run(mp_bytes.save_replicas, jobs.directory(job), None, "replicated", **settings)

    sizes = written(path)
    assert len(sizes) == 4
    assert sum(sizes) >= (3 << 20) * (0.9 if settings.get("compression") else 1)
    assert max(sizes) <= 1.1 * sum(sizes) / 4


def test_only_the_part_that_a_process_writes_leaves_its_accelerator(jobs) -> None:
    job = jobs.job(4, private=False)
    path, *_ = job.run(mp_bytes.save_replicas_of_accelerators, jobs.directory(job), "replicated")

    assert max(written(path)) <= 1.1 * sum(written(path)) / 4
