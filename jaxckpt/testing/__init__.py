"""For tests of JAX programs on several processes: starts the processes on this machine, and returns their results.

>>> from jaxckpt import testing
>>> with testing.Job(processes=3, devices=2) as job:
...     assert job.run(program.train, 10) == [0.5, 0.5, 0.5]

This package imports only the standard library. The started processes import JAX.
"""

from typing import TYPE_CHECKING, Any

from jaxckpt.testing.disks import Disk, private_disks_problem
from jaxckpt.testing.job import Job
from jaxckpt.testing.oneshot import run
from jaxckpt.testing.process import pause, signal
from jaxckpt.testing.results import JobFailed, JobTimeout, ProcessResult, RemoteError

if TYPE_CHECKING:
    import pytest

    requires_private_disks: pytest.MarkDecorator

__all__ = [
    "Disk",
    "Job",
    "JobFailed",
    "JobTimeout",
    "ProcessResult",
    "RemoteError",
    "pause",
    "private_disks_problem",
    "requires_private_disks",
    "run",
    "signal",
]


def __getattr__(name: str) -> Any:
    if name != "requires_private_disks":
        raise AttributeError(f"module 'jaxckpt.testing' has no attribute {name!r}")
    # Imported here, because only tests need pytest.
    import pytest

    problem = private_disks_problem()
    return pytest.mark.skipif(problem is not None, reason=problem or "")
