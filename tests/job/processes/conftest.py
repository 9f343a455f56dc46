"""Jobs of several processes, shared by the tests of this directory: they take seconds to start."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import mp_programs
import pytest

from jaxckpt import testing

_ENVIRONMENT = {"PYTHONWARNINGS": "error::UserWarning,error::RuntimeWarning,error::DeprecationWarning:jaxckpt"}


class Jobs:
    """Jobs by what they are like. One that a failed test has ended is replaced."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()
        self._jobs: dict[tuple[int, bool], testing.Job] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs.values():
            job.__exit__(None, None, None)

    def job(self, processes: int, *, private: bool = True) -> testing.Job:
        key = processes, private
        job = self._jobs.get(key)
        if job is not None:
            try:
                assert None not in job.run(mp_programs.index)
            except Exception:
                with contextlib.suppress(Exception):
                    job.__exit__(None, None, None)
            else:
                return job
        path = self._directory / f"private-{next(self._numbers)}" if private else None
        job = testing.Job(processes=processes, devices=2, private=path, timeout=90, env=_ENVIRONMENT)
        job.__enter__()
        self._jobs[key] = job
        return job

    def directory(self, job: testing.Job) -> str:
        """A directory that no other test uses: on the private disks, or on the shared one."""
        return os.path.join(
            job.private or self._directory, f"{'mine' if job.private else 'shared'}-{next(self._numbers)}"
        )


@pytest.fixture(scope="package")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    with Jobs(tmp_path_factory.mktemp("jobs")) as jobs:
        yield jobs
