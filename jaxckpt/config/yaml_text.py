"""Parses YAML text into plain values: accepts safe types only, refuses repeated keys, and knows the line of every key.

PyYAML composes the text into its node graph, which keeps positions and repeated keys. The values are built from that graph. Aliases let a
short text expand to very many values, so both steps count.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxckpt.config.bounds import ITSELF, MAX_BYTES, MAX_DEPTH, MAX_DIGITS, TOO_DEEP, Counter, TooMuchError
from jaxckpt.config.problems import UNUSABLE, KeyPath, Problem, ambiguous_number, shown

_MAPPING = "tag:yaml.org,2002:map"
_SEQUENCE = "tag:yaml.org,2002:seq"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_VALUE = "tag:yaml.org,2002:value"


class YamlText:
    """One YAML document.

    Attributes:
      value: the plain value, in which unusable parts are `UNUSABLE`.
      problems: the problems of the document.
      valid: whether the text could be parsed at all.
      end: index of the first character after the value; 0 if there is no value.
    """

    def __init__(self, text: str, label: Callable[[int], str], base: KeyPath = ()) -> None:
        """Parses `text`.

        Args:
          text: one YAML document.
          label: returns the name of a line (counted from 0) for messages.
          base: key path of the whole value, which is put before every key path in a problem.
        """
        # Imported here, so that `import jaxckpt` stays fast.
        import yaml  # type: ignore[import-untyped]

        self._yaml: Any = yaml
        self._label = label
        self._base = base
        self._root: Any = None
        self._scalars: dict[int, object] = {}
        self._counter = Counter()
        # Nodes under construction, from the top down. A node that is met again contains itself.
        self._above: set[int] = set()
        # The entries of each mapping, merged ones included, by node.
        self._entries: dict[int, list[tuple[Any, Any]]] = {}
        # Key path of the value under construction.
        self._place: KeyPath = ()
        self.problems: list[Problem] = []
        self.valid = True
        self.end = 0
        self.value: object = None
        try:
            if len(text) > MAX_BYTES:
                raise TooMuchError(f"expected at most {MAX_BYTES:,} characters, got {len(text):,}")
            self._loader: Any = _loader_class()(text)
            self._root = self._loader.get_single_node()
            if self._root is not None:
                self.end = self._root.end_mark.index
                self.value = self._build(self._root, ())
        except yaml.YAMLError as error:
            self._refuse(error)
        except TooMuchError as error:
            # Aliases may exceed a bound far below, so the problem is reported at the top-level key.
            path = self._place[:1]
            line = self.line(path) if path else error.line
            self._give_up(str(error), -1 if line is None else line, path)
        except RecursionError:
            self._give_up(TOO_DEEP, -1, ())

    def line(self, path: KeyPath) -> int | None:
        """Returns the line (counted from 0) of the key or list element at `path`; None if the text does not have it."""
        found = self._find(path)
        return None if found is None else int(found[0].start_mark.line)

    def written(self, path: KeyPath) -> str | None:
        """Returns the spelling of the scalar at `path`; None for anything that is not an unquoted scalar."""
        found = self._find(path)
        return None if found is None else self._spelling(found[1])

    def _refuse(self, error: Any) -> None:
        """Records that the whole document is unusable."""
        mark = getattr(error, "problem_mark", None)
        reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        context = getattr(error, "context", None)
        reason = f"{context}, {reason}" if context else reason
        self._give_up(f"expected valid YAML, got an error: {reason}", mark.line if mark is not None else -1, ())

    def _give_up(self, text: str, line: int, path: KeyPath) -> None:
        self.valid = False
        self.value = UNUSABLE
        self.problems = [Problem((*self._base, *path), text, self._label(line))]

    def _build(self, node: Any, path: KeyPath) -> object:
        self._place = path
        self._counter.add()
        if isinstance(node, self._yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag != (_MAPPING if isinstance(node, self._yaml.MappingNode) else _SEQUENCE):
            return self._problem(node, path, f"expected a plain mapping or list, got the YAML tag {shown(node.tag)}")
        if id(node) in self._above:
            return self._problem(node, path, ITSELF)
        if len(path) >= MAX_DEPTH:
            raise TooMuchError(TOO_DEEP)
        self._above.add(id(node))
        try:
            if isinstance(node, self._yaml.MappingNode):
                return self._mapping(node, path)
            return [self._build(child, (*path, index)) for index, child in enumerate(node.value)]
        finally:
            self._above.discard(id(node))

    def _mapping(self, node: Any, path: KeyPath) -> object:
        return {
            self._scalar(key_node, path): self._build(value_node, (*path, self._scalar(key_node, path)))
            for key_node, value_node in self._merged(node, path)
        }

    def _merged(self, node: Any, path: KeyPath) -> list[tuple[Any, Any]]:
        """Returns the entries of a mapping, each key once: its own entries, and those that its merge keys (<<) add."""
        if id(node) in self._entries:
            return self._entries[id(node)]
        # A mapping that merges itself adds nothing: its entries count as empty until they are known.
        self._entries[id(node)] = []
        own: dict[object, tuple[Any, Any]] = {}
        brought: dict[object, tuple[Any, Any]] = {}
        for key_node, value_node in node.value:
            self._counter.add()
            if not isinstance(key_node, self._yaml.ScalarNode):
                self._problem(key_node, path, "expected text as key, got a mapping or list")
                continue
            is_merge = key_node.tag == _MERGE
            if key_node.tag == _VALUE:
                # YAML gives the key "=" a tag of its own.
                key_node.tag = _TEXT
            key = key_node.value if is_merge else self._scalar(key_node, path)
            if key in own:
                first = self._label(own[key][0].start_mark.line)
                self._problem(key_node, (*path, key), f"expected each key once, got it twice (first at {first})")
            own[key] = key_node, value_node
            if is_merge:
                self._bring_in(brought, value_node, (*path, key))
        merges = [key for key, (key_node, _) in own.items() if key_node.tag == _MERGE]
        for key in merges:
            del own[key]
        self._entries[id(node)] = entries = list((brought | own).values())
        return entries

    def _bring_in(self, brought: dict[object, tuple[Any, Any]], node: Any, path: KeyPath) -> None:
        """Adds the entries of a merged mapping, or of a list of mappings. The first mapping of a list wins.

        Args:
          brought: the merged entries so far.
          node: the value of the merge key.
          path: key path of the merge key.
        """
        sources = node.value[::-1] if isinstance(node, self._yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, self._yaml.MappingNode):
                self._problem(source, path, "expected a mapping, or a list of mappings, to merge")
                continue
            if len(path) >= MAX_DEPTH:
                raise TooMuchError(TOO_DEEP)
            entries = self._merged(source, path)
            self._counter.add(len(entries))
            brought.update((self._scalar(key_node, path), (key_node, value_node)) for key_node, value_node in entries)

    def _scalar(self, node: Any, path: KeyPath) -> object:
        """Returns the value of a scalar. A problem is reported only once, even if the node appears again (by an alias, or as a key)."""
        if id(node) not in self._scalars:
            self._scalars[id(node)] = self._construct(node, path)
        return self._scalars[id(node)]

    def _construct(self, node: Any, path: KeyPath) -> object:
        spelling = self._spelling(node)
        if node.tag in (_INT, _FLOAT) and len(node.value) > MAX_DIGITS:
            return self._problem(
                node, path, f"expected a number of at most {MAX_DIGITS:,} characters, got {len(node.value):,}"
            )
        try:
            value: object = self._loader.construct_object(node)
        except self._yaml.constructor.ConstructorError:
            return self._problem(node, path, f"expected a plain value, got the YAML tag {shown(node.tag)}")
        except (ValueError, OverflowError, KeyError, AttributeError) as error:
            # Examples are 2024-99-99 and !!bool maybe.
            kind = node.tag.rpartition(":")[2]
            return self._problem(
                node, path, f"expected a {kind}, got {shown(node.value)} ({error}); quote it to mean text"
            )
        trouble = None if spelling is None else ambiguous_number(value, spelling)
        return value if trouble is None else self._problem(node, path, trouble)

    def _spelling(self, node: Any) -> str | None:
        plain = isinstance(node, self._yaml.ScalarNode) and node.style is None
        return str(node.value) if plain else None

    def _problem(self, node: Any, path: KeyPath, text: str) -> object:
        self.problems.append(Problem((*self._base, *path), text, self._label(node.start_mark.line)))
        return UNUSABLE

    def _find(self, path: KeyPath) -> tuple[Any, Any] | None:
        """Returns the node whose line messages show (that of the key, for a mapping) and the node of the value at `path`."""
        place = node = self._root
        for part in path:
            if isinstance(node, self._yaml.MappingNode):
                # If a key is given twice, the last one counts.
                entries = self._entries.get(id(node), node.value)
                pairs = [(key, value) for key, value in entries if self._is_key(key, part)]
                if not pairs:
                    return None
                place, node = pairs[-1]
            elif isinstance(node, self._yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                place = node = node.value[part]
            else:
                return None
        return None if node is None else (place, node)

    def _is_key(self, node: Any, key: object) -> bool:
        return isinstance(node, self._yaml.ScalarNode) and bool(self._scalars.get(id(node), UNUSABLE) == key)


@functools.cache
def _loader_class() -> Any:
    """Returns a subclass of PyYAML's safe loader that limits the number and the depth of nodes to the bounds of a config."""
    import yaml

    class Bounded(yaml.SafeLoader):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._counter = Counter()
            self._depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            try:
                self._counter.add()
                if self._depth > MAX_DEPTH:
                    raise TooMuchError(TOO_DEEP)
            except TooMuchError as error:
                error.line = self.peek_event().start_mark.line
                raise
            self._depth += 1
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node

    return Bounded
