"""``jaxckpt diff A B``: shows where two checkpoints differ in structure, shapes or values, bit for bit."""

import argparse
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxckpt._lib.output import count, human_bytes, print_json, print_line, table
from jaxckpt._lib.progress import Progress
from jaxckpt.cli.resolve import checkpoint_at
from jaxckpt.leaf_kinds.described import LeafMetadata
from jaxckpt.reader import Reader

HELP = "compare two checkpoints: structure, shapes, values"
DESCRIPTION = (
    "Compares the leaves (arrays, numbers, texts) of two checkpoints by name, bit for bit: -0.0 differs from 0.0, and nan "
    "payloads count. Exits with 1 if they differ. The sharding of an array does not matter, nor whether it was a JAX or a "
    "numpy array."
)

# Number of elements compared at a time, so that the comparison needs little memory besides the two arrays.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """How a leaf differs.

    Attributes:
      name: the leaf's name.
      kind: "only in A", "only in B", "type", "shape", "dtype" or "value".
      text: the difference in words.
      differing: number of elements that differ, if values were compared.
      elements: number of elements of the leaf, if values were compared.
      largest: largest absolute difference of two numbers; None if one side of every difference is nan, or if the leaf does not
        hold numbers.
    """

    name: str
    kind: str
    text: str
    differing: int | None = None
    elements: int | None = None
    largest: float | None = None


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


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    with Progress("opening") as progress:
        a, b = (Reader(checkpoint_at(path)) for path in (arguments.a, arguments.b))
        names, ignored = _selected(sorted({*a.keys(), *b.keys()}), arguments.ignore, progress)
        differences, total = [], 0
        for index, name in enumerate(names):
            progress.update(f"comparing {index + 1} of {len(names)} leaves")
            found = _compare(a, b, name)
            if found is None:
                total += a.metadata(name).nbytes
            else:
                differences.append(found)
    if arguments.json:
        print_json(
            {
                "a": a.path,
                "b": b.path,
                "identical": not differences if names or not ignored else None,
                "leaves": len(names),
                "ignored": ignored,
                "differences": [_as_json(difference) for difference in differences],
            }
        )
        return 1 if differences else 0
    print_line(f"A: {a.path}")
    print_line(f"B: {b.path}")
    left_out = f"; {count(ignored, 'leaf', 'leaves')} left out by --ignore, not compared" if ignored else ""
    if not differences:
        if ignored and not names:
            print_line(f"nothing compared{left_out}")
        else:
            leaves = count(len(names), "leaf", "leaves")
            print_line(f"identical: {leaves}, {human_bytes(total)}, bit for bit{left_out}")
        return 0
    for line in table([(difference.kind, difference.name, difference.text) for difference in differences]):
        print_line(line)
    print_line(f"different: {len(differences)} of {count(len(names), 'leaf', 'leaves')}{left_out}")
    return 1


def _selected(names: list[str], patterns: list[str], progress: Progress) -> tuple[list[str], int]:
    """Returns the names that do not match any pattern, and how many others there are. Warns about a pattern without a match."""
    ignored: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            progress.complain(f"jaxckpt diff: warning: --ignore {pattern!r} matches no leaf of either checkpoint")
        ignored |= matched
    return [name for name in names if name not in ignored], len(ignored)


def _compare(a: Reader, b: Reader, name: str) -> Difference | None:
    """Returns the difference of the leaf `name` between two checkpoints; None if it is the same."""
    for reader, other, kind in ((a, b, "only in A"), (b, a, "only in B")):
        if name not in other:
            return Difference(name, kind, _describe(reader.metadata(name)))
    of_a, of_b = a.metadata(name), b.metadata(name)
    if _category(of_a) != _category(of_b):
        return Difference(name, "type", f"{_describe(of_a)} in A, {_describe(of_b)} in B")
    if of_a.kind in ("str", "bytes"):
        return _compare_text(name, of_a.kind, a.get_tensor(name), b.get_tensor(name))
    if of_a.kind == of_b.kind == "TensorFlow string":
        return _compare_strings(name, a.get_tensor(name), b.get_tensor(name))
    if of_a.shape != of_b.shape:
        return Difference(name, "shape", f"{of_a.shape} in A, {of_b.shape} in B")
    if of_a.dtype != of_b.dtype:
        return Difference(name, "dtype", f"{of_a.dtype} in A, {of_b.dtype} in B")
    return _compare_arrays(name, a.get_tensor(name), b.get_tensor(name))


def _category(leaf: LeafMetadata) -> str:
    if leaf.key_impl is not None:
        return f"PRNG key ({leaf.key_impl})"
    return leaf.kind if leaf.kind in ("str", "bytes") else "array"


def _describe(leaf: LeafMetadata) -> str:
    if leaf.kind in ("str", "bytes"):
        return f"{leaf.kind} of {count(leaf.nbytes, 'byte')}"
    return f"{_category(leaf)} {leaf.dtype}{list(leaf.shape)}"


def _compare_text(name: str, kind: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    left, right = (array.tobytes() if kind == "bytes" else str(array[()]) for array in (a, b))
    if left == right:
        return None
    words = [repr(value) if len(value) <= 40 else f"{kind} of length {len(value)}" for value in (left, right)]
    if words[0] == words[1]:
        words = [
            f"{word}, {value[at : at + 20]!r} at {at}"
            for at in [_first_difference(left, right)]
            for word, value in zip(words, (left, right), strict=True)
        ]
    return Difference(name, "value", f"{words[0]} in A, {words[1]} in B")


def _compare_strings(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    if a.shape != b.shape:
        return Difference(name, "shape", f"{a.shape} in A, {b.shape} in B")
    differing = sum(left != right for left, right in zip(a.ravel(), b.ravel(), strict=True))
    text = f"{differing:,} of {count(a.size, 'string')}"
    return Difference(name, "value", text, differing, a.size) if differing else None


def _first_difference(a: Any, b: Any) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _compare_arrays(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    differing, nans = 0, 0
    largest: int | float | None = None
    for left, right in _differing_elements(np.ravel(a), np.ravel(b)):
        differing += left.size
        distances = _distances(left, right)
        numbers = distances[distances == distances]
        nans += distances.size - numbers.size
        if numbers.size:
            largest = max(numbers.max().item(), -math.inf if largest is None else largest)
    if not differing:
        return None
    text = f"{differing:,} of {count(a.size, 'element')}"
    if largest is not None:
        text += (
            f", largest absolute difference {largest:g}"
            if isinstance(largest, float)
            else f", largest absolute difference {largest}"
        )
    if nans:
        text += f", {nans:,} with nan"
    return Difference(name, "value", text, differing, a.size, largest)


def _differing_elements(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the elements of two flat arrays whose bits differ, block by block."""
    for start in range(0, a.size, _BLOCK):
        left, right = (np.ascontiguousarray(array[start : start + _BLOCK]) for array in (a, b))
        bits = [block.view(np.uint8).reshape(block.size, -1) for block in (left, right)]
        where = (bits[0] != bits[1]).any(axis=1)
        if where.any():
            yield left[where], right[where]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns absolute differences, exact for integers, and in double precision for other numbers."""
    if a.dtype.kind == "b":
        return np.ones(a.shape, np.uint64)
    if a.dtype.kind in "iu" or a.dtype.name in ("int2", "int4", "uint2", "uint4"):
        if a.dtype.kind not in "iu":
            a, b = a.astype(np.int64), b.astype(np.int64)
        # The subtraction is modulo 2**64, so it is exact for every distance between two 64-bit integers.
        distances: np.ndarray = np.maximum(a, b).astype(np.uint64) - np.minimum(a, b).astype(np.uint64)
        return distances
    precise = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        distances = np.abs(a.astype(precise) - b.astype(precise))
    return distances


def _as_json(difference: Difference) -> dict[str, Any]:
    fields = asdict(difference)
    if isinstance(difference.largest, float) and not math.isfinite(difference.largest):
        # JSON cannot express infinity.
        fields["largest"] = str(difference.largest)
    return fields
