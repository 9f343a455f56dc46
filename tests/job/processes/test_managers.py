"""Managers, callbacks and saves in the background, in jobs of several processes."""

import mp_managing
import pytest

from jaxckpt import testing

PLACES = [
    pytest.param(True, 1, marks=testing.requires_private_disks, id="io-1"),
    pytest.param(True, 0, marks=testing.requires_private_disks, id="io-0"),
    pytest.param(False, None, id="shared"),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("private", "io"), PLACES)
def test_managers_agree_and_resume(jobs, private: bool, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(3, private=private)
    directory = jobs.directory(job)
    found = job.run(mp_managing.manage, directory, io, asynchronous)

    def path(number: int) -> str:
        return f"{directory}/ckpt-{number}"

    saved = [path(1), None, path(2), None, path(3), None, path(4), None, path(5)]
    called = [name for name in saved if name] + [path(70)]
    for process, one in enumerate(found):
        assert one == {
            "first": None,
            "latest of none": None,
            "iterated none": [],
            "started": [1],
            "saved": saved,
            "counter": 5,
            "explicit": None,
            "numbered": path(70),
            "after": (6, [path(5), path(70)], path(70)),
            "state": (path(70), [path(5), path(70)]),
            "latest": path(70),
            "iterated": [path(70)],
            "called": called if process == (io or 0) else [],
        }
    resumed = [[path(70), 41, 7, path(7), [path(70), path(7)]]] * 3
    # Once in a job of its own, which takes seconds to start.
    if private and io and not asynchronous:
        with testing.Job(processes=3, devices=2, private=job.private, disks=job.disks, timeout=90) as later:
            assert later.run(mp_managing.resume, directory, io) == resumed
    else:
        assert job.run(mp_managing.resume, directory, io) == resumed
    if private:
        assert [
            any(directory.removeprefix(f"{job.private}/") in file for file in disk.files()) for disk in job.disks
        ] == [process == io for process in range(3)]


@testing.requires_private_disks
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("io", [0, 1])
def test_a_manager_without_options_answers_like_its_last_save(jobs, io: int, asynchronous: bool) -> None:
    job = jobs.job(3)
    directory = jobs.directory(job)
    found = job.run(mp_managing.manage_by_save, directory, io, asynchronous)
    kept = [[1], [1, 2], [2, 3], [3, 4]]
    seen = [
        ([f"{directory}/ckpt-{number}" for number in numbers], f"{directory}/ckpt-{numbers[-1]}") for numbers in kept
    ]
    assert found == [[seen, f"{directory}/ckpt-4", 3]] * 3
    inside = directory.removeprefix(f"{job.private}/")
    for process, disk in enumerate(job.disks):
        names = {file.partition(f"{inside}/")[2].split("/")[0] for file in disk.files() if inside in file}
        assert names == ({"checkpoint", "ckpt-3", "ckpt-4"} if process == io else set())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("private", "io"), PLACES)
def test_callbacks_that_raise(jobs, private: bool, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(3, private=private)
    for count in (1, 2):
        directory = jobs.directory(job)
        for process, one in enumerate(job.run(mp_managing.failing_callbacks, directory, io, asynchronous, count)):
            (kinds, text), called, latest, counter, again = one
            if process == (io or 0):
                assert kinds[0] == ("KeyError" if count == 1 else "ExceptionGroup")
                assert called == [f"{directory}/ckpt-1"] * (count + 1)
            else:
                assert "ProcessError" in kinds
                assert f"rocess {io or 0}" in text
                assert "told to fail" in text
                assert called == []
            assert (latest, counter, again) == (f"{directory}/ckpt-1", 2, f"{directory}/ckpt-2")


@pytest.mark.parametrize(("private", "io"), PLACES)
def test_training_goes_on_during_a_save(jobs, private: bool, io: int | None) -> None:
    job = jobs.job(3, private=private)
    assert job.run(mp_managing.train_while_saving, jobs.directory(job), io) == [30] * 3


@testing.requires_private_disks
def test_the_example_of_the_documentation(jobs) -> None:
    job = jobs.job(3)
    assert job.run(mp_managing.example_of_the_documentation, jobs.directory(job)) == [[(2, 2.0), (5, 5.0)]] * 3
