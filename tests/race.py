"""A trainer that keeps only its newest checkpoint, and an evaluator that reads beside it.

    python tests/race.py --secs 120

Every read either returns the values of one save or raises FileNotFoundError: a checkpoint that goes away while it is read is not
damaged. Exits 1 and prints the errors otherwise. A short run is part of the tests (`test_deleted.py`).
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

import jaxckpt
from jaxckpt import cli

SIZE = 60_000
# Options that lead to the ways in which arrays are stored and read.
STORED: dict[str, dict[str, Any]] = {
    "packed": {},
    "zstd": {"orbax": jaxckpt.OrbaxSettings(compression="zstd", chunk_byte_size=100_000)},
    "files": {"experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(100_000)},
}


def values(seed: int) -> dict[str, Any]:
    """The values of one save: every leaf tells which."""
    small = {f"{number}": np.full(3, seed, np.int32) for number in range(8)}
    return {"large": np.arange(SIZE) * 7 + seed, "small": small, "step": seed, "text": f"seed {seed}"}


def check(found: dict[str, Any]) -> None:
    """Raises AssertionError unless all values are those of one save."""
    expected = values(int(found["step"]))
    assert found["text"] == expected["text"]
    assert np.array_equal(found["large"], expected["large"])
    assert all(np.array_equal(found["small"][name], value) for name, value in expected["small"].items())


def train(directory: Path, secs: float) -> None:
    """Saves as fast as it can: by managers, over and over at one path, and as a program that removes directories itself."""
    managers = {}
    for name, options in STORED.items():
        checkpoint = jaxckpt.Checkpoint(**values(0))
        managers[name] = jaxckpt.CheckpointManager(
            checkpoint, directory / name, 1, options=jaxckpt.CheckpointOptions(**options)
        )
    end = time.monotonic() + secs
    removed = jaxckpt.Checkpoint(**values(0))
    before: str | None = None
    for seed in itertools.count(1):
        if time.monotonic() > end:
            return
        for manager in managers.values():
            for name, value in values(seed).items():
                setattr(manager.checkpoint, name, value)
            manager.save()
        again = jaxckpt.Checkpoint(**values(seed))
        again.write(directory / "again" / "ckpt")
        for name, value in values(seed).items():
            setattr(removed, name, value)
        path = removed.save(directory / "removed" / "ckpt")
        if before is not None:
            shutil.rmtree(before)
        before = path


def latest(directory: Path, kind: str) -> str | None:
    return str(directory / kind / "ckpt") if kind == "again" else jaxckpt.latest_checkpoint(directory / kind)


def restore(path: str) -> None:
    checkpoint = jaxckpt.Checkpoint(**values(0))
    checkpoint.restore(path).assert_consumed()
    check({name: getattr(checkpoint, name) for name in values(0)})


def read_tree(path: str) -> None:
    check(jaxckpt.load_checkpoint(path).tree())


def read_slowly(path: str) -> None:
    reader = jaxckpt.load_checkpoint(path)
    step = int(reader.get_tensor("step"))
    for name in ("large", "small/7", "text", "small/0"):
        time.sleep(0.01)
        found = reader.get_tensor(name)
        assert np.array_equal(
            found, {**values(step), **{f"small/{n}": v for n, v in values(step)["small"].items()}}[name]
        )


def verify(path: str) -> None:
    report = jaxckpt.verify(path)
    assert report.ok, report


def command_line(path: str) -> None:
    for command in ("verify", "inspect"):
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = cli.main([command, path])
        if code:
            text = errors.getvalue()
            assert (
                "deleted while it was read" in text or "No checkpoint at this path" in text or "No such file" in text
            ), text
            raise FileNotFoundError(text)


READS: tuple[Callable[[str], None], ...] = (restore, read_tree, read_slowly, verify, command_line)


def evaluate(directory: Path, trainer: "subprocess.Popen[bytes]") -> tuple[collections.Counter[str], list[str]]:
    """Reads until the trainer ends. Returns how often what happened, and the errors that must not be."""
    counts: collections.Counter[str] = collections.Counter()
    errors = []
    for number in itertools.count():
        if trainer.poll() is not None:
            break
        kind = (*STORED, "again", "removed")[number % 5]
        action = READS[number // 5 % len(READS)]
        path = latest(directory, kind)
        if path is None or not os.path.exists(path):
            continue
        counts["reads"] += 1
        try:
            action(path)
        except FileNotFoundError as error:
            counts[f"FileNotFoundError: {kind}"] += 1
            counts["while it was read"] += "while it was read" in str(error)
        except Exception as error:
            errors.append(f"{kind}: {action.__name__}: {type(error).__name__}: {error}")
    return counts, errors


def run(directory: Path, secs: float) -> tuple[collections.Counter[str], list[str]]:
    """Runs a trainer, and reads beside it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))}
    command = [sys.executable, __file__, "--train", str(directory), "--secs", str(secs)]
    trainer = subprocess.Popen(command, env=environment)
    try:
        counts, errors = evaluate(directory, trainer)
    finally:
        trainer.kill()
        trainer.wait()
    return counts, errors


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=120.0, help="how long")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train, arguments.secs)
        return 0
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as directory:
        counts, errors = run(Path(directory), arguments.secs)
    print(json.dumps(counts, indent=2))
    for error in errors:
        print(error)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
