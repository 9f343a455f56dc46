"""Runs: pairs of targets and stored leaves that follow each other and are alike, so that one of them is looked at for all."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxckpt._lib import groups
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.content import nbytes
from jaxckpt.tree.names import leaf_names


class Run(NamedTuple):
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
        return len(self.pairs) * _size(self)


def of(pairs: Sequence[Pair], infos: Mapping[str, ArrayInfo]) -> list[Run]:
    """Returns pairs in runs, in order. A pair that is like no other is a run too.

    Args:
      pairs: the pairs.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
    """
    found: list[Run] = []
    alike: list[Pair] = []
    facts: tuple[Any, ...] | None = None
    last: Any = None
    for pair in pairs:
        target, (_, name, value_type, note, key_impl) = pair
        value = target.value
        if type(value) is not last:
            last, traits_of = type(value), kind_of(value).traits
        traits = traits_of(value)
        info = infos.get(name)
        # Most often the parts are the same objects, which makes the comparison fast.
        own = None if traits is None else (last, traits, info, value_type, note, key_impl)
        if own is not None and own == facts:
            alike.append(pair)
        else:
            alike, facts = [pair], own
            found.append(Run(alike, info))
    return found


def divided(runs: Sequence[Run], memory: int) -> Iterator[list[Run]]:
    """Yields runs in groups of at most so many bytes. A run may be divided; a larger array is a group by itself.

    There is always a first group, even if there are no runs.

    Args:
      runs: the runs.
      memory: the largest size of a group in bytes.
    """
    if sum([run.nbytes for run in runs]) <= memory:
        yield list(runs)
        return
    pairs = [(run, pair) for run in runs for pair in run.pairs]
    for group in groups.groups(pairs, lambda each: _size(each[0]), memory):
        parts = [list(part) for _, part in itertools.groupby(group, lambda each: id(each[0]))]
        yield [Run([pair for _, pair in part], part[0][0].info) for part in parts]


def _size(run: Run) -> int:
    return 0 if run.info is None else nbytes(run.info.shape, run.info.dtype)
