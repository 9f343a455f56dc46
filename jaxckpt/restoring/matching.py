"""Which target finds which stored leaf: by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxckpt.errors import CheckpointError
from jaxckpt.leaf_kinds.registry import refusal
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.storage.source import Source
from jaxckpt.tree.flatten import Leaf

Pair = tuple[Leaf, StoredLeaf]


@dataclass
class Matched:
    """Which targets found their leaf.

    Attributes:
      pairs: target and stored leaf.
      skipped: names of slot variables that keep their values.
      missing: names of targets that are not stored.
      unexpected: names of stored leaves that are no target.
    """

    pairs: list[Pair] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def match(targets: Sequence[Leaf], stored: Source, skip: set[str], ignore: str) -> Matched:
    """Matches targets and stored leaves by name.

    Args:
      targets: leaves of the current values.
      stored: the checkpoint.
      skip: names of targets that keep their values and count as matched.
      ignore: a stored name that is nobody's business (the save counter).

    Raises:
      TypeError: a target that could not be saved either.
      ValueError: two targets whose names Orbax could not tell apart, which could not be saved either.
      CheckpointError: a target's leaf was stored by a type handler that only its own program has.
    """
    by_name = {leaf.name: leaf for leaf in stored.tree.leaves if not leaf.is_empty}
    found = Matched()
    layout.refuse_collisions([target.path for target in targets])
    # Names are worked out once: there are thousands.
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
    found.unexpected = [name for name in by_name if name not in names and name != ignore]
    return found
