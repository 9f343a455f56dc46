"""The process that reads hostile checkpoints: one case after the other, until one of them kills it.

Run as a program. Reads lines ``SEED NUMBER``, and answers each with a line of JSON.
"""

import faulthandler
import gc
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

# What a call may take.
SECONDS, BYTES = 5.0, 200 << 20
# Bytes of addresses, besides those of a fresh worker: an allocation that is too large must not take the machine with it.
ROOM = 8 << 30


def main() -> None:
    # Answers go to where standard output was: whatever is printed must not get between them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from hostile import readers

    readers.quiet()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, resource.RLIM_INFINITY))
    # Where there is one, in a file system that is memory: cases are made and removed by the thousand.
    root = Path(tempfile.mkdtemp(prefix="hostile-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    # Kept open: what kills this process is written there.
    stacks = open(root / "stacks", "w")  # noqa: SIM115
    faulthandler.enable(stacks)
    answers.write(json.dumps({"root": str(root)}) + "\n")
    answers.flush()
    for line in sys.stdin:
        seed, number = map(int, line.split())
        answers.write(json.dumps(_run(seed, number, root / f"{seed}-{number}", answers)) + "\n")
        answers.flush()
    shutil.rmtree(root, ignore_errors=True)


def _run(seed: int, number: int, directory: Path, answers: Any) -> dict[str, Any]:
    from hostile import cases, readers

    try:
        case = cases.make_case(seed, number, directory)
    except Exception as error:
        # A mistake in the fuzzer itself, which counts.
        ending = {
            "kind": "exception",
            "call": "making the case",
            "traceback": "".join(traceback.format_exception(error)),
        }
        return {"what": [], "findings": [ending]}
    answers.write(json.dumps({"what": case.what}) + "\n")
    rng = random.Random(f"{seed}:{number}:readers")
    # Not rglob, which follows links.
    on_disk = sum(
        os.lstat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(directory)
        for name in names
    )
    found: dict[str, Any] = {"what": case.what, "errors": {}, "findings": [], "seconds": 0.0, "bytes": 0}
    answers.write(json.dumps({"call": "making the targets"}) + "\n")
    answers.flush()
    readers.targets(case)
    for name, call in readers.read_all(case, rng):
        answers.write(json.dumps({"call": name}) + "\n")
        answers.flush()
        ending, seconds, grown = _measured(call, readers.EXPECTED, on_disk)
        if seconds > SECONDS or grown > BYTES:
            # Other programs, and what runs on after an earlier call, count only once.
            gc.collect()
            _, again, more = _measured(call, readers.EXPECTED, on_disk)
            seconds, grown = min(seconds, again), min(grown, more)
        found["errors"][ending["error"]] = found["errors"].get(ending["error"], 0) + 1
        found["seconds"], found["bytes"] = max(found["seconds"], seconds), max(found["bytes"], grown)
        if "traceback" in ending:
            found["findings"].append({"kind": "exception", "call": name, **ending})
        if seconds > SECONDS:
            found["findings"].append({"kind": "hang", "call": name, "seconds": seconds})
        if grown > BYTES:
            found["findings"].append({"kind": "memory", "call": name, "bytes": grown})
    shutil.rmtree(directory, ignore_errors=True)
    return found


def _measured(call: Any, expected: tuple[type[BaseException], ...], on_disk: int) -> tuple[dict[str, str], float, int]:
    """Returns how a call ended, the seconds that it took, and the bytes of memory besides those on disk.

    The time in which this thread could have run, but other programs had the processors, does not count.
    """
    before = _reset_peak()
    start = time.monotonic() - _delayed()
    ending = _ending(call, expected)
    return ending, time.monotonic() - _delayed() - start, _status("VmHWM") - before - on_disk


def _delayed() -> float:
    """Returns the seconds that this thread has waited for a processor."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        # The kernel does not count them.
        return 0.0


def _ending(call: Any, expected: tuple[type[BaseException], ...]) -> dict[str, str]:
    from jaxckpt._lib.documents import DamagedError

    try:
        call()
    except (UnicodeError, DamagedError) as error:
        # They are ValueErrors as well, but not meant for users: they do not say which file it is.
        return {"error": type(error).__name__, "traceback": "".join(traceback.format_exception(error))[-3000:]}
    except expected as error:
        return {"error": type(error).__name__}
    except BaseException as error:
        return {"error": type(error).__name__, "traceback": "".join(traceback.format_exception(error))[-3000:]}
    return {"error": "none"}


def _reset_peak() -> int:
    """Returns the memory in use, from which on its peak counts."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


if __name__ == "__main__":
    main()
