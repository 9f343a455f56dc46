"""Matches targets with stored leaves by name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxckpt.errors import CheckpointError
from jaxckpt.leaf_kinds.registry import refusal
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import Source
from jaxckpt.tree.flatten import Leaf

Pair = tuple[Leaf, StoredLeaf]
# Names for which a similar one is looked for, and among how many; each comparison takes time.
_NEAR = 5
_NEAR_AMONG = 1000


@dataclass
class Matched:
    """The result of matching.

    Attributes:
      pairs: each target that was found, and its stored leaf.
      skipped: names of slot variables that keep their values.
      missing: names of targets that are not stored.
      unexpected: names of stored leaves that have no target.
      near: for some of the missing names, a stored name that is much like it.
    """

    pairs: list[Pair] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    near: dict[str, str] = field(default_factory=dict)


def match(targets: Sequence[Leaf], stored: Source, skip: set[str], ignore: str) -> Matched:
    """Matches targets and stored leaves by name.

    Args:
      targets: leaves of the current values.
      stored: the checkpoint.
      skip: names of targets that keep their values and count as matched.
      ignore: a stored name that is not unexpected, although it has no target (the save counter).

    Raises:
      TypeError: a target is not of a kind that can be saved.
      ValueError: Orbax cannot tell the names of two targets apart.
      CheckpointError: only a type handler of the program that saved a target's leaf can read it.
    """
    own = {leaf.name: leaf for leaf in stored.tree.leaves if not leaf.is_empty}
    by_name = {leaf.name: leaf for leaf in stored.tree.aliases} | own
    found = Matched()
    layout.refuse_collisions([target.path for target in targets])
    # There may be thousands of names: build each of them once.
    target_names = [target.name for target in targets]
    names = set(target_names)
    for target, name in zip(targets, target_names, strict=True):
        if name in skip:
            found.skipped.append(name)
        elif name in by_name:
            found.pairs.append((target, by_name[name]))
        elif (reason := refusal(target.value, "restore")) is not None:
            raise TypeError(f"{name}: {reason}")
        elif (other := target.name_in_state) in by_name and other not in names:
            found.pairs.append((target, by_name[other]))
            names.add(other)
        else:
            found.missing.append(name)
    for _, leaf in found.pairs:
        if leaf.is_foreign:
            raise CheckpointError(f"{leaf.foreign(stored.path)} Leave it out of the Checkpoint to restore the others.")
    asked = {by_name[name].param_name for name in names if name in by_name} if stored.tree.aliases else set()
    found.unexpected = [
        name for name, leaf in own.items() if name not in names and name != ignore and leaf.param_name not in asked
    ]
    free = [*found.unexpected, *(leaf.name for leaf in stored.tree.aliases if leaf.param_name not in asked)]
    for name in found.missing[:_NEAR]:
        for other in difflib.get_close_matches(name, free[:_NEAR_AMONG]):
            # Names of different leaves of one container are always alike.
            if difflib.get_close_matches(name.rpartition("/")[2], [other.rpartition("/")[2]]):
                found.near.setdefault(name, other)
    return found
