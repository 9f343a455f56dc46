"""The names that TensorFlow's object graph gives to variables: paths from the root of the checkpoint to each of them. Pure.

A variable is stored once, under one of its names, but objects may share it: Keras 3 stores the weights of a model under
``optimizer/_trainable_variables`` only. The messages are TensorFlow's `TrackableObjectGraph`.
"""

import itertools
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
# Names that one object gets at most; the shortest come first.
_NAMES = 32
# Bytes that all names together may take in memory, about, and the work of finding them: comparisons, and as many for each step. Real
# programs stay far below; a graph that was made to do harm has more paths than there are atoms.
_BYTES = 64 << 20
_STEPS = 10_000_000
_STEP = 10
_KEY_BYTES = 64


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
        for target in [child for child, _ in node.children] + [
            each for one, _, other in node.slots for each in (one, other)
        ]:
            if not 0 <= target < len(nodes):
                raise DamagedError(f"its object graph refers to object {target}, which does not exist")
    budget = _Budget()
    ways = _ways(nodes, _useful(nodes, keys), budget)
    found: dict[str, list[Path]] = {}

    def add(key: str, name: Path) -> None:
        listed = found.setdefault(key, [])
        budget.step(len(listed) + len(name))
        if name and len(listed) < _NAMES and name not in listed and budget.take(name):
            listed.append(name)

    for number, node in enumerate(nodes):
        for name, key in node.attributes:
            end = () if name == _VALUE else path((_ATTRIBUTES, name))
            if key in keys:
                for way, _ in ways.get(number, ()):
                    add(key, way + end)
    for number, node in enumerate(nodes):
        for variable, slot, stored in node.slots:
            values = [key for name, key in nodes[stored].attributes if name == _VALUE and key in keys]
            pairs = itertools.product(values, ways.get(variable, ()), ways.get(number, ()))
            for key, (way, _), (optimizer, _) in pairs:
                if budget.is_spent:
                    return found
                if len(found.get(key, ())) < _NAMES:
                    add(key, (*way, (_SLOT, False), *optimizer, (slot, False)))
                    add(key, (*optimizer, (slot, False), *way))
                budget.step(1)
    return found


class _Budget:
    """What finding names may still take.

    Attributes:
      is_spent: whether nothing is left.
    """

    def __init__(self) -> None:
        self._bytes = _BYTES
        self._steps = _STEPS
        self.is_spent = False

    def take(self, name: Path) -> bool:
        """Counts a name. Returns False if there is no room for it."""
        self._bytes -= sum(_KEY_BYTES + len(text) for text, _ in name)
        self.is_spent = self.is_spent or self._bytes < 0
        return not self.is_spent

    def step(self, length: int) -> None:
        """Counts one step.

        Args:
          length: number of things that are compared in it.
        """
        self._steps -= _STEP + length
        self.is_spent = self.is_spent or self._steps < 0


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


def _ways(nodes: list[_Node], useful: set[int], budget: _Budget) -> dict[int, list[_Way]]:
    """Returns the ways from the root to each object, the shortest first. A way does not visit an object twice."""
    if not nodes:
        return {}
    start: _Way = ((), (0,))
    ways: dict[int, list[_Way]] = {0: [start]}
    waiting = deque([start])
    while waiting:
        way, visited = waiting.popleft()
        if len(way) >= bounds.TREE_LEVELS:
            continue
        for child, name in nodes[visited[-1]].children:
            budget.step(len(visited))
            if budget.is_spent:
                return ways
            known = ways.setdefault(child, [])
            if len(known) >= _NAMES or child not in useful or child in visited:
                continue
            longer = ((*way, (name, False)), (*visited, child))
            if not budget.take(longer[0]):
                return ways
            known.append(longer)
            waiting.append(longer)
    return ways
