"""How arrays lay on the devices that saved them, from Orbax's record of a sharding. Pure."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxckpt._lib.documents import as_dict, as_extents, as_list, as_text, parse
from jaxckpt.leaf_kinds.described import LeafMetadata

# No job has more. A record that claims more is not drawn.
_MOST_DEVICES = 1 << 20


class Mesh(NamedTuple):
    """A mesh of devices, and how the axes of an array are divided over it.

    Attributes:
      axes: name and size of each axis of the mesh.
      spec: for each axis of the array, the names of the axes of the mesh that divide it. Further axes of the array are not divided.
    """

    axes: tuple[tuple[str, int], ...]
    spec: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        axes = ", ".join(f"{name}={size}" for name, size in self.axes)
        return f"NamedSharding({axes}; {self.partition_spec})"

    @property
    def partition_spec(self) -> str:
        """The division in JAX's words: ``PartitionSpec('x', None)``."""
        words = [repr(names) if len(names) > 1 else repr(names[0]) if names else "None" for names in self.spec]
        return f"PartitionSpec({', '.join(words)})"

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(size for _, size in self.axes)

    def parts(self, axis: int) -> int:
        """Returns into how many parts an axis of the array is divided."""
        sizes = dict(self.axes)
        return math.prod(sizes[name] for name in self.spec[axis]) if axis < len(self.spec) else 1

    def places(self, axes: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yields for each device, in the order of the mesh, which part of some axes of the array it has.

        Args:
          axes: the axes of the array.
        """
        sizes = dict(self.axes)
        names = [name for name, _ in self.axes]
        for number, place in enumerate(itertools.product(*[range(size) for _, size in self.axes])):
            at = dict(zip(names, place, strict=True))
            found = []
            for axis in axes:
                part = 0
                for name in self.spec[axis] if axis < len(self.spec) else ():
                    part = part * sizes[name] + at[name]
                found.append(part)
            yield number, tuple(found)


def mesh_of(leaf: LeafMetadata) -> Mesh | None:
    """Returns the mesh of an array, and its division over it; None if its record does not tell them.

    Args:
      leaf: the description of the array.
    """
    if leaf.sharding is None:
        return None
    try:
        note = as_dict(parse(leaf.sharding), "a sharding")
        if note["sharding_type"] != "NamedSharding":
            return None
        names = [as_text(name, "a name") for name in as_list(note["axis_names"], "names")]
        sizes = as_extents(note["shape"], "a shape", 1, len(names))
        spec = tuple(_names(part, names) for part in as_list(note["partition_spec"], "a spec"))
    except (ValueError, KeyError, TypeError):
        # Another version of Orbax wrote this record.
        return None
    if math.prod(sizes) > _MOST_DEVICES or len(spec) > len(leaf.shape) or len(set(names)) < len(names):
        return None
    return Mesh(tuple(zip(names, sizes, strict=True)), spec)


def _names(part: Any, known: Sequence[str]) -> tuple[str, ...]:
    names = () if part is None else tuple(as_list(part, "names")) if not isinstance(part, str) else (part,)
    if not set(names) <= set(known):
        raise ValueError("a partition spec with a name that the mesh lacks")
    return names


def described(leaf: LeafMetadata) -> str:
    """Returns in JAX's words how an array was divided, such as ``NamedSharding(x=4, y=2; PartitionSpec('x', None))``.

    Args:
      leaf: its description. The record of another version of Orbax is returned as it is.
    """
    mesh = mesh_of(leaf)
    if mesh is not None:
        return str(mesh)
    text = leaf.sharding or ""
    try:
        note = as_dict(parse(text), "a sharding")
        return f"on {note['device_str']}" if note["sharding_type"] == "SingleDeviceSharding" else text
    except (ValueError, KeyError, TypeError):
        return text
