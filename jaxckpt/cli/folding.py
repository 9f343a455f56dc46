"""Leaves as a tree of nodes with totals, in which equal siblings are folded: ``layers/0..49``. Pure.

No function here calls itself: a stranger's names may have thousands of keys.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxckpt.leaf_kinds.described import LeafMetadata

Order = Literal["name", "bytes"]

# What is counted as parameters: arrays. Numbers, texts and PRNG keys are not.
_ARRAYS = ("jax.Array", "np.ndarray")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


@dataclass
class Node:
    """A branch or a leaf of the tree, or several equal ones that are folded into one.

    Attributes:
      name: its last key, or several such as ``0..49``.
      leaf: the leaf (the first one of several); None for a branch.
      leaves: all leaves that the node itself stands for, in natural order; empty for a branch.
      folded: how many nodes it stands for, including those of its folded ancestors.
      children: the nodes below it.
      count: number of leaves of it and below it. The totals are of all nodes that it stands for.
      nbytes: their size in bytes.
      parameters: number of elements of their arrays.
    """

    name: str
    leaf: LeafMetadata | None = None
    leaves: list[LeafMetadata] = field(default_factory=list)
    folded: int = 1
    children: list["Node"] = field(default_factory=list)
    count: int = 0
    nbytes: int = 0
    parameters: int = 0


def tree_of(leaves: Iterable[LeafMetadata], *, fold: bool = True, order: Order = "name") -> Node:
    """Returns the root of the tree of leaves, in natural order (2 before 10).

    Args:
      leaves: the leaves.
      fold: whether siblings are folded that differ in a number of their names only, and have the same leaves below them.
      order: "name", or "bytes" for the largest first.
    """
    root = _nested(leaves)
    _total(root)
    if fold:
        _fold(root)
    if order == "bytes":
        for node, _ in walk(root):
            node.children.sort(key=lambda child: -child.nbytes)
    return root


def walk(root: Node) -> Iterator[tuple[Node, int]]:
    """Yields all nodes, each with its depth, from above, in the order in which they are shown. The root has depth 0."""
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        stack.extend((child, depth + 1) for child in reversed(node.children))


def paths(root: Node) -> Iterator[tuple[Node, str]]:
    """Yields all nodes but the root, each with its name from the root, such as ``layers/0..49/kernel``."""
    above: list[str] = []
    for node, depth in walk(root):
        if depth:
            above[depth - 1 :] = [node.name]
            yield node, "/".join(above)


def shown(root: Node, depth: int | None = None) -> Iterator[tuple[Node, int, str]]:
    """Yields the nodes to show as lines: each with its level, and its name. A branch with one child stands on the line of that child.

    Args:
      root: the root.
      depth: how many levels are shown; None for all.
    """
    # For each node on the way down: how many levels it and those above it take, the keys before its child's name, and its `folded`.
    way: list[tuple[int, str, int]] = []
    for node, at in walk(root):
        del way[at:]
        level, before, folded = way[-1] if way else (-1, "", 1)
        joins = bool(node.name) and node.leaf is None and len(node.children) == 1
        times = f" ×{node.folded}" if node.folded > folded and node.leaf is None else ""
        if joins:
            way.append((level, f"{before}{node.name}/", folded))
            continue
        level += 1
        way.append((level, "", node.folded))
        if level > 0 and (depth is None or level <= depth):
            yield node, level, f"{before}{node.name}{'/' if node.children else ''}{times}"


def natural(key: str) -> list[Any]:
    """Returns a key for sorting: numbers in a text count as numbers, and come before other text."""
    parts: list[Any] = []
    end = 0
    for match in _NUMBER.finditer(key):
        if match.start() > end:
            parts.append((1, 0, key[end : match.start()]))
        parts.append((0, int(match[0]), match[0]))
        end = match.end()
    return [*parts, (1, 0, key[end:])] if end < len(key) else parts


def is_parameter(leaf: LeafMetadata) -> bool:
    """Whether the elements of a leaf count as parameters."""
    return leaf.kind in _ARRAYS and leaf.key_impl is None


def _nested(leaves: Iterable[LeafMetadata]) -> Node:
    root = Node("")
    nodes: dict[tuple[int, str], Node] = {}
    for leaf in leaves:
        node = root
        # Each slash separates two keys, because a slash inside a key is written as ~1.
        for key in leaf.name.split("/"):
            found = nodes.get((id(node), key))
            if found is None:
                found = nodes[id(node), key] = Node(key)
                node.children.append(found)
            node = found
        node.leaf = leaf
        node.leaves = [leaf]
    for node, _ in walk(root):
        node.children.sort(key=lambda child: natural(child.name))
    return root


def _total(root: Node) -> None:
    for node, _ in reversed([*walk(root)]):
        if node.leaf is not None:
            node.count += 1
            node.nbytes += node.leaf.nbytes
            node.parameters += math.prod(node.leaf.shape) if is_parameter(node.leaf) else 0
        for child in node.children:
            node.count += child.count
            node.nbytes += child.nbytes
            node.parameters += child.parameters


def _fold(root: Node) -> None:
    # Numbers for what stands below nodes: the same number, the same names and leaves.
    forms: dict[Any, int] = {}
    form_of: dict[int, int] = {}
    for node, _ in reversed([*walk(root)]):
        groups: list[list[Node]] = []
        # By what folded nodes have in common: their number so far, and the number that the next one has to have.
        begun: dict[Any, tuple[list[Node], int]] = {}
        for child in node.children:
            before, number, after = _apart(child.name)
            key = (form_of[id(child)], before, after)
            group, following = begun.get(key, ([], -1))
            if number is not None and number == following:
                group.append(child)
            else:
                group = [child]
                groups.append(group)
            if number is not None:
                begun[key] = group, number + 1
        node.children = [_merged(members) for members in groups]
        below = tuple(
            (child.name, form_of[id(members[0])]) for members, child in zip(groups, node.children, strict=True)
        )
        leaf = node.leaf
        own = (
            None
            if leaf is None
            else (leaf.kind, leaf.shape, str(leaf.dtype), leaf.sharding, leaf.key_impl, leaf.nbytes)
        )
        form_of[id(node)] = forms.setdefault((own, below), len(forms))


def _apart(name: str) -> tuple[str, int | None, str]:
    """Returns a name's last number, and what is before and after it."""
    found = [*_NUMBER.finditer(name)]
    if not found or found[-1][0] != str(int(found[-1][0])):
        return name, None, ""
    return name[: found[-1].start()], int(found[-1][0]), name[found[-1].end() :]


def _merged(members: Sequence[Node]) -> Node:
    """Returns one node for equal ones, whose children are equal too."""
    root = members[0]
    if len(members) == 1:
        return root
    before, first, after = _apart(root.name)
    root.name = f"{before}{first}..{_apart(members[-1].name)[1]}{after}"
    stack = [list(members)]
    while stack:
        same = stack.pop()
        node = same[0]
        node.leaves = [leaf for each in same for leaf in each.leaves]
        node.folded = sum(each.folded for each in same)
        node.count = sum(each.count for each in same)
        node.nbytes = sum(each.nbytes for each in same)
        node.parameters = sum(each.parameters for each in same)
        stack.extend(list(below) for below in zip(*[each.children for each in same], strict=True))
    return root
