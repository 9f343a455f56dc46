"""``jaxckpt inspect PATH``: shows the tree of leaves. Reads the metadata only."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from jaxckpt._lib.documents import parse
from jaxckpt._lib.output import count, human_bytes, print_json, print_line, table
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import checkpoint_at, size_of
from jaxckpt.leaf_kinds.described import LeafMetadata
from jaxckpt.reader import Reader

HELP = "show the tree of leaves with shape, dtype, bytes and sharding"
DESCRIPTION = (
    "Shows the leaves (arrays, numbers, texts) of a checkpoint. Reads its metadata only. Works for every Orbax checkpoint, "
    "saved on any number of devices."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "path", metavar="PATH", help="a checkpoint, or a directory of checkpoints, of which the latest is taken"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    path = checkpoint_at(arguments.path)
    with Progress(f"reading the metadata of {path}"):
        reader = Reader(path)
        leaves = [reader.metadata(name) for name in reader.keys()]
        on_disk = size_of(path)
    total = sum(leaf.nbytes for leaf in leaves)
    if arguments.json:
        print_json(
            {
                "path": path,
                "leaves": [_as_json(leaf) for leaf in leaves],
                "total": {"leaves": len(leaves), "bytes": total, "bytes_on_disk": on_disk},
            }
        )
        return 0
    print_line(path)
    rows = list(_rows(leaves))
    for line in table([("leaf", "shape", "dtype", "bytes", "saved as"), *rows], right=[3]):
        print_line(line)
    number = count(len(leaves), "leaf", "leaves")
    print_line(f"{number}, {human_bytes(total)} ({total:,} bytes); {human_bytes(on_disk)} on disk")
    return 0


def _rows(leaves: Iterable[LeafMetadata]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for every leaf, and for every branch a row with the sum of its bytes. Rows are indented as a tree."""
    ordered = sorted(((_keys(leaf.name), leaf) for leaf in leaves), key=lambda item: [_natural(key) for key in item[0]])
    sums: dict[tuple[str, ...], int] = {}
    for keys, leaf in ordered:
        for depth in range(1, len(keys)):
            sums[keys[:depth]] = sums.get(keys[:depth], 0) + leaf.nbytes
    above: tuple[str, ...] = ()
    for keys, leaf in ordered:
        for depth in range(1, len(keys)):
            branch = keys[:depth]
            if above[:depth] != branch:
                yield f"{'  ' * (depth - 1)}{branch[-1]}/", "", "", human_bytes(sums[branch]), ""
        above = keys
        shape = "" if leaf.dtype is None else str(leaf.shape)
        yield (
            "  " * (len(keys) - 1) + keys[-1],
            shape,
            "" if leaf.dtype is None else str(leaf.dtype),
            human_bytes(leaf.nbytes),
            _saved_as(leaf),
        )


def _keys(name: str) -> tuple[str, ...]:
    # Each slash separates two keys, because a slash inside a key is written as ~1.
    return tuple(name.split("/"))


def _natural(key: str) -> tuple[int, int, str]:
    return (0, int(key), key) if key.isascii() and key.isdecimal() else (1, 0, key)


def _saved_as(leaf: LeafMetadata) -> str:
    if leaf.key_impl is not None:
        return f"PRNG key ({leaf.key_impl})"
    if leaf.sharding is None:
        return leaf.kind
    return f"{leaf.kind}, {_short_sharding(leaf.sharding)}"


def _short_sharding(text: str) -> str:
    """Returns Orbax's record of a sharding in JAX's words, such as ``NamedSharding(x=4, y=2; PartitionSpec('x', None))``."""
    try:
        note = parse(text)
        kind = note["sharding_type"]
        if kind == "NamedSharding":
            axes = ", ".join(f"{name}={size}" for name, size in zip(note["axis_names"], note["shape"], strict=True))
            return f"NamedSharding({axes}; {_partition_spec(note['partition_spec'])})"
        if kind == "SingleDeviceSharding":
            return f"on {note['device_str']}"
        return str(kind)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Another version of Orbax wrote this record. It is shown as it is.
        return text


def _partition_spec(parts: list[Any]) -> str:
    words = [repr(tuple(part)) if isinstance(part, list) else repr(part) for part in parts]
    return f"PartitionSpec({', '.join(words)})"


def _as_json(leaf: LeafMetadata) -> dict[str, Any]:
    sharding: Any = leaf.sharding
    if leaf.sharding is not None:
        try:
            sharding = parse(leaf.sharding)
        except ValueError:
            sharding = leaf.sharding
    return {
        "name": leaf.name,
        "kind": leaf.kind,
        "shape": list(leaf.shape),
        "dtype": None if leaf.dtype is None else str(leaf.dtype),
        "bytes": leaf.nbytes,
        "sharding": sharding,
        "key_impl": leaf.key_impl,
    }
