"""How a leaf differs between two checkpoints, bit for bit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxckpt._lib.documents import damage
from jaxckpt._lib.output import count
from jaxckpt.cli.statistics import Statistics, of_numbers
from jaxckpt.leaf_kinds import registry
from jaxckpt.leaf_kinds.described import LeafMetadata
from jaxckpt.reader import Reader

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
      rms: root mean square of the differences of all elements that are numbers; None where `largest` is None.
      relative: `rms` divided by the root mean square of A's elements.
    """

    name: str
    kind: str
    text: str
    differing: int | None = None
    elements: int | None = None
    largest: float | None = None
    rms: float | None = None
    relative: float | None = None

    @property
    def badness(self) -> tuple[int, float]:
        """Sorts differences: those of structure are worst, then those of values by their relative size."""
        if self.kind != "value":
            return 2, 0.0
        return (1, 0.0) if self.relative is None else (0, self.relative)


def compare(a: Reader, b: Reader, name: str) -> Difference | None:
    """Returns the difference of the leaf `name` between two checkpoints; None if it is the same."""
    for reader, other, kind in ((a, b, "only in A"), (b, a, "only in B")):
        if name not in other:
            return Difference(name, kind, _describe(reader.metadata(name)))
    of_a, of_b = a.metadata(name), b.metadata(name)
    if _category(of_a) != _category(of_b):
        return Difference(name, "type", f"{_describe(of_a)} in A, {_describe(of_b)} in B")
    if _is_one_value(of_a):
        return _compare_values(name, of_a.kind, a.get_tensor(name), b.get_tensor(name))
    if of_a.kind == of_b.kind == "TensorFlow string":
        return _compare_strings(name, a.get_tensor(name), b.get_tensor(name))
    if of_a.shape != of_b.shape:
        return Difference(name, "shape", f"{of_a.shape} in A, {of_b.shape} in B")
    if of_a.dtype != of_b.dtype:
        return Difference(name, "dtype", f"{of_a.dtype} in A, {of_b.dtype} in B")
    return compare_arrays(name, a.get_tensor(name), b.get_tensor(name))


def _category(leaf: LeafMetadata) -> str:
    if leaf.key_impl is not None:
        return f"PRNG key ({leaf.key_impl})"
    return leaf.kind if _is_one_value(leaf) else "array"


def _is_one_value(leaf: LeafMetadata) -> bool:
    kind = registry.named(leaf.kind)
    return kind is not None and kind.is_one_value


def _describe(leaf: LeafMetadata) -> str:
    if _is_one_value(leaf):
        return f"{leaf.kind} of {count(leaf.nbytes, 'byte')}"
    return f"{_category(leaf)} {leaf.dtype}{list(leaf.shape)}"


def _compare_values(name: str, kind_name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    kind = registry.named(kind_name)
    assert kind is not None
    with damage(name, "its stored value"):
        left, right = kind.read(a), kind.read(b)
    if kind.is_same(left, right):
        return None
    if not isinstance(left, (str, bytes)):
        return Difference(name, "value", f"{left!r} in A, {right!r} in B")
    words = [repr(value) if len(value) <= 40 else f"{kind_name} of length {len(value)}" for value in (left, right)]
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


def compare_arrays(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    """Returns the difference of two arrays of the same shape and dtype; None if they are the same, bit for bit."""
    differing, nans = 0, 0
    apart = Statistics()
    largest: int | float | None = None
    for left, right in _differing_elements(np.ravel(a), np.ravel(b)):
        differing += left.size
        distances = _distances(left, right)
        apart += of_numbers(distances)
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
    rms, relative = _means(a, apart)
    if rms is not None:
        text += f", rms {rms:.3g}"
        text += f" ({_percent(relative)} of the rms of A)" if relative is not None and math.isfinite(relative) else ""
    if nans:
        text += f", {nans:,} with nan"
    return Difference(name, "value", text, differing, a.size, largest, rms, relative)


def _means(a: np.ndarray, apart: Statistics) -> tuple[float | None, float | None]:
    """Returns the root mean square of all distances, and how large that is relative to that of A; None where there is no number.

    Args:
      a: the array of A.
      apart: the statistics of the distances of elements that differ.
    """
    if apart.infs:
        return math.inf, math.inf
    if not apart.finite:
        return None, None
    # Those that do not differ are 0 apart.
    rms = apart.rms * math.sqrt(apart.finite / a.size)
    flat = np.ravel(a)
    own = sum((of_numbers(flat[start : start + _BLOCK]) for start in range(0, flat.size, _BLOCK)), Statistics())
    if not own.finite or not own.rms:
        return rms, math.inf if rms else 0.0
    return rms, rms / own.rms


def _percent(part: float | None) -> str:
    return "?" if part is None else f"{part:.2%}" if 1e-4 <= part < 100 else f"{part:.2g} times"


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


def as_json(difference: Difference) -> dict[str, Any]:
    """Returns a difference as JSON values."""
    fields = asdict(difference)
    for name in ("largest", "rms", "relative"):
        value = fields[name]
        if isinstance(value, float) and not math.isfinite(value):
            # JSON cannot express infinity.
            fields[name] = str(value)
    return fields


def subtrees(names: Sequence[str], differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Returns a row for each subtree of one or two levels with differences, the worst first; none if there is no subtree.

    Args:
      names: the names of all leaves that were compared.
      differences: the differences.
    """
    of: dict[str, list[str]] = {}
    for name in names:
        keys = name.split("/")
        for depth in range(1, min(3, len(keys))):
            of.setdefault("/".join(keys[:depth]), []).append(name)
    by_name = {difference.name: difference for difference in differences}
    found = []
    for prefix, members in of.items():
        differing = [by_name[name] for name in members if name in by_name]
        if differing:
            most, rms, relative = (
                max((value for each in differing if (value := getattr(each, field)) is not None), default=None)
                for field in ("largest", "rms", "relative")
            )
            cells = ["" if value is None else f"{value:.3g}" for value in (most, rms, relative)]
            worst = max(each.badness for each in differing)
            found.append((worst, (f"{prefix}/", str(len(differing)), str(len(members)), *cells)))
    return [row for _, row in sorted(found, key=lambda item: [-each for each in item[0]])]
