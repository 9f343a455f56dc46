"""What several processes write is an ordinary Orbax checkpoint, which one process restores with Orbax alone; and the other way round."""

import json
from collections.abc import Iterator
from pathlib import Path

import mp_plain_orbax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt import testing
from jaxckpt.cli import main

SETTINGS = {
    "plain": {},
    "zstd": {"compression": "zstd"},
    "limited": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(20_000)},
    "grouped": {"experimental_sharding_callback": mp_plain_orbax.ByTopName()},
    "chunked": {"chunk_byte_size": 4096, "target_data_file_size": 50_000, "compression": "zstd"},
}


@pytest.fixture(scope="module")
def readers() -> Iterator[list[testing.Job]]:
    with (
        testing.Job(processes=1, devices=1, timeout=90) as one,
        testing.Job(processes=1, devices=4, timeout=90) as four,
    ):
        yield [one, four]


def read(readers: list[testing.Job], path: str | Path) -> None:
    assert [reader.run(mp_plain_orbax.read_with_orbax, str(path)) for reader in readers] == [[1], [4]]


@testing.requires_private_disks
@pytest.mark.parametrize(("processes", "io", "name"), [(4, 0, "plain"), *((3, 1, name) for name in SETTINGS)])
def test_orbax_reads_what_the_io_process_wrote(jobs, readers, processes: int, io: int, name: str) -> None:
    job = jobs.job(processes)
    directory = jobs.directory(job)
    (path, *_) = job.run(mp_plain_orbax.save_for_orbax, directory, io, asynchronous=False, **SETTINGS[name])
    inside = job.disks[io].path / Path(path).relative_to(job.private)
    if name == "limited":
        assert mp_plain_orbax.largest_file(str(inside)) <= 20_000
    if name == "grouped":
        mp_plain_orbax.assert_grouped(str(inside))
    read(readers, inside)


@pytest.mark.parametrize("name", SETTINGS)
def test_orbax_reads_what_all_processes_wrote(jobs, readers, name: str) -> None:
    job = jobs.job(3, private=False)
    (path, *_) = job.run(mp_plain_orbax.save_for_orbax, jobs.directory(job), None, **SETTINGS[name])
    if name == "limited":
        assert mp_plain_orbax.largest_file(path) <= 20_000
    if name == "grouped":
        mp_plain_orbax.assert_grouped(path)
    read(readers, path)


def test_how_arrays_lay_on_the_mesh_is_stored(jobs, capsys) -> None:
    job = jobs.job(3, private=False)
    (path, *_) = job.run(mp_plain_orbax.save_for_orbax, jobs.directory(job), None)
    assert main(["inspect", "--json", path]) == 0
    leaves = json.loads(capsys.readouterr().out)["leaves"]
    noted = [
        leaf["sharding"] for leaf in leaves if leaf["sharding"] and leaf["sharding"]["sharding_type"] == "NamedSharding"
    ]
    assert any(6 in note["shape"] and any(note["partition_spec"]) for note in noted)
    # The list of devices of a large job is long, and would stand there for each array.
    assert all("device_mesh" not in note for note in noted)


def test_several_processes_restore_what_orbax_saved_in_one(jobs, readers) -> None:
    job = jobs.job(3, private=False)
    directory = jobs.directory(job)
    readers[1].run(mp_plain_orbax.save_with_orbax, directory)
    for io in (None, 2):
        job.run(mp_plain_orbax.restore_what_orbax_saved, directory, io)


@testing.requires_private_disks
def test_a_private_disk_may_hold_what_orbax_saved(jobs, readers) -> None:
    job = jobs.job(3)
    directory = jobs.directory(job)
    readers[1].run(mp_plain_orbax.save_with_orbax, str(job.disks[1].path / Path(directory).relative_to(job.private)))
    job.run(mp_plain_orbax.restore_what_orbax_saved, directory, 1)


@pytest.mark.parametrize("io", [None, 0, 1])
def test_an_empty_container_with_the_name_of_an_array(jobs, io: int | None, tmp_path: Path) -> None:
    """Orbax saves such a tree. Processes find the arrays behind it by their positions among all leaves."""
    extents = (2, 3, 4, 40_000)
    arrays = {str(each): np.full(each, each, np.float32) for each in extents}
    path = tmp_path / "ckpt"
    ocp.PyTreeCheckpointer().save(path, {"a": {"b": np.ones(5, np.float32)}, "a.b": {}, "c": arrays})
    job = jobs.job(2, private=False)
    found = job.run(mp_plain_orbax.restore_beside_an_empty_container, str(path), io, extents)
    assert found == [[[each, each] for each in extents]] * 2
