"""A process of a job whose program ends while an asynchronous save runs: ``ending_program.py INDEX ADDRESS PREFIX IO WHO HOW``."""

import sys
import time
from typing import Any

import jax

index, address, prefix, io, who, how = sys.argv[1:]
jax.distributed.initialize(address, 3, int(index))

import fault_programs as programs  # noqa: E402

import jaxckpt  # noqa: E402
from jaxckpt.job.modes import fetcher  # noqa: E402

original = fetcher.Fetcher._ask


def slowly(self: Any, *args: Any) -> Any:
    time.sleep(0.2)
    return original(self, *args)


fetcher.Fetcher._ask = slowly  # type: ignore[method-assign]
checkpoint = jaxckpt.Checkpoint(**programs.tree(7))
checkpoint.save(prefix, programs.options(int(io), 60, True))
if index != who:
    time.sleep(0.3)
elif how == "exit":
    sys.exit(3)
elif how == "exception":
    raise ValueError("the end")
