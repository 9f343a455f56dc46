"""``jaxckpt verify PATH...``: reads and checks every byte of checkpoints."""

import argparse
from typing import Any

from jaxckpt import storage
from jaxckpt._lib.output import count, describe, human_bytes, print_json
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import checkpoint_at
from jaxckpt.errors import CheckpointError

HELP = "read and check every byte"
DESCRIPTION = (
    "Reads every byte of the checkpoints and checks it against the stored checksums. Names what is damaged, and exits with "
    "1 then. A checkpoint without checksums, as plain Orbax writes it, is read in full, and reported as such."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a checkpoint, or a directory of checkpoints, of which the latest is taken",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    results, failed = [], False
    with Progress("opening") as progress:
        for index, given in enumerate(arguments.paths):
            position = f" ({index + 1} of {len(arguments.paths)})" if len(arguments.paths) > 1 else ""
            try:
                report = _verify(given, progress, position)
            except (CheckpointError, OSError, ValueError) as error:
                # The other paths are still checked.
                failed = True
                results.append({"path": given, "ok": False, "error": describe(error)})
                progress.complain(f"jaxckpt verify: error: {describe(error)}")
                continue
            failed = failed or not report.ok
            results.append(_as_json(report))
            if not arguments.json:
                for line in _lines(report):
                    progress.say(line)
    if arguments.json:
        print_json(results)
    return 1 if failed else 0


def _verify(given: str, progress: Progress, position: str) -> storage.VerifyReport:
    path = checkpoint_at(given)
    progress.update(f"verifying {path}{position}")

    def show(done: int, total: int) -> None:
        progress.update(f"verifying {path}{position}: {done} of {total} arrays")

    return storage.verify(path, show, progress_bytes=progress.reach)


def _lines(report: storage.VerifyReport) -> list[str]:
    amount = f"{count(report.leaves, 'leaf', 'leaves')}, {human_bytes(report.bytes)}, {count(report.files, 'file')}"
    if not report.ok:
        lines = [f"{report.path}: DAMAGED: {count(len(report.problems), 'problem')}"]
        return lines + [f"  {problem.where}: {problem.what}" for problem in report.problems]
    unread = (
        [f"  Not read, because only the program's own type handler can read them: {', '.join(report.unread)}"]
        if report.unread
        else []
    )
    if not report.checksummed:
        return [
            f"{report.path}: readable: {amount}",
            "  It has no checksums, so a changed bit would go unnoticed.",
            *unread,
        ]
    return [f"{report.path}: ok: {amount}, checksums match", *unread]


def _as_json(report: storage.VerifyReport) -> dict[str, Any]:
    return {
        "path": report.path,
        "ok": report.ok,
        "checksummed": report.checksummed,
        "leaves": report.leaves,
        "bytes": report.bytes,
        "files": report.files,
        "unread": list(report.unread),
        "problems": [{"where": problem.where, "what": problem.what} for problem in report.problems],
    }
