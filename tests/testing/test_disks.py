"""Private disks: each process sees its own, others see none of it, and a later job finds what is on them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import job_programs
import pytest

from jaxckpt import testing
from jaxckpt.testing import disks as disks_module

pytestmark = testing.requires_private_disks


@pytest.mark.parametrize("size", [None, "4M"])
def test_what_a_killed_job_wrote_is_there_for_the_next(size: str | None, tmp_path: Path) -> None:
    private = tmp_path / "made" / "private"
    with testing.Job(job_programs.write_and_stay, args=(str(private),), private=private, private_size=size) as job:
        for index in (0, 1):
            job.wait_for(index, "written")
            job.kill(index)
        first = job.results()
    assert os.listdir(private) == []
    assert [result.files for result in first] == [("kept-0",), ("kept-1",)]
    disks = [result.disk for result in first]
    assert disks == job.disks
    # Swapped: it is the disk that has the files, not the process.
    with testing.Job(private=private, disks=disks[::-1]) as job:
        assert job.run(job_programs.read, str(private)) == [["kept-1"], ["kept-0"]]
        assert job.run(job_programs.write, str(private), "new") == [["kept-1", "new-0"], ["kept-0", "new-1"]]
        assert (disks[0].path / "new-1").read_bytes() == b"x"
        assert disks[0].files() == ["kept-0", "new-1"]
        (disks[0].path / "from-parent").touch()
        assert job.run(job_programs.read, str(private))[1] == ["from-parent", "kept-0", "new-1"]
    for disk in disks:
        disk.close()
        disk.close()
        assert not disk.path.exists()
    assert os.listdir(private) == []


def test_everything_else_is_shared(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with testing.Job(private=tmp_path / "private", processes=2) as job:
        job.run(job_programs.write, str(tmp_path / "shared"), "all")
        assert sorted(os.listdir(tmp_path / "shared")) == ["all-0", "all-1"]
        assert job.run(job_programs.ids) == [(os.getuid(), os.getgid())] * 2


def test_the_working_directory_may_be_private(tmp_path: Path) -> None:
    results = testing.run(job_programs.write, args=(".", "f"), processes=1, private=tmp_path, cwd=tmp_path)
    assert results[0].files == ("f-0",)
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with testing.Disk(size="1M") as small, testing.Disk(size=2**24) as large:
        with testing.Job(private=tmp_path, disks=[small, large]) as job:
            job.start(job_programs.write, str(tmp_path), "big", 2**22)
            full, fine = job.results(check=False)
            assert full.error is not None
            assert isinstance(full.error.exception, OSError)
            assert full.error.exception.errno == errno.ENOSPC
            assert fine.value == ["big-1"]
        assert (large.path / "big-1").stat().st_size == 2**22


def test_a_directory_as_a_disk_stays(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    testing.run(
        job_programs.write, args=(str(tmp_path / "p"), "f"), processes=1, private=tmp_path / "p", disks=[directory]
    )
    assert os.listdir(directory) == ["f-0"]


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 given for 3 processes"):
        testing.Job(processes=3, private=tmp_path, disks=[tmp_path, tmp_path])
    with pytest.raises(ValueError, match="private_size or disks"):
        testing.Job(processes=1, private=tmp_path, disks=[tmp_path], private_size="1M")
    with pytest.raises(ValueError, match="directory or a size"):
        testing.Disk(tmp_path, size="1M")
    with pytest.raises(OSError, match="size nonsense"):
        testing.Disk(size="nonsense")
    with pytest.raises(ValueError, match="would hide"), testing.Job(private="/"):
        pass


def test_where_it_is_not_permitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    problem = disks_module.private_disks_problem.__wrapped__()
    assert "this is darwin" in problem
    monkeypatch.setattr(disks_module, "private_disks_problem", lambda: problem)
    with pytest.raises(OSError, match="this is darwin.*requires_private_disks"):
        testing.Job(private=tmp_path)


def test_without_root(tmp_path: Path) -> None:
    """User namespaces give an ordinary user private disks; the process stays that user."""
    code = (
        "import sys; from jaxckpt import testing; p = sys.argv[1]; print(testing.private_disks_problem())\n"
        "r = testing.run('job_programs:write', args=(p, 'f'), private=p, private_size='1M'); print([x.files for x in r])"
    )
    command = [
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
        sys.executable,
        "-c",
        code,
        str(tmp_path),
    ]
    if os.geteuid() != 0:
        pytest.skip("runs without root already")
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("there is no setpriv, which takes the right to mount away")
    problem, *rest = done.stdout.splitlines()
    if problem != "None":
        pytest.skip(problem)
    assert rest == ["[('f-0',), ('f-1',)]"], done.stderr
