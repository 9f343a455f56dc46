"""Programs that save and are killed, several each second: they are forked from one process that has imported everything.

Run as a program, this reads jobs as lines of JSON from standard input. For each it forks a child, which runs the job's calls; kills
the child with SIGKILL at the moment that the job names; and answers with a line of JSON: what the child had reported, and how it
ended. JAX's backend starts in the child: a process that has one cannot be forked.

A job is ``{"directory", "calls", "moment", "sync"}``. A call is a dict of ``"kind"`` (``save``, ``manager`` or ``write``), ``"seed"`` of
the values, ``"variant"`` of the options, for the manager ``"max_to_keep"`` and ``"number"``. Of the I-th call, the child reports
``begin I``, ``committed I PATH`` (from the write callback) and ``done I PATH``.

The moment is ``{"after": "begin I", "events": N}`` or ``{"after": "committed I", "seconds": S}``: so many operations of Python on files,
or so long, after that report. An audit hook sees operations just before they happen, so that each of them can be hit; time finds
what TensorStore's threads do between them.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

import numpy as np

import jaxckpt

# Elements of the large array: more than one chunk.
SIZE = 20_000
DEADLINE_SECS = 60.0
VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {},
    "async": {"enable_async": True},
    "zstd": {"orbax": jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=60_000)},
    "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(60_000)},
}
# What Python does to files. (fsync raises no event.)
_EVENTS = {"open", "shutil.rmtree"} | {
    f"os.{name}" for name in ("rename", "mkdir", "remove", "rmdir", "listdir", "scandir", "link", "truncate", "chmod")
}


def values(seed: int) -> dict[str, Any]:
    """The values of one save: every leaf tells which."""
    return {
        "large": np.arange(SIZE) * 7 + seed,
        "small": [np.full(3, seed, np.int32), np.full(2, seed)],
        "step": seed,
        "text": f"seed {seed}",
    }


def seed_of(path: str) -> int:
    """Restores a checkpoint into a new program's targets; returns the seed of its values, which must all be of one."""
    checkpoint = jaxckpt.Checkpoint(**values(0))
    checkpoint.restore(path).assert_consumed()
    seed = int(checkpoint.step)
    expected = values(seed)
    for name in ("large", "step", "text"):
        np.testing.assert_array_equal(getattr(checkpoint, name), expected[name], strict=name == "large")
    for found, wanted in zip(checkpoint.small, expected["small"], strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)
    return seed


class _Child:
    def __init__(self, job: dict[str, Any], pipe: int) -> None:
        self._job = job
        self._pipe = pipe
        self._armed = False
        self._left = job["moment"].get("events", -1)

    def report(self, what: str, path: str = "") -> None:
        os.write(self._pipe, f"{what} {path}\n".encode())
        self._armed = self._armed or ("events" in self._job["moment"] and what == self._job["moment"]["after"])

    def audit(self, event: str, arguments: Any) -> None:
        if self._armed and event in _EVENTS:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> None:
        sys.addaudithook(self.audit)
        directory = self._job["directory"]
        checkpoint = jaxckpt.Checkpoint(**values(0))
        managers: dict[int, jaxckpt.CheckpointManager] = {}
        prefix = os.path.join(directory, "ckpt")
        if (latest := jaxckpt.latest_checkpoint(directory)) is not None:
            checkpoint.restore(latest).assert_consumed()
        for index, call in enumerate(self._job["calls"]):
            for name, value in values(call["seed"]).items():
                setattr(checkpoint, name, value)

            def committed(path: str, index: int = index) -> None:
                self.report(f"committed {index}", path)

            options = jaxckpt.CheckpointOptions(
                experimental_write_callbacks=[committed], **VARIANTS[call.get("variant", "packed")]
            )
            self.report(f"begin {index}")
            if call["kind"] == "save":
                path = checkpoint.save(prefix, options)
            elif call["kind"] == "write":
                path = checkpoint.write(os.path.join(directory, "exact"), options)
            else:
                keep = call["max_to_keep"]
                if keep not in managers:
                    managers[keep] = jaxckpt.CheckpointManager(checkpoint, directory, keep)
                path = str(managers[keep].save(call.get("number"), options=options))
            if self._job.get("sync", True):
                checkpoint.sync()
            self.report(f"done {index}", path)
        checkpoint.close()


def _serve(job: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            _Child(job, writing).run()
            status = 0
        except BaseException:
            import traceback

            os.write(writing, f"error {traceback.format_exc()!r}\n".encode())
        finally:
            os._exit(status)
    os.close(writing)
    moment = job["moment"]
    deadline = time.monotonic() + DEADLINE_SECS
    text = ""
    kill_at = None
    hung = False
    while True:
        until = deadline if kill_at is None else min(deadline, kill_at)
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            hung = kill_at is None or time.monotonic() >= deadline
            os.kill(pid, signal.SIGKILL)
            kill_at, deadline = None, time.monotonic() + DEADLINE_SECS
            continue
        part = os.read(reading, 65536)
        if not part:
            break
        text += part.decode()
        if kill_at is None and "seconds" in moment and f"{moment['after']} " in text:
            kill_at = time.monotonic() + moment["seconds"]
            moment = {}
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    reports = [line.split(" ", 2) if not line.startswith("error") else [line] for line in text.splitlines()]
    return {"reports": reports, "status": os.waitstatus_to_exitcode(status), "hung": hung}


def main() -> None:
    # Imported once, for all children. Nothing here may start JAX's backend or a thread.
    for name in (
        "orbax.checkpoint",
        "tensorstore",
        "jaxckpt.manager",
        "jaxckpt.directory.registration",
        "jaxckpt.storage.verify",
    ):
        importlib.import_module(name)
    # Children must not copy what they only collect.
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
