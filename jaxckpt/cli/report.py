"""``jaxckpt report DIR``: shows when the checkpoints of a directory were saved, how long that took, and how large and good they are."""

import argparse
import datetime
import os
from collections.abc import Sequence
from typing import Any

from jaxckpt._lib.output import count, human_bytes, human_seconds, print_json, print_line, print_table
from jaxckpt._lib.progress import Progress
from jaxckpt.cli import report_page
from jaxckpt.cli.listed import Listed, as_json, exit_code, look, metrics_of, refuse_checkpoint, versions
from jaxckpt.cli.resolve import existing_directory
from jaxckpt.storage.item.account import Account

HELP = "draw the saves of a directory: when, how long, how large, metrics"
DESCRIPTION = (
    "Shows the saves whose checkpoints are in a directory: when each was made, how long it took, how long it blocked the "
    "program, its size and its metrics, from what the checkpoints remember. "
    "In the timeline, ! is a save that blocks the program, # one that only writes. With --html it draws them. "
    "Checkpoints that have been deleted are not in it. Exits with 1 if there is no checkpoint."
)
# Characters of the timeline in the table.
_WIDTH = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("directory", metavar="DIR", help="a directory with checkpoints")
    parser.add_argument("--html", metavar="FILE", help="also write a page with pictures (needs the extra 'html')")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    directory = existing_directory(arguments.directory)
    refuse_checkpoint(directory)
    if arguments.html is not None:
        report_page.check(arguments.html)
    with Progress(f"looking through {directory}"):
        looked = look(directory)
    # In the order of the saves; those that do not remember when they began stand where the list has them.
    saves = looked.checkpoints
    if arguments.json:
        print_json(
            {"directory": directory, "totals": _totals(saves), "saves": [as_json(checkpoint) for checkpoint in saves]}
        )
    elif saves:
        print_line(f"{directory}: {headline(saves)}")
        _print_saves(saves)
    code = exit_code("report", directory, looked)
    if arguments.html is not None and saves:
        report_page.write(arguments.html, directory, headline(saves), saves)
        if not arguments.json:
            print_line(f"wrote {arguments.html}")
    return code


def headline(saves: Sequence[Listed]) -> str:
    """Returns the report in a sentence."""
    known = _accounts(saves)
    text = count(len(saves), "save")
    if not known:
        return f"{text}; they do not remember their times"
    blocked, written = sum(save.blocked_secs for save in known), sum(save.written_secs for save in known)
    text += f" blocked the program for {human_seconds(blocked)} of {human_seconds(written)}"
    unknown = len(saves) - len(known)
    return text + (f"; {unknown} of them do not remember their times" if unknown else "")


def _totals(saves: Sequence[Listed]) -> dict[str, Any]:
    known = _accounts(saves)
    return {
        "saves": len(saves),
        "saves_with_times": len(known),
        "blocked_secs": sum(save.blocked_secs for save in known),
        "waited_secs": sum(save.waited_secs for save in known),
        "written_secs": sum(save.written_secs for save in known),
        "bytes": sum(save.bytes for save in known),
    }


def _accounts(saves: Sequence[Listed]) -> list[Account]:
    return [checkpoint.save for checkpoint in saves if checkpoint.save is not None]


def _print_saves(saves: Sequence[Listed]) -> None:
    known = _accounts(saves)
    begin = min((save.began for save in known), default=0.0)
    end = max((save.began + save.written_secs for save in known), default=0.0)
    rows = []
    for checkpoint in saves:
        save = checkpoint.save
        cells = [os.path.basename(checkpoint.path), "" if checkpoint.step is None else str(checkpoint.step)]
        if save is None:
            cells += [_time(checkpoint.saved), human_bytes(checkpoint.bytes), "?", "?", "?", ""]
        else:
            cells += [
                _time(save.began),
                human_bytes(save.bytes),
                human_seconds(save.written_secs),
                human_seconds(save.blocked_secs),
                human_seconds(save.waited_secs),
                _bar(save, begin, end),
            ]
        rows.append([*cells, " ".join(metrics_of(checkpoint))])
    header = ["checkpoint", "step", "saved at", "arrays", "written", "blocked", "waited", "timeline", "metrics"]
    print_table(header, rows, right=[1, 3, 4, 5, 6])
    if known:
        print_line(
            f"the newest was saved by {count(known[-1].processes, 'process', 'processes')}: {versions(known[-1])}"
        )


def _bar(save: Account, begin: float, end: float) -> str:
    """Returns a line of dots with the time of a save marked: "!" while the program was blocked, "#" while it was only written."""
    scale = _WIDTH / max(end - begin, 1e-9)
    first = min(_WIDTH - 1, int((save.began - begin) * scale))
    blocked = int((save.began + save.blocked_secs - begin) * scale)
    last = min(_WIDTH - 1, int((save.began + save.written_secs - begin) * scale))
    return "".join("." if not first <= at <= last else "!" if at < blocked else "#" for at in range(_WIDTH))


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
