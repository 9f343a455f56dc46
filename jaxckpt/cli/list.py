"""``jaxckpt list DIR``: shows the checkpoints of a directory, and leftovers of killed saves."""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from jaxckpt import storage
from jaxckpt._lib.output import (
    count,
    human_age,
    human_bytes,
    human_seconds,
    print_json,
    print_line,
    print_table,
    sum_bytes,
    table,
)
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.listed import Listed, about, as_json, exit_code, look, refuse_checkpoint, versions
from jaxckpt.cli.resolve import existing_directory

HELP = "show the checkpoints of a directory: sizes, ages, the latest, leftovers"
DESCRIPTION = (
    "Shows the committed checkpoints of a directory, oldest first, which of them the state file lists, and which one is "
    "the latest. Also shows temporary directories of running and of killed saves (`jaxckpt clean` removes the latter). "
    "Exits with 1 if there is no checkpoint."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("directory", metavar="DIR", help="a directory with checkpoints")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    directory = existing_directory(arguments.directory)
    refuse_checkpoint(directory)
    with Progress(f"looking through {directory}"):
        looked = look(directory)
        leftovers = storage.leftovers(directory)
    if arguments.json:
        print_json(
            {
                "directory": directory,
                "latest": looked.latest,
                "checkpoints": [as_json(checkpoint) for checkpoint in looked.checkpoints],
                "leftovers": [asdict(leftover) for leftover in leftovers],
            }
        )
        return exit_code("list", directory, looked)
    found = looked.checkpoints
    total = sum_bytes(checkpoint.bytes for checkpoint in found)
    print_line(f"{directory}: {count(len(found), 'checkpoint')}, {human_bytes(total)} on disk")
    rows = [
        (
            f"  {os.path.basename(checkpoint.path)}",
            human_bytes(checkpoint.bytes),
            human_age(checkpoint.age_secs),
            _took(checkpoint),
            about(checkpoint),
            "latest"
            if checkpoint.latest
            else ""
            if checkpoint.registered or looked.is_run
            else "not in the state file",
        )
        for checkpoint in found
    ]
    print_table((), rows, right=[1, 2])
    for line in _savers(found):
        print_line(line)
    if leftovers:
        dead = [leftover for leftover in leftovers if not leftover.live]
        size = human_bytes(sum_bytes(leftover.bytes for leftover in leftovers))
        print_line(f"temporary directories: {len(leftovers)}, {size}")
        lines = [
            (
                f"  {os.path.basename(leftover.path)}",
                human_bytes(leftover.bytes),
                human_age(leftover.age_secs),
                f"in use by {leftover.owner}" if leftover.live else f"left by {leftover.owner}",
            )
            for leftover in leftovers
        ]
        for line in table(lines, right=[1, 2]):
            print_line(line)
        if dead:
            print_line(f"`jaxckpt clean {directory}` removes those that were left.")
    return exit_code("list", directory, looked)


def _took(checkpoint: Listed) -> str:
    """Returns how long the save took and how long it blocked the program, as text."""
    save = checkpoint.save
    if save is None:
        return ""
    return f"in {human_seconds(save.written_secs)}, blocked {human_seconds(save.blocked_secs)}"


def _savers(found: Sequence[Listed]) -> Iterator[str]:
    """Yields which programs saved the checkpoints, as lines, the newest first."""
    by: dict[tuple[int, str], list[str]] = {}
    for checkpoint in reversed(found):
        if checkpoint.save is not None:
            by.setdefault((checkpoint.save.processes, versions(checkpoint.save)), []).append(
                os.path.basename(checkpoint.path)
            )
    for (processes, text), names in by.items():
        which = f"{names[0]} and {count(len(names) - 1, 'older one')}" if len(names) > 1 else names[0]
        yield f"saved by {count(processes, 'process', 'processes')} with {text}: {which}"
