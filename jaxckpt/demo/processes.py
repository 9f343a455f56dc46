"""``jaxckpt demo --processes``: starts the processes, shows their reports, and the files on their disks."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxckpt import CheckpointConfig, testing
from jaxckpt._lib.output import describe, human_bytes, table
from jaxckpt._lib.progress import Progress
from jaxckpt.demo import remote
from jaxckpt.demo.loop import Run
from jaxckpt.demo.saves import SaveLog
from jaxckpt.job.devices import parse_device, parse_spec, process_of
from jaxckpt.storage import stores

_START_SECS = 120.0
# The training may take long. JAX ends the job if a process is gone, and Ctrl-C ends it too.
_TRAINING_SECS = 7 * 86400.0
# Long enough for processes on a laptop that is busy or asleep for a moment.
_HEARTBEAT_SECS = 60
_POLL_SECS = 0.05
_OUTPUT_LINES = 20


@dataclass(frozen=True)
class Place:
    """The place of a job's checkpoints.

    Attributes:
      directory: directory of the checkpoints, as the processes see it.
      disks: the directory that each process sees there; None if all processes see the same one.
      holder: directory of the checkpoints, as the user sees it.
      note: an explanation for the user.
    """

    directory: str
    disks: list[str] | None
    holder: str
    note: str


def io_process(saving: CheckpointConfig, processes: int) -> int | None:
    """Returns the process that the config's device names; None if the config has no device.

    Args:
      saving: the config.
      processes: number of processes.

    Raises:
      ValueError: the process does not exist, or does not have the device.
    """
    device = parse_device(saving.options.experimental_io_device)
    if device is None:
        return None
    text = f"/task:{device}" if isinstance(device, int) else str(device)
    spec = parse_spec(text)
    index = process_of(spec, str(device), processes)
    if processes > 1 and (spec.device_type not in (None, "CPU") or spec.ordinal):
        raise ValueError(
            f"experimental_io_device={device!r}: process {index} does not have this device. Each of the {processes} processes has CPU:0."
        )
    return index


def place(saving: CheckpointConfig, processes: int) -> Place:
    """Chooses the place of the checkpoints: private disks if one process does all file access and the system permits private disks.

    Args:
      saving: the config.
      processes: number of processes.

    Raises:
      ValueError: the process does not exist, or an earlier run left checkpoints at another place below the directory.
    """
    index = io_process(saving, processes)
    if not stores.is_local(saving.directory):
        who = "all processes reach this bucket" if index is None else f"only process {index} reaches for this bucket"
        return Place(saving.directory, None, saving.directory, who)
    disks = [os.path.join(saving.directory, "disks", f"process-{one}") for one in range(processes)]
    chosen = Place(saving.directory, None, saving.directory, "all processes see this directory")
    if processes > 1 and index is not None:
        if (problem := testing.private_disks_problem()) is not None:
            note = f"only process {index} uses it; private disks are not possible here: {problem}"
            chosen = Place(saving.directory, None, saving.directory, note)
        else:
            local = os.path.join(saving.directory, "local")
            note = f"each process sees its own disk there; process {index}'s is {disks[index]}"
            chosen = Place(local, disks, disks[index], note)
    others = [saving.directory, *map(str, sorted(Path(saving.directory, "disks").glob("process-*")))]
    if not _used(chosen.holder) and (used := [other for other in others if _used(other)]):
        raise ValueError(
            f"{used[0]} has checkpoints of an earlier run, which this run would not find in {chosen.holder}: give the same "
            "--processes and --io-device as before, or another --dir."
        )
    return chosen


def _used(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, "checkpoint"))


def train(arguments: Any, where: Place, losses_path: str, saves: SaveLog, progress: Progress, *, quiet: bool) -> Run:
    """Trains with several processes. They always end with this process, even if it is killed.

    Args:
      arguments: the arguments of the command.
      where: place of the checkpoints.
      losses_path: path of the log of losses.
      saves: the log of saves.
      progress: shows the reports of the processes.
      quiet: whether to suppress the lines of the processes.

    Returns:
      The result of process 0.

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
        with _showing(path, saves, progress, quiet=quiet), _passing_on(job):
            result: Run = job.results(_TRAINING_SECS)[0].value
        progress.update("ending the processes")
    result.saves = saves.finished()
    return result


@contextlib.contextmanager
def _passing_on(job: testing.Job) -> Iterator[None]:
    """Passes SIGTERM on to a process of the job, as a cluster's scheduler sends it. All processes then save the same step and end."""

    def pass_on(number: int, frame: object) -> None:
        # A second signal ends this process, and the job with it.
        signal.signal(number, signal.SIG_DFL)
        os.kill(job.pids[0], number)

    earlier = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)


@contextlib.contextmanager
def _showing(path: str, saves: SaveLog, progress: Progress, *, quiet: bool) -> Iterator[None]:
    """Shows the reports of the processes in a thread. At the end of the block, all reports so far have been shown."""
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
    """Returns the number of files and of bytes on the disk of each process; empty without private disks."""
    return [_size(disk) for disk in where.disks or ()]


def _size(directory: str) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def disk_table(where: Place) -> list[str]:
    """Returns a table that shows on whose disk the files are."""
    if where.disks is None:
        return [f"checkpoints: {where.holder}, which all processes share"]
    rows = [("process", "its disk", "files", "bytes")]
    for index, (disk, (files, size)) in enumerate(zip(where.disks, on_disks(where), strict=True)):
        rows.append((str(index), disk, str(files), human_bytes(size)))
    return table(rows, right=(2, 3))


def failure(error: testing.JobFailed) -> str:
    """Returns a text with the error of each failed process and the end of its output."""
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
