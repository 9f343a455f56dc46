"""``jaxckpt demo --processes``: starts the processes, shows what they report, and what is on their disks."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxckpt import CheckpointConfig, testing
from jaxckpt._lib.output import Progress, describe, human_bytes, table
from jaxckpt.demo import remote
from jaxckpt.demo.loop import Run
from jaxckpt.demo.saves import SaveLog
from jaxckpt.job.devices import parse_device, parse_spec, process_of

_START_SECS = 120.0
# As long as it takes: JAX ends the job if a process is gone, Ctrl-C if the user is tired of it.
_TRAINING_SECS = 7 * 86400.0
_HEARTBEAT_SECS = 60  # A laptop that is busy, or asleep for a moment, is no dead process.
_POLL_SECS = 0.05
_OUTPUT_LINES = 20


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of a job are.

    Attributes:
      directory: of the checkpoints, as the processes see it.
      disks: directories that the processes see there, one each; None if all see the same.
      holder: the directory, as the user sees it, that has the checkpoints.
      note: what the user should know.
    """

    directory: str
    disks: list[str] | None
    holder: str
    note: str


def io_process(saving: CheckpointConfig, processes: int) -> int | None:
    """Returns the process that the config's device names; None for None.

    Raises:
      ValueError: there is no such process, or it has no such device.
    """
    device = parse_device(saving.options.experimental_io_device)
    if device is None:
        return None
    text = f"/task:{device}" if isinstance(device, int) else str(device)
    spec = parse_spec(text)
    index = process_of(spec, str(device), processes)
    if processes > 1 and (spec.device_type not in (None, "CPU") or spec.ordinal):
        raise ValueError(
            f"experimental_io_device={device!r}: process {index} has no such device. Each of the {processes} processes has CPU:0."
        )
    return index


def place(saving: CheckpointConfig, processes: int) -> Place:
    """Decides where the checkpoints are: on private disks if one process has all files and the system permits them.

    Raises:
      ValueError: there is no such process, or checkpoints of another run are in another place below the directory.
    """
    index = io_process(saving, processes)
    disks = [os.path.join(saving.directory, "disks", f"process-{one}") for one in range(processes)]
    chosen = Place(saving.directory, None, saving.directory, "all processes see this directory")
    if processes > 1 and index is not None:
        if (problem := testing.private_disks_problem()) is not None:
            note = f"only process {index} uses it; no private disks here: {problem}"
            chosen = Place(saving.directory, None, saving.directory, note)
        else:
            local = os.path.join(saving.directory, "local")
            note = f"there, each process sees a disk of its own; process {index}'s is {disks[index]}"
            chosen = Place(local, disks, disks[index], note)
    others = [saving.directory, *map(str, sorted(Path(saving.directory, "disks").glob("process-*")))]
    if not _used(chosen.holder) and (used := [other for other in others if _used(other)]):
        raise ValueError(
            f"{used[0]} has checkpoints of an earlier run, which this one would not find in {chosen.holder}: give the same "
            "--processes and --io-device as then, or another --dir."
        )
    return chosen


def _used(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, "checkpoint"))


def train(arguments: Any, where: Place, losses_path: str, saves: SaveLog, progress: Progress, *, quiet: bool) -> Run:
    """Trains with several processes, which go with this one, whatever happens.

    Args:
      arguments: of the command.
      where: where the checkpoints are.
      losses_path: of the log of losses.
      saves: the log of saves.
      progress: shows what the processes report.
      quiet: whether their lines are not printed.

    Returns:
      What process 0 did.

    Raises:
      JobFailed: a process failed.
    """
    private = {} if where.disks is None else {"private": where.directory, "disks": where.disks}
    with testing.Job(
        processes=arguments.processes,
        timeout=_START_SECS,
        heartbeat_timeout=_HEARTBEAT_SECS,
        **private,  # type: ignore[arg-type]
    ) as job:
        path = os.path.join(job.directory, "reports")
        Path(path).touch()
        options = arguments.config, arguments.steps, where.directory, arguments.io_device
        job.start(remote.run, *options, losses_path, path)
        with _showing(path, saves, progress, quiet=quiet):
            result: Run = job.results(_TRAINING_SECS)[0].value
        progress.update("ending the processes")
    result.saves = saves.finished()
    return result


@contextlib.contextmanager
def _showing(path: str, saves: SaveLog, progress: Progress, *, quiet: bool) -> Iterator[None]:
    """Shows in a thread what processes report, and all that they have reported before the end of the block."""
    ended = threading.Event()

    def follow() -> None:
        received = b""
        with open(path, "rb") as file:
            while True:
                last = ended.wait(_POLL_SECS)
                *lines, received = (received + file.read()).split(b"\n")
                for line in lines:
                    _show(json.loads(line), saves, progress, quiet=quiet)
                if last:
                    return

    thread = threading.Thread(target=follow, name="jaxckpt demo reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(event: dict[str, Any], saves: SaveLog, progress: Progress, *, quiet: bool) -> None:
    match event["kind"]:
        case "say":
            if not quiet:
                progress.say(event["text"])
        case "update":
            progress.update(event["text"])
        case "begin":
            saves.begin(event["number"], event["at"])
        case "returned":
            saves.returned(event["number"], event["path"], event["at"])
        case "written":
            saves.written(event["path"], event["at"])


def on_disks(where: Place) -> list[tuple[int, int]]:
    """Returns the number of files, and of bytes, on the disk of each process; nothing without private disks."""
    return [_size(disk) for disk in where.disks or ()]


def _size(directory: str) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def disk_table(where: Place) -> list[str]:
    """Returns lines that show on whose disk the files are."""
    if where.disks is None:
        return [f"checkpoints: {where.holder}, which all processes share"]
    rows = [("process", "its disk", "files", "bytes")]
    for index, (disk, (files, size)) in enumerate(zip(where.disks, on_disks(where), strict=True)):
        rows.append((str(index), disk, str(files), human_bytes(size)))
    return table(rows, right=(2, 3))


def failure(error: testing.JobFailed) -> str:
    """Returns what went wrong on each process that failed: its error, and the end of its output."""
    lines = []
    for result in error.results:
        if result.ok or result.state == "killed":
            continue
        if result.error is not None:
            exception = result.error.exception
            what = " ".join(result.error.message.split()) if exception is None else describe(exception)
            lines.append(f"process {result.index}: {result.error.type}: {what}")
        else:
            code = "" if result.exitcode is None else f" with status {result.exitcode}"
            lines.append(f"process {result.index} {result.state}{code}")
        lines += [f"    {line}" for line in result.output.rstrip().splitlines()[-_OUTPUT_LINES:]]
    return "\n".join(lines) or str(error)
