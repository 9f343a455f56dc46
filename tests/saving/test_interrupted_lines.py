"""A Ctrl-C at every single line that a save passes: the checkpoint is there and registered, or nothing of it is; the next call works."""

import linecache
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import jaxckpt

pytestmark = pytest.mark.slow

PACKAGE = os.path.dirname(jaxckpt.__file__)
# The lines at which an interrupt could leave something half done; what only computes is passed quickly.
MODULES = (
    *("_lib/uninterrupted", "checkpoint", "manager", "saver"),
    *(
        "directory/lock",
        "directory/free_numbers",
        "directory/counter",
        "directory/hooks",
        "directory/registration",
        "directory/series",
    ),
    *("directory/on_disk", "directory/state_file/file"),
    *("saving/background", "saving/program_end", "saving/save", "saving/saves"),
    *(
        "storage/commit/checkpoint_path",
        *("storage/commit/by_rename", "storage/commit/save", "storage/commit/moves"),
        *("storage/commit/temporary", "storage/owner"),
        *("storage/stores/removal", "storage/stores/descriptors"),
    ),
)
FILES = {os.path.join(PACKAGE, f"{module}.py") for module in MODULES}
assert all(map(os.path.exists, FILES))


# One line in so many; 1 tries all of them.
STEP = int(os.environ.get("JAXCKPT_INTERRUPTED_LINES", "11"))


class Interrupt:
    """Raises KeyboardInterrupt on this thread before the nth line of the modules above. Counts lines."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.lines = 0
        self.at = ""

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        last = 0

        def each(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                line, last_line = frame.f_lineno, last
                last = line
                # The end of a `with` is traced as a line of its own. No signal is handled there, before the lock is released.
                if line < last_line and linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("with "):
                    return each
                self.lines += 1
                if self.lines == self.nth:
                    self.at = f"{frame.f_code.co_filename}:{line}"
                    raise KeyboardInterrupt
            return each

        return each

    def __enter__(self) -> "Interrupt":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)


def interrupted_call(interrupt: Interrupt, call: Callable[[], Any]) -> Iterator[Any]:
    """Yields what `call` returned, or the interrupt.

    In a generator, which has a stack of handled exceptions of its own: one that is raised while Python 3.11 leaves an `except` block, as no
    signal's is, would otherwise be the context of whatever this thread raises from then on.
    """
    try:
        with interrupt:
            result = call()
    except KeyboardInterrupt as error:
        yield error
    else:
        yield result


def entries(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["save", "manager", "write"])
def test_an_interrupt_at_every_line(
    kind: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "mine").mkdir(parents=True)
    (work / "mine" / "file").write_text("mine")
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(work)
    checkpoint = jaxckpt.Checkpoint(value=np.zeros(3))
    options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
    manager = jaxckpt.CheckpointManager(checkpoint, "run", max_to_keep=2, options=options)
    calls: dict[str, Callable[[], Any]] = {
        "save": lambda: checkpoint.save("run/ckpt", options),
        "manager": manager.save,
        "write": lambda: checkpoint.write("run/exact", options),
    }
    call = calls[kind]
    call()
    checkpoint.sync()
    nth, at = 1, "the beginning"
    interrupted = 0
    removed: set[str] = set()
    while at:
        before = set(jaxckpt.CheckpointManager(checkpoint, "run", max_to_keep=None).checkpoints)
        checkpoint.value = np.full(3, float(nth))
        path = None

        def call_and_wait() -> None:
            nonlocal path
            path = call()
            checkpoint.sync()

        interrupt = Interrupt(nth)
        interrupted += next(interrupted_call(interrupt, call_and_wait)) is not None
        at = interrupt.at
        checkpoint.sync()
        assert entries(tmp_path) == {"work", "checkpoint"}, at
        assert entries(work) == {"mine", "run"}, at
        assert (work / "mine" / "file").read_text() == "mine", at
        if kind == "write":
            assert jaxckpt.verify("run/exact").ok, at
            value = jaxckpt.load_variable("run/exact", "value")[0]
            assert value == nth or at, at
            assert {name for name in entries(work / "run") if "tmp" not in name} == {"exact"}, at
        else:
            latest = jaxckpt.latest_checkpoint("run")
            assert latest is not None, at
            state = jaxckpt.get_checkpoint_state("run")
            assert state is not None, at
            on_disk = {
                f"run/{name}" for name in entries(work / "run") if name.startswith("ckpt-") and "tmp" not in name
            }
            assert set(state.all_model_checkpoint_paths) - removed == on_disk, at
            value = jaxckpt.load_variable(latest, "value")[0]
            if path is not None:
                assert (latest, value) == (path, nth), at
            if latest not in before:
                assert value == nth, at
        # The next call works, and removes what was left.
        checkpoint.value = np.full(3, -1.0)
        path = call()
        checkpoint.sync()
        assert jaxckpt.load_variable(path, "value")[0] == -1.0, at
        assert not [name for name in entries(work / "run") if "tmp" in name], at
        for name in entries(work / "run") - {os.path.basename(path), "checkpoint"}:
            shutil.rmtree(work / "run" / name)
            removed.add(f"run/{name}")
        nth += STEP
    assert interrupted > 10
    assert sys.exc_info()[1] is None
