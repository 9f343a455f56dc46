"""Groups of pairs of targets and stored leaves that are alike, so that one of them is looked at for all."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jaxckpt._lib import groups
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.content import nbytes
from jaxckpt.tree.names import leaf_names


class Alike(NamedTuple):
    """Pairs for which `LeafKind.validate` finds the same, and `LeafKind.place` returns the same. There is at least one.

    Attributes:
      pairs: the pairs.
      info: the metadata of each of the stored arrays; None for a leaf that is stored as a str.
    """

    pairs: list[Pair]
    info: ArrayInfo | None

    @property
    def names(self) -> list[str]:
        """The names of the targets."""
        return leaf_names([target.path for target, _ in self.pairs])

    @property
    def nbytes(self) -> int:
        """Size of all stored arrays in bytes, 0 for strs."""
        return len(self.pairs) * _size(self.info)


def alike(pairs: Sequence[Pair], infos: Mapping[str, ArrayInfo], alone: Collection[str] = ()) -> list[Alike]:
    """Returns pairs in groups of those that are alike. A pair that is like no other is a group too.

    Args:
      pairs: the pairs.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
      alone: names of targets that are groups by themselves.
    """
    found: list[Alike] = []
    # The pairs of each group, by what they have in common.
    known: dict[Any, list[Pair]] = {}
    numbers = _Numbers()
    by_id = numbers.by_id
    last: Any = None
    traits_of: Any = None
    for pair in pairs:
        target, (_, name, value_type, note, key_impl) = pair
        value = target.value
        if type(value) is not last:
            last, traits_of = type(value), kind_of(value).traits
        traits = traits_of(value)
        info = infos.get(name)
        if traits is None or (alone and target.name in alone):
            found.append(Alike([pair], info))
            continue
        own, slow = traits
        objects = [by_id.get(id(each)) or numbers.number(each) for each in slow]
        key = last, own, *objects, id(info), value_type, note, key_impl
        group = known.get(key)
        if group is None:
            group = known[key] = []
            found.append(Alike(group, info))
        group.append(pair)
    return found


def divided(
    pairs: Sequence[Pair], infos: Mapping[str, ArrayInfo], alone: Collection[str], memory: int
) -> list[list[Alike]]:
    """Returns pairs, in order, in parts of at most so many bytes; each part in groups of those that are alike.

    There is always a first part, even if there are no pairs.

    Args:
      pairs: the pairs; all of them are arrays.
      infos: as for `alike`.
      alone: as for `alike`.
      memory: the largest size of a part in bytes. A larger array is a part by itself.
    """
    found = alike(pairs, infos, alone)
    if sum([group.nbytes for group in found]) <= memory:
        return [found]
    parts = groups.groups(pairs, lambda pair: _size(infos[pair[1].param_name]), memory)
    return [alike(part, infos, alone) for part in parts]


class _Numbers:
    """Positive numbers of objects. Equal objects have the same number. Thousands of values have the same few objects.

    Attributes:
      by_id: the numbers by id of the object.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, int] = {}
        self._by_object: dict[Any, int] = {}
        # So that another object cannot get the id of one that has a number.
        self._kept: list[Any] = []

    def number(self, new: Any) -> int:
        """Gives an object its number, and returns it."""
        self._kept.append(new)
        found = self.by_id[id(new)] = self._by_object.setdefault(new, len(self._by_object) + 1)
        return found


def _size(info: ArrayInfo | None) -> int:
    return 0 if info is None else nbytes(info.shape, info.dtype)
