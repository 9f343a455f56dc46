"""Matches targets with stored leaves by name."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxckpt.errors import CheckpointError
from jaxckpt.leaf_kinds.registry import refusal
from jaxckpt.restoring.adapting import Sought
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.storage.source import Source
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.names import PROCESS, VALUE, leaf_name, leaf_names

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

    @property
    def names(self) -> list[str]:
        """The names of the targets that were found."""
        return leaf_names([target.path for target, _ in self.pairs])


def match(
    targets: Sequence[Leaf],
    stored: Source,
    skip: set[str],
    ignore: str,
    process: tuple[int, int],
    sought: Sought,
) -> Matched:
    """Matches targets and stored leaves by name. The result has the names of the targets.

    If the states of an object differed between processes, each process's was stored. Each process gets its own back.

    Args:
      targets: leaves of the current values.
      stored: the checkpoint.
      skip: names of targets that keep their values and count as matched.
      ignore: a stored name that is not unexpected, although it has no target (the save counter).
      process: index of this process, and the number of processes.
      sought: the targets as they are called in the checkpoint.

    Raises:
      TypeError: a target is not of a kind that can be saved.
      ValueError: Orbax cannot tell the names of two targets apart; or processes had different states, and now there are more or fewer.
      CheckpointError: only a type handler of the program that saved a target's leaf can read it.
    """
    sought_names = target_names = sought.names
    if sought.renamed:
        target_names = leaf_names([target.path for target in targets])
    layout.refuse_collisions([target.path for target in targets], target_names)
    if sought.renamed:
        layout.refuse_collisions([leaf.path for leaf in sought.leaves], sought_names)
    filled = stored.tree.filled
    stored_names = leaf_names([leaf.path for leaf in filled])
    if not skip and sought_names == stored_names and _is_plain(stored.tree, stored_names):
        return Matched(list(zip(targets, filled, strict=True)))
    own = dict(zip(stored_names, filled, strict=True))
    by_name = {leaf.name: leaf for leaf in stored.tree.aliases} | own
    found = Matched()
    names = set(sought_names)
    states = _states(by_name)
    wanted_by_missing: dict[str, str] = {}
    for target, own_name, named, name in zip(targets, target_names, sought.leaves, sought_names, strict=True):
        if own_name in skip:
            found.skipped.append(own_name)
        elif target.is_state and name in states:
            found.pairs.append((target, by_name[_own_state(name, states[name], process, stored.path)]))
            names.update(states[name])
        elif (leaf := by_name.get(name)) is not None:
            found.pairs.append((target, leaf))
        elif (reason := refusal(target.value, "restore")) is not None:
            raise TypeError(f"{own_name}: {reason}")
        elif (other := _other_name(named)) in by_name and other not in names:
            found.pairs.append((target, by_name[other]))
            names.add(other)
        else:
            found.missing.append(own_name)
            wanted_by_missing[own_name] = name
    if any(leaf.is_foreign for leaf in {leaf.value_type: leaf for _, leaf in found.pairs}.values()):
        leaf = next(leaf for _, leaf in found.pairs if leaf.is_foreign)
        raise CheckpointError(f"{leaf.foreign(stored.path)} Leave it out of the Checkpoint to restore the others.")
    asked = {by_name[name].param_name for name in names if name in by_name} if stored.tree.aliases else set()
    found.unexpected = [
        name for name, leaf in own.items() if name not in names and name != ignore and leaf.param_name not in asked
    ]
    free = [*found.unexpected, *(leaf.name for leaf in stored.tree.aliases if leaf.param_name not in asked)]
    for name in found.missing[:_NEAR]:
        wanted = wanted_by_missing[name]
        for other in difflib.get_close_matches(wanted, free[:_NEAR_AMONG]):
            # Names of different leaves of one container are always alike.
            if difflib.get_close_matches(wanted.rpartition("/")[2], [other.rpartition("/")[2]]):
                found.near.setdefault(name, other)
    return found


def _is_plain(tree: StoredTree, names: Sequence[str]) -> bool:
    """Whether the names of targets tell all about the leaves that have the same names: none is another process's, foreign, or an alias.

    Args:
      tree: the tree metadata of the checkpoint.
      names: the names of its leaves.
    """
    return not (tree.aliases or tree.has_foreign or any(name.startswith(PROCESS) for name in names))


def _states(by_name: Mapping[str, StoredLeaf]) -> dict[str, list[str]]:
    """Returns the names of the states of each object that had another one on each process, by the name of the object."""
    found: dict[str, list[str]] = {}
    for name in by_name:
        if name.startswith(PROCESS):
            found.setdefault(name.partition("/")[2], []).append(name)
    return found


def _own_state(name: str, others: Sequence[str], process: tuple[int, int], path: str) -> str:
    """Returns the name of the state of this process.

    Args:
      name: the name of the object, which is also that of the state of process 0.
      others: the names of the states of the other processes.
      process: index of this process, and the number of processes.
      path: path of the checkpoint, for the error.
    """
    index, count = process
    saved = len(others) + 1
    if count != saved:
        raise ValueError(
            f"{name}: the {saved} processes that saved {path} had different states, and each restores its own; now the number of processes "
            f"is {count}. To take one of the states on purpose, leave this object out of the Checkpoint and call "
            f"jaxckpt.load_checkpoint({path!r}).restore_state({name!r}, the_object, process=0)."
        )
    return name if index == 0 else f"{PROCESS}{index}/{name}"


def _other_name(target: Leaf) -> str:
    """Returns the name that a target's leaf has if it was saved in the other of two ways; empty if there is only one.

    Plain Orbax saves an `nnx.State`, in which the array of a Variable lies one level deeper, below `VALUE`; a Checkpoint leaves that out.
    """
    path = target.path
    if len(path) > 1 and path[-1].text == VALUE:
        return leaf_name(path[:-1])
    return target.name_in_state or ""
