"""``jaxckpt clean DIR``: removes leftovers, the temporary directories of killed saves."""

import argparse
from dataclasses import asdict

from jaxckpt import storage
from jaxckpt._lib.output import count, human_age, human_bytes, print_json, print_line, sum_bytes
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import existing_directory

HELP = "remove the temporary directories that killed saves left"
DESCRIPTION = (
    "Removes the temporary directories of saves and deletions whose process has ended. If such a save was about to replace "
    "a checkpoint, the old checkpoint is put back first. Running saves, and files that are not jaxckpt's, are left alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("directory", metavar="DIR", help="a directory with checkpoints")
    parser.add_argument("--dry-run", action="store_true", help="only show the directories that would be removed")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    directory = existing_directory(arguments.directory)
    with Progress(f"cleaning {directory}"):
        found = storage.leftovers(directory)
        dead = {leftover.path: leftover for leftover in found if not leftover.live}
        removed = list(dead) if arguments.dry_run else storage.sweep(directory)
    in_use = [leftover for leftover in found if leftover.live]
    freed = sum_bytes(dead[path].bytes for path in removed if path in dead)
    if arguments.json:
        print_json(
            {
                "directory": directory,
                "dry_run": arguments.dry_run,
                "removed": removed,
                "bytes": freed,
                "in_use": [asdict(leftover) for leftover in in_use],
            }
        )
        return 0
    verb = "would remove" if arguments.dry_run else "removed"
    for path in removed:
        about = (
            f" ({human_bytes(dead[path].bytes)}, {human_age(dead[path].age_secs)} old, of {dead[path].owner})"
            if path in dead
            else ""
        )
        print_line(f"{verb} {path}{about}")
    for leftover in in_use:
        print_line(f"in use {leftover.path} ({human_bytes(leftover.bytes)}, by {leftover.owner})")
    number = count(len(removed), "temporary directory", "temporary directories")
    print_line(f"{directory}: {verb} {number}, {human_bytes(freed)}")
    return 0
