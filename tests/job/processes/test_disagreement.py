"""Calls that are not the same on every process are refused on all of them, before anything is written or changed."""

import mp_disagreement
import mp_resharding
import pytest

from jaxckpt import testing

NAMED = {
    "tree": "extra",
    "names": "",
    "order": "",
    "host shape": "n",
    "host dtype": "n",
    "python kind": "step",
    "shape": "w",
    "dtype": "int32",
    "sharding": "w",
    "devices": "w",
    "host or jax": "w",
    "path": "other",
    "device": "experimental_io_device",
    "another device": "experimental_io_device",
    "async": "enable_async",
    "policy": "experimental_sharding_callback",
    "callbacks": "experimental_write_callbacks",
    "timeout": "timeout_secs",
}


@pytest.mark.parametrize(
    ("private", "io"),
    [
        pytest.param(True, 1, marks=testing.requires_private_disks),
        pytest.param(True, 2, marks=testing.requires_private_disks),
        (False, None),
    ],
)
def test_processes_that_disagree(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    directory = jobs.directory(job)
    for process, found in enumerate(job.run(mp_disagreement.disagreements, directory, io)):
        assert found.pop("left") is False
        kinds, text = found.pop("refused by one")
        assert "TypeError" in kinds, (process, kinds, text)
        assert "step" in text
        kinds, text = found.pop("save or restore")
        assert "ProcessError" in kinds
        assert "save(" in text
        assert "restore(" in text
        for name, (kinds, text) in found.items():
            assert "ProcessError" in kinds, (name, process, kinds, text)
            assert "process 1" in text.lower() or "processes 0 and 1" in text, (name, text)
            assert NAMED[name.split(", ")[0]] in text, (name, text)


DEVICES = {
    1: 1,
    2: 2,
    # A jax.Device of the last process.
    (0, 5): 2,
    "/job:worker/replica:0/task:2/device:CPU:0": 2,
    "/job:worker/task:1": 1,
    "/task:2": 2,
    "/task:1/device:CPU:1": 1,
    "/job:localhost": 0,
    "/job:localhost/replica:0/task:0/device:CPU:0": 0,
    "/job:chief": 0,
    "/job:coordinator": 0,
    "/job:master/task:0": 0,
    "CPU:0": 0,
    "cpu:0": 0,
    "/cpu:0": 0,
    "/device:CPU:0": 0,
    "CPU": 0,
}
REFUSED = [
    *("garbage", "localhost", "", b"/task:0", 1.5, True, -1),
    *("/job:worker", "/job:worker/replica:1/task:1", "/job:ps/task:0", "/job:localhost/task:1", 3, "/task:3"),
    *("/task:1/device:CPU:99", "/device:CPU:99", "/gpu:0", "/task:1/device:GPU:0"),
]


@testing.requires_private_disks
def test_every_way_to_name_a_device(jobs) -> None:
    job = jobs.job(3)
    found = job.run(mp_disagreement.device_table, jobs.directory(job), list(DEVICES))
    for process in range(3):
        expected = [("", io == process, 1) for io in DEVICES.values()]
        assert dict(zip(DEVICES, found[process], strict=True)) == dict(zip(DEVICES, expected, strict=True))


@testing.requires_private_disks
def test_devices_that_do_not_exist(jobs) -> None:
    job = jobs.job(3)
    files = [disk.files() for disk in job.disks]
    found = job.run(mp_disagreement.device_table, jobs.directory(job), REFUSED)
    for texts in zip(*found, strict=True):
        device = REFUSED[next(index for index, one in enumerate(zip(*found, strict=True)) if one == texts)]
        assert all(text and not exists and counter == 0 for text, exists, counter in texts), (device, texts)
        assert len({text for text, _, _ in texts}) == 1, texts
    assert [disk.files() for disk in job.disks] == files


def test_a_job_of_one_process_saves_as_usual(tmp_path) -> None:
    with testing.Job(processes=1, devices=2, timeout=90) as job:
        assert job.run(mp_disagreement.device_table, str(tmp_path / "d"), ["CPU:0", "/job:localhost", 0]) == [
            [("", True, 1)] * 3
        ]
        ((text, exists, counter),) = job.run(mp_disagreement.device_table, str(tmp_path / "e"), ["/task:1"])[0]
        assert text
        assert not exists
        assert counter == 0
        (path,) = job.run(mp_resharding.save_layouts, str(tmp_path / "f"), 0)
        job.run(mp_resharding.restore_layouts, path, 0)
