"""``jaxckpt inspect PATH``: shows the tree of leaves. Reads the metadata only, unless statistics are wanted."""

import argparse
import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from jaxckpt import storage
from jaxckpt._lib.documents import parse
from jaxckpt._lib.output import count, human_bytes, human_count, print_error, print_json, print_line, print_table
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.folding import Node, shown, tree_of
from jaxckpt.cli.leaf_text import combined, number_text, saved_as
from jaxckpt.cli.resolve import checkpoint_at, size_of
from jaxckpt.cli.statistics import Statistics, has_statistics, statistics_of
from jaxckpt.leaf_kinds.described import LeafMetadata
from jaxckpt.reader import Reader, beside_arrays

HELP = "show the tree of leaves with shape, dtype, bytes and sharding"
DESCRIPTION = (
    "Shows the leaves (arrays, numbers, texts) of a checkpoint as a tree, with totals for each branch. Siblings that are equal but for a "
    "number in their names are folded, such as layers/0..49. Reads the metadata only, unless --stats is given. Works for every Orbax "
    "checkpoint, saved on any number of devices, for TensorFlow's checkpoints, and for safetensors files."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "path", metavar="PATH", help="a checkpoint, or a directory of checkpoints, of which the latest is taken"
    )
    parser.add_argument("--depth", metavar="N", type=_depth, help="show at most N levels; totals include what is below")
    parser.add_argument(
        "--filter",
        metavar="PATTERN",
        action="append",
        default=[],
        help="show only leaves whose names match, such as 'model/*'; repeatable",
    )
    parser.add_argument("--sort", choices=("name", "bytes"), default="name", help="the order of siblings")
    parser.add_argument("--unfold", action="store_true", help="show equal siblings one by one")
    parser.add_argument(
        "--stats",
        action="store_true",
        help="read all values, and show min, max, mean, root mean square, and how many are NaN or infinite",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with pictures: sizes, statistics, layouts (needs plotly)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if arguments.html is not None:
        # Imported here, because most calls need no pages.
        from jaxckpt.cli import page

        page.check(arguments.html)
    path = checkpoint_at(arguments.path)
    with Progress(f"reading the metadata of {path}") as progress:
        reader = Reader(path)
        leaves = _filtered([reader.metadata(name) for name in reader.keys()], arguments.filter)
        on_disk = size_of(path)
        statistics = None
        if arguments.stats or arguments.html is not None:
            statistics = _statistics(path, {leaf.name for leaf in leaves}, progress)
    # As everywhere, the size of a checkpoint is that of its arrays.
    beside = beside_arrays(reader)
    total = sum(leaf.nbytes for leaf in leaves if leaf.name not in beside)
    root = tree_of(leaves, fold=not arguments.unfold, order=arguments.sort)
    if arguments.html is not None:
        from jaxckpt.cli import inspect_page

        about = f"{_sum(leaves, root, total)}; {human_bytes(on_disk)} on disk"
        inspect_page.write(arguments.html, path, about, leaves, root, statistics or {})
    if arguments.json:
        print_json(
            {
                "path": path,
                "leaves": [_as_json(leaf, statistics) for leaf in leaves],
                "total": {"leaves": len(leaves), "bytes": total, "bytes_on_disk": on_disk},
            }
        )
        return 0
    print_line(path, "bold")
    _print_tree(root, arguments.depth, statistics if arguments.stats else None)
    print_line(f"{_sum(leaves, root, total)}; {human_bytes(on_disk)} on disk")
    if arguments.html is not None:
        print_line(f"wrote {arguments.html}")
    return 0


def _depth(text: str) -> int:
    depth = int(text)
    if depth < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {depth}")
    return depth


def _filtered(leaves: list[LeafMetadata], patterns: Iterable[str]) -> list[LeafMetadata]:
    """Returns the leaves that match one of the patterns; all if there is none. Warns about a pattern without a match."""
    if not patterns:
        return leaves
    kept: set[str] = set()
    for pattern in patterns:
        matched = {leaf.name for leaf in leaves if fnmatch.fnmatchcase(leaf.name, pattern)}
        if not matched:
            print_error(f"jaxckpt inspect: warning: --filter {pattern!r} matches no leaf")
        kept |= matched
    return [leaf for leaf in leaves if leaf.name in kept]


def _statistics(path: str, names: set[str], progress: Progress) -> dict[str, Statistics]:
    """Reads the values of arrays, and returns their statistics by name."""
    stored = storage.open_checkpoint(path)
    arrays = [
        leaf
        for leaf in stored.tree.leaves
        if leaf.name in names and not (leaf.is_empty or leaf.is_string or leaf.is_foreign)
    ]
    infos = stored.infos(arrays)
    arrays = [leaf for leaf in arrays if has_statistics(leaf, infos[leaf.param_name])]
    progress.begin(sum(infos[leaf.param_name].nbytes for leaf in arrays))
    found = {}
    for number, leaf in enumerate(arrays):
        progress.update(f"reading {number + 1} of {count(len(arrays), 'array')}")
        found[leaf.name] = statistics_of(stored, leaf, infos[leaf.param_name], progress.advance)
    stored.check_data_files()
    return found


def _sum(leaves: list[LeafMetadata], root: Node, total: int) -> str:
    number = count(len(leaves), "leaf", "leaves")
    # The number that people know their model by is the one below its own branch, so it stands there.
    parameters = f"{count(root.parameters, 'array element')}, " if root.parameters else ""
    return f"{number}, {parameters}{human_bytes(total)} ({total:,} bytes) of arrays"


def _print_tree(root: Node, depth: int | None, statistics: Mapping[str, Statistics] | None) -> None:
    header = ["leaf", "shape", "dtype", "params", "bytes"]
    columns: list[Callable[[Node], str]] = [
        lambda node: "" if node.leaf is None or node.leaf.dtype is None else str(node.leaf.shape),
        lambda node: "" if node.leaf is None or node.leaf.dtype is None else str(node.leaf.dtype),
        lambda node: human_count(node.parameters) if node.parameters else "",
        lambda node: human_bytes(node.nbytes),
    ]
    right = [3, 4]
    if statistics is None:
        header.append("saved as")
        columns.append(lambda node: "" if node.leaf is None else saved_as(node.leaf))
    else:
        header += ["min", "max", "mean", "rms", "nan", "inf"]
        right += range(5, 11)
        del columns[2], header[3]
        right = [index - 1 for index in right if index > 3]
        columns += [functools.partial(_statistic, statistics, number) for number in range(6)]
    rows, styles = [], []
    for node, level, name in shown(root, depth):
        rows.append(["  " * (level - 1) + name, *[column(node) for column in columns]])
        styles.append("bold cyan" if node.children else "")
    # What is easily looked up without --stats is left out on a narrow terminal.
    print_table(
        header, rows, right, styles, legend=statistics is None, optional=() if statistics is None else (3, 2, 1)
    )


def _statistic(statistics: Mapping[str, Statistics], number: int, node: Node) -> str:
    one = combined(node, statistics)
    if one is None:
        return ""
    if number >= 4:
        return f"{(one.nans, one.infs)[number - 4]:,}"
    return number_text((one.min, one.max, one.mean, one.rms)[number])


def _as_json(leaf: LeafMetadata, statistics: Mapping[str, Statistics] | None) -> dict[str, Any]:
    sharding: Any = leaf.sharding
    if leaf.sharding is not None:
        try:
            sharding = parse(leaf.sharding)
        except ValueError:
            sharding = leaf.sharding
    found: dict[str, Any] = {
        "name": leaf.name,
        "kind": leaf.kind,
        "shape": list(leaf.shape),
        "dtype": None if leaf.dtype is None else str(leaf.dtype),
        "bytes": leaf.nbytes,
        "sharding": sharding,
        "key_impl": leaf.key_impl,
    }
    if statistics is not None:
        known = statistics.get(leaf.name)
        # JSON has no NaN: where no number is finite, there is no mean either.
        found["statistics"] = None if known is None else {name: _number(value) for name, value in asdict(known).items()}
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
