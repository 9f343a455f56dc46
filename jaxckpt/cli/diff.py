"""``jaxckpt diff A B``: shows where two checkpoints differ in structure, shapes or values, bit for bit."""

import argparse
import fnmatch

from jaxckpt._lib.output import count, human_bytes, print_json, print_line, print_table
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.comparing import Difference, as_json, compare, subtrees
from jaxckpt.cli.resolve import checkpoint_at
from jaxckpt.reader import Reader, beside_arrays

HELP = "compare two checkpoints: structure, shapes, values"
DESCRIPTION = (
    "Compares the leaves (arrays, numbers, texts) of two checkpoints by name, bit for bit: -0.0 differs from 0.0, and nan "
    "payloads count. Exits with 1 if they differ. The sharding of an array does not matter, nor whether it was a JAX or a "
    "numpy array."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "a", metavar="A", help="a checkpoint, or a directory of checkpoints, of which the latest is taken"
    )
    parser.add_argument("b", metavar="B", help="another checkpoint or directory")
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leaves to leave out, such as save_counter or 'optimizer/*'; repeatable",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with a heat strip per layer and kind (needs plotly)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if arguments.html is not None:
        # Imported here, because most calls need no pages.
        from jaxckpt.cli import page

        page.check(arguments.html)
    with Progress("opening") as progress:
        a, b = (Reader(checkpoint_at(path)) for path in (arguments.a, arguments.b))
        names, ignored = _selected(sorted({*a.keys(), *b.keys()}), arguments.ignore, progress)
        differences, total = [], 0
        # As everywhere, the size of a checkpoint is that of its arrays.
        beside = beside_arrays(a) & beside_arrays(b)
        sizes = {name: 0 if name in beside else (a if name in a else b).metadata(name).nbytes for name in names}
        progress.begin(sum(sizes.values()))
        for index, name in enumerate(names):
            progress.update(f"comparing {index + 1} of {count(len(names), 'leaf', 'leaves')}")
            found = compare(a, b, name)
            if found is None:
                total += sizes[name]
            else:
                differences.append(found)
            progress.advance(sizes[name])
    if arguments.html is not None:
        from jaxckpt.cli import diff_page

        diff_page.write(arguments.html, a.path, b.path, names, differences, ignored)
    if arguments.json:
        print_json(
            {
                "a": a.path,
                "b": b.path,
                "identical": not differences if names or not ignored else None,
                "leaves": len(names),
                "ignored": ignored,
                "differences": [as_json(difference) for difference in differences],
            }
        )
        return 1 if differences else 0
    print_line(f"A: {a.path}")
    print_line(f"B: {b.path}")
    _print_text(names, differences, total, ignored)
    if arguments.html is not None:
        print_line(f"wrote {arguments.html}")
    return 1 if differences else 0


def _print_text(names: list[str], differences: list[Difference], total: int, ignored: int) -> None:
    left_out = f"; {count(ignored, 'leaf', 'leaves')} left out by --ignore, not compared" if ignored else ""
    if not differences:
        if ignored and not names:
            print_line(f"nothing compared{left_out}")
        else:
            leaves = count(len(names), "leaf", "leaves")
            print_line(f"identical: {leaves}, {human_bytes(total)}, bit for bit{left_out}", "bold green")
        return
    worst = sorted(differences, key=lambda difference: [-each for each in difference.badness])
    print_table((), [(each.kind, each.name, each.text) for each in worst], styles=["yellow"] * len(worst))
    rows = subtrees(names, differences)
    if rows:
        print_line()
        print_table(("subtree", "differ", "of", "largest", "rms", "relative"), rows, right=range(1, 6))
    print_line(f"different: {len(differences)} of {count(len(names), 'leaf', 'leaves')}{left_out}", "bold yellow")


def _selected(names: list[str], patterns: list[str], progress: Progress) -> tuple[list[str], int]:
    """Returns the names that do not match any pattern, and how many others there are. Warns about a pattern without a match."""
    ignored: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            progress.complain(f"jaxckpt diff: warning: --ignore {pattern!r} matches no leaf of either checkpoint")
        ignored |= matched
    return [name for name in names if name not in ignored], len(ignored)
