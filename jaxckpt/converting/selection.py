"""Chooses which leaves of a checkpoint are converted, and under which names. Pure."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxckpt.storage.item.description import COUNTER
from jaxckpt.storage.item.tree_metadata import StoredLeaf, StoredTree
from jaxckpt.tree.names import OBJECT_INDEX, Key, Path, leaf_name
from jaxckpt.tree.renaming import Rule


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
      patterns: patterns of the names of the leaves to take (`*` stands for any text); none for all leaves.
      rules: rules for names, applied one after the other.
    """

    patterns: Sequence[str] = ()
    rules: Sequence[Rule] = ()


@dataclass
class Selected:
    """The leaves to convert.

    Attributes:
      leaves: the new path of each leaf, and the leaf.
      counter: the leaf that holds the save counter, if the checkpoint has it among its leaves.
      left_out: names of leaves that cannot be part of a tree, each with the reason.
      other_names: new names of leaves that keep their own name but have another one too, each with one such name.
    """

    leaves: list[tuple[Path, StoredLeaf]] = field(default_factory=list)
    counter: StoredLeaf | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    other_names: dict[str, str] = field(default_factory=dict)


def select(tree: StoredTree, choice: Choice) -> Selected:
    """Chooses leaves and names.

    Args:
      tree: the tree metadata of the checkpoint.
      choice: what the user chose.

    Raises:
      ValueError: a pattern or a rule fits no leaf, or two leaves would get one name. The message names it.
    """
    names: dict[str, list[Path]] = {}
    for leaf in (*tree.leaves, *tree.aliases):
        names.setdefault(leaf.param_name if not leaf.is_empty else f"\0{leaf.name}", []).append(_path(leaf, tree))
    found = Selected()
    used: set[str] = set()
    for leaf in tree.leaves:
        paths = names[leaf.param_name if not leaf.is_empty else f"\0{leaf.name}"]
        fitting = [
            each for each in choice.patterns if any(fnmatch.fnmatchcase(leaf_name(path), each) for path in paths)
        ]
        used.update(fitting)
        if choice.patterns and not fitting:
            continue
        path = _renamed(paths, choice.rules, used)
        if leaf.name == COUNTER and tree.by_jaxckpt is None and not leaf.is_empty and path == paths[0]:
            found.counter = leaf
        elif leaf.is_foreign:
            found.left_out[leaf.name] = f"not a leaf of a JAX program ({leaf.value_type})"
        elif not path:
            raise ValueError(f"--rename leaves nothing of the name {leaf.name!r}.")
        else:
            found.leaves.append((path, leaf))
            if path == paths[0] and len(paths) > 1:
                found.other_names[leaf_name(path)] = leaf_name(paths[1])
    for text in (*choice.patterns, *(rule.text for rule in choice.rules)):
        if text not in used:
            raise ValueError(f"{text!r} fits no leaf. `jaxckpt inspect` lists the leaves.")
    _refuse_twice(found.leaves)
    _leave_out_nested(found)
    return found


def _path(leaf: StoredLeaf, tree: StoredTree) -> Path:
    texts = tuple(text for text, _ in leaf.path)
    return tuple(
        Key(text, OBJECT_INDEX if tree.sequences and texts[:depth] in tree.sequences else is_index)
        for depth, (text, is_index) in enumerate(leaf.path)
    )


def _renamed(paths: Sequence[Path], rules: Sequence[Rule], used: set[str]) -> Path:
    """Returns the new path of a leaf. A rule may be about any of its names; then that one is renamed, and is its name from then on.

    Args:
      paths: the paths of the leaf, its own first.
      rules: the rules.
      used: the texts of rules that fitted a leaf are added.
    """
    for rule in rules:
        for path in paths:
            new = rule.apply(path)
            if new is not None:
                used.add(rule.text)
                paths = [new]
                break
    return paths[0]


def _refuse_twice(leaves: Sequence[tuple[Path, StoredLeaf]]) -> None:
    seen: dict[tuple[str, ...], StoredLeaf] = {}
    for path, leaf in leaves:
        other = seen.setdefault(tuple(key.text for key in path), leaf)
        if other is not leaf:
            raise ValueError(f"{other.name!r} and {leaf.name!r} would both be {leaf_name(path)!r}. Rename one of them.")


def _leave_out_nested(found: Selected) -> None:
    """Leaves out what lies below another leaf, such as a slot variable of TensorFlow's: a tree has no place there."""
    paths = {tuple(key.text for key in path) for path, leaf in found.leaves}
    kept = []
    for path, leaf in found.leaves:
        texts = tuple(key.text for key in path)
        above = next((texts[:depth] for depth in range(1, len(texts)) if texts[:depth] in paths), None)
        if above is None:
            kept.append((path, leaf))
        else:
            found.left_out[leaf_name(path)] = f"lies below the leaf {leaf_name([(text, 0) for text in above])}"
    found.leaves = kept
