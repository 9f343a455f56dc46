"""Where the time of one asynchronous save and one restore goes: ``python -m benchmarks.profile --state L``.

Every phase is timed by itself: what it spends in another phase of the table, or waiting for one on a thread of Orbax, is not counted
twice. Phases are found by name; one that a later version does not have any more is left out, and said so.
"""

import argparse
import contextlib
import functools
import importlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import google_crc32c
import jax

from benchmarks import report, states

# What is shown, and the function (module, qualified name) that it is. Where a save or restore starts comes last.
_PHASES = (
    ("names and leaves of the tree", "jaxckpt.tree.flatten", "flatten"),
    ("snapshot", "jaxckpt.saving.snapshot", "take"),
    ("translate options", "jaxckpt.translate", "to_orbax"),
    ("start the background", "jaxckpt.saving.background", "Background.take"),
    ("sweep leftovers", "jaxckpt.storage.commit.rename_leftovers", "sweep"),
    ("temporary directory", "jaxckpt.storage.commit.temporary", "TemporaryDirectory.__init__"),
    ("Orbax checkpointer", "jaxckpt.storage.orbax", "write_item"),
    ("arrays", "jaxckpt.storage.arrays.writer", "write"),
    ("tree metadata", "jaxckpt.storage.item.tree_text", "write"),
    ("digests", "jaxckpt.storage.item.digests", "write"),
    ("fsync of metadata and directories", "jaxckpt.storage.stores.local", "sync_tree"),
    ("rename", "jaxckpt.storage.commit.moves", "publish"),
    ("remove the temporary directory", "jaxckpt.storage.commit.temporary", "remove"),
    ("register as latest", "jaxckpt.directory.registration", "register"),
    ("rest of the commit", "jaxckpt.storage.commit.save", "save"),
    ("open and check metadata", "jaxckpt.storage.opened", "StoredCheckpoint.__init__"),
    ("match names", "jaxckpt.restoring", "match"),
    ("shapes and dtypes", "jaxckpt.storage.opened", "StoredCheckpoint.infos"),
    ("read and verify arrays", "jaxckpt.storage.opened", "StoredCheckpoint.read"),
    ("place on devices", "jax", "device_put"),
    ("validate and build values", "jaxckpt.restoring", "load"),
    ("put values in place", "jaxckpt.loading", "carry_out"),
)
_REST = "rest"
# While Orbax's own thread writes, this one waits.
_WAITING = "Orbax checkpointer"
_WRITING = "arrays"


class Profile:
    """Seconds by phase, on the caller's thread and in the background."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._stacks = threading.local()
        self._seconds: dict[tuple[bool, str], float] = defaultdict(float)
        self._caller = threading.get_ident()
        # Threads may append to a list at the same time.
        self._checksums: list[float] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time in the block as this phase's, less what inner phases take."""
        stack: list[float] = self._stacks.__dict__.setdefault("inner", [])
        stack.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[threading.get_ident() == self._caller, name] += elapsed - stack.pop()
            if stack:
                stack[-1] += elapsed
            elif name == _WRITING:
                self._seconds[False, _WAITING] -= elapsed

    def take(self) -> dict[tuple[bool, str], float]:
        """Returns what was counted, and begins anew."""
        counted, self._seconds = dict(self._seconds), defaultdict(float)
        return counted

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Times all phases while the block runs."""
        with contextlib.ExitStack() as stack:
            for name, module, qualified in _PHASES:
                owner: Any = importlib.import_module(module)
                *path, attribute = qualified.split(".")
                for part in path:
                    owner = getattr(owner, part, None)
                function = getattr(owner, attribute, None)
                if function is None:
                    self.missing.append(f"{name} ({module}.{qualified})")
                    continue
                setattr(owner, attribute, self._timed(name, function))
                stack.callback(setattr, owner, attribute, function)
            for attribute in ("extend", "value"):
                function = getattr(google_crc32c, attribute)
                setattr(google_crc32c, attribute, self._counted(function))
                stack.callback(setattr, google_crc32c, attribute, function)
            yield

    def take_checksums(self) -> float:
        """Returns the seconds of processor time that crc32c took since the last time, on all threads."""
        counted, self._checksums = sum(self._checksums), []
        return counted

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args)
            finally:
                self._checksums.append(time.thread_time() - started)

        return counted

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


def main(arguments: Sequence[str] | None = None) -> int:
    """Profiles and prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", default="L", choices=states.NAMES, help="what is saved")
    parser.add_argument(
        "--rounds", type=report.positive, default=3, help="saves and restores; medians are shown (default: 3)"
    )
    parser.add_argument("--dir", help="where to save (default: a temporary directory)")
    chosen = parser.parse_args(arguments)
    state = states.make(chosen.state)
    with tempfile.TemporaryDirectory(prefix="jaxckpt-profile-", dir=chosen.dir) as directory:
        saves, restores, checksums, missing = _run(state, directory, chosen.rounds)
    print(f"Save of {chosen.state}: caller\n{report.table(_rows(saves, True))}\n")
    print(f"Save of {chosen.state}: background\n{report.table(_rows(saves, False))}\n")
    print(f"Restore of {chosen.state}\n{report.table(_rows(restores, True))}")
    saving, restoring = (1e3 * median(seconds) for seconds in zip(*checksums, strict=True))
    print(f"\ncrc32c, part of these: {saving:.1f} ms of processor time of the save, {restoring:.1f} ms of the restore")
    for name in missing:
        print(f"not in this version: {name}")
    return 0


_Counted = list[dict[tuple[bool, str], float]]


def _run(
    state: states.State, directory: str, rounds: int
) -> tuple[_Counted, _Counted, list[tuple[float, float]], list[str]]:
    import jaxckpt

    path = os.path.join(directory, "state")
    checkpoint = jaxckpt.Checkpoint(**state)
    options = jaxckpt.CheckpointOptions(enable_async=True)
    jaxckpt.Checkpoint(**states.make("tiny-s")).read(
        checkpoint_path := jaxckpt.Checkpoint(**states.make("tiny-s")).write(path)
    )
    shutil.rmtree(checkpoint_path)
    profile = Profile()
    saves: _Counted = []
    restores: _Counted = []
    checksums: list[tuple[float, float]] = []
    with profile.watching():
        for _ in range(rounds):
            with profile.phase(_REST):
                checkpoint.save(path, options)
            checkpoint.sync()
            saves.append(profile.take())
            saving = profile.take_checksums()
            target = jaxckpt.Checkpoint(**states.targets(state))
            saved = jaxckpt.latest_checkpoint(directory)
            profile.take()
            profile.take_checksums()
            with profile.phase(_REST):
                target.restore(saved).assert_consumed()
                jax.block_until_ready([getattr(target, name) for name in state])
            restores.append(profile.take())
            checksums.append((saving, profile.take_checksums()))
            shutil.rmtree(str(saved))
    return saves, restores, checksums, profile.missing


def _rows(counted: _Counted, on_caller: bool) -> list[list[str]]:
    names = dict.fromkeys([name for name, *_ in _PHASES] + [_REST])
    medians = {name: median(one.get((on_caller, name), 0.0) for one in counted) for name in names}
    total = sum(medians.values()) or 1.0
    rows = [["", "ms", "%"]]
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        if seconds > 0:
            rows.append([name, f"{seconds * 1e3:.1f}", f"{100 * seconds / total:.0f}"])
    return [*rows, ["sum", f"{total * 1e3:.1f}", "100"]]


if __name__ == "__main__":
    sys.exit(main())
