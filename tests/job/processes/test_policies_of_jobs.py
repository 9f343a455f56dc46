"""Policies, metrics and numbers that are steps, in jobs of several processes: all decide the same."""

import mp_policies
import pytest

from jaxckpt import testing

PLACES = [
    pytest.param(True, 1, marks=testing.requires_private_disks, id="io-1"),
    pytest.param(False, None, id="shared"),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("private", "io"), PLACES)
def test_all_processes_decide_the_same(jobs, private: bool, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(3, private=private)
    directory = jobs.directory(job)
    found = job.run(mp_policies.manage, directory, io, asynchronous)

    def path(step: int) -> str:
        return f"{directory}/ckpt-{step}"

    writer = io or 0
    for process, one in enumerate(found):
        named = one.pop("names it")
        assert one == {
            "fixed": [None, path(2), None, path(4), None, path(6), None, path(8)],
            "kept": [path(4), path(8)],
            "best": (path(4), path(8)),
            "existing": [None],
            "warned": ["Nothing was saved: there is a checkpoint of step 4 already"],
            # The process that writes is asked.
            "stubborn": [path(step) if (step + writer) % 2 == 0 else None for step in range(10, 16)],
            # The first one is due only if none is younger than an hour.
            "continuous": [None] * 4,
            "mixed": [path(step) if (step + writer) % 2 == 0 else None for step in range(24, 27)],
            "counted": sum((step + writer) % 2 for step in range(24, 27)),
            "broken": (True, True),
            "unbroken": [path(31)],
            "restored": path(31),
        }, process
        assert named == ([True] if process == writer else [])
