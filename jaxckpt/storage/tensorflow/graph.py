"""The names that TensorFlow's object graph gives to variables: paths from the root of the checkpoint to each of them. Pure.

A variable is stored once, under one of its names, but objects may share it: Keras 3 stores the weights of a model under
``optimizer/_trainable_variables`` only. The messages are TensorFlow's `TrackableObjectGraph`.
"""

import re
from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.tensorflow.wire import as_bytes, as_int, as_text, fields

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_ATTRIBUTES = ".ATTRIBUTES"
_VALUE = "VARIABLE_VALUE"
_SLOT = ".OPTIMIZER_SLOT"
_SUFFIX = (_ATTRIBUTES, _VALUE)
# TensorFlow writes a dot in a name as two dots, and a slash as ".S".
_ESCAPED = re.compile(r"\.([.S])")
# Names that one object gets at most, and all objects together; the shortest come first.
_NAMES = 32
_ALL_NAMES = 200_000


class _Node(NamedTuple):
    children: tuple[tuple[int, str], ...]
    attributes: tuple[tuple[str, str], ...]
    slots: tuple[tuple[int, str, int], ...]


# The keys from the root to a leaf; none of them counts as an index.
Path = tuple[tuple[str, bool], ...]
# Keys of a path, and the numbers of the objects on it.
_Way = tuple[Path, tuple[int, ...]]


def path(words: Iterable[str]) -> Path:
    """Returns words as a path."""
    return tuple((word, False) for word in words)


def path_of(key: str, *, is_escaped: bool) -> Path:
    """Returns the path of the leaf that is stored under a key.

    Args:
      key: TensorFlow's key, such as ``model/kernel/.ATTRIBUTES/VARIABLE_VALUE``.
      is_escaped: whether names in it are escaped: in a checkpoint with an object graph.
    """
    words = tuple(key.split("/"))
    if is_escaped:
        words = tuple(_plain(word) for word in words)
        if words[-2:] == _SUFFIX and len(words) > 2:
            words = words[:-2]
    return path(words)


def _plain(word: str) -> str:
    return word if word in (_ATTRIBUTES, _SLOT) else _ESCAPED.sub(lambda found: "/" if found[1] == "S" else ".", word)


def names(content: bytes, keys: Collection[str]) -> dict[str, list[Path]]:
    """Returns the paths that the object graph gives to each key.

    A slot variable of an optimizer has two for each pair of names: ``<variable>/.OPTIMIZER_SLOT/<optimizer>/<slot>``, as TensorFlow calls
    it, and ``<optimizer>/<slot>/<variable>``, which fits into a tree.

    Args:
      content: the message.
      keys: the keys that are stored.

    Raises:
      DamagedError: the content is not an object graph.
    """
    nodes = [_node(as_bytes(value)) for number, value in fields(content) if number == 1]
    for node in nodes:
        for target in [child for child, _ in node.children] + [each for a, _, b in node.slots for each in (a, b)]:
            if not 0 <= target < len(nodes):
                raise DamagedError(f"its object graph refers to object {target}, which does not exist")
    ways = _ways(nodes, _useful(nodes, keys))
    found: dict[str, list[Path]] = {}

    def add(key: str, name: Path) -> None:
        listed = found.setdefault(key, [])
        if key in keys and name and len(listed) < _NAMES and name not in listed:
            listed.append(name)

    for number, node in enumerate(nodes):
        for name, key in node.attributes:
            end = () if name == _VALUE else path((_ATTRIBUTES, name))
            for way, _ in ways.get(number, ()):
                add(key, way + end)
    for number, node in enumerate(nodes):
        for variable, slot, stored in node.slots:
            for name, key in nodes[stored].attributes:
                if name == _VALUE:
                    for way, _ in ways.get(variable, ()):
                        for optimizer, _ in ways.get(number, ()):
                            add(key, (*way, (_SLOT, False), *optimizer, (slot, False)))
                            add(key, (*optimizer, (slot, False), *way))
    return found


def _node(content: bytes) -> _Node:
    children, attributes, slots = [], [], []
    for number, value in fields(content):
        if number == 1:
            inner = dict(fields(as_bytes(value)))
            children.append((as_int(inner.get(1, 0)), as_text(inner.get(2, b""))))
        elif number == 2:
            inner = dict(fields(as_bytes(value)))
            attributes.append((as_text(inner.get(1, b"")), as_text(inner.get(3, b""))))
        elif number == 3:
            inner = dict(fields(as_bytes(value)))
            slots.append((as_int(inner.get(1, 0)), as_text(inner.get(2, b"")), as_int(inner.get(3, 0))))
    return _Node(tuple(children), tuple(attributes), tuple(slots))


def _useful(nodes: list[_Node], keys: Collection[str]) -> set[int]:
    """Returns the objects from which a stored value can be reached."""
    parents: dict[int, list[int]] = {}
    waiting = []
    for number, node in enumerate(nodes):
        for child, _ in node.children:
            parents.setdefault(child, []).append(number)
        # An optimizer may have nothing but slots, which are not its children.
        if node.slots or any(key in keys for _, key in node.attributes):
            waiting.append(number)
    useful = set(waiting)
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in useful:
                useful.add(parent)
                waiting.append(parent)
    return useful


def _ways(nodes: list[_Node], useful: set[int]) -> dict[int, list[_Way]]:
    """Returns the ways from the root to each object, the shortest first. A way does not visit an object twice."""
    if not nodes:
        return {}
    start: _Way = ((), (0,))
    ways: dict[int, list[_Way]] = {0: [start]}
    waiting = deque([start])
    count = 0
    while waiting and count < _ALL_NAMES:
        way, visited = waiting.popleft()
        if len(way) >= bounds.TREE_LEVELS:
            continue
        for child, name in nodes[visited[-1]].children:
            if child not in useful or child in visited:
                continue
            known = ways.setdefault(child, [])
            if len(known) < _NAMES:
                longer = ((*way, (name, False)), (*visited, child))
                known.append(longer)
                waiting.append(longer)
                count += 1
    return ways
