"""Types shared by the modules that take values apart and rebuild them. README.md of this room explains the words."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from jaxckpt.tree.names import KnownPath

Undo = Callable[[], None]
"""Restores the state that an object had before a change."""

Change = Callable[[], Undo]
"""Changes an object in place and returns the undo. If it raises, it has changed nothing."""


def together(undos: Sequence[Undo]) -> Undo:
    """Returns one undo that runs `undos` from the last to the first. All of them run, even if one fails."""

    def undo_all() -> None:
        failure: BaseException | None = None
        for undo in reversed(undos):
            try:
                undo()
            except BaseException as error:
                if failure is None:
                    failure = error
                else:
                    failure.add_note(f"Another part could not be given back its old value either: {error!r}")
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    return undo_all


class Kept:
    """The class of `KEPT`."""

    def __repr__(self) -> str:
        return "KEPT"


KEPT = Kept()
"""Marks a leaf that keeps its old value."""


class Owned(NamedTuple):
    """Leaves that belong to one object. They can have one value only, under however many names the object appears.

    Attributes:
      owner: the object that holds the leaves, such as a Variable.
      key: the part of `owner` that holds them, if it has several parts; else None.
      start: position of the first leaf in the walk.
      stop: position after the last leaf in the walk.
      in_place: whether a restore changes `owner` itself. If not, `owner` is part of a value that is replaced, such as an `nnx.State`.
    """

    owner: Any
    key: Hashable
    start: int
    stop: int
    in_place: bool


class Rebuild:
    """The state of one rebuild: hands out the new leaves, and collects the changes that reference objects need.

    Attributes:
      changes: the changes so far. Calling one carries it out and returns its undo.
      in_place: ids of the owners that a restore changes in place.
      renewed: the replacements of owners that are replaced as parts of a value, by the owner's id.
      position: how many leaves of the current value have been handed out.
      kept: whether the last leaf keeps its old value. (Identity does not tell: Python may use one object for two equal strings.)
    """

    def __init__(self, in_place: set[int]) -> None:
        """Makes a rebuild without changes.

        Args:
          in_place: ids of the owners that a restore changes in place.
        """
        self.changes: list[Change] = []
        self.in_place = in_place
        self.renewed: dict[int, Any] = {}
        self.kept = False
        self.position = 0
        self._old: Sequence[Any] = ()
        self._new: Sequence[Any] = ()

    def start(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Starts to rebuild another value.

        Args:
          old: the old value of each of its leaves.
          new: the new value of each, or `KEPT`.
        """
        self._old, self._new = old, new
        self.position = 0

    def leaf(self) -> Any:
        """Returns the new value of the next leaf, or its old value (the same object) if it is kept."""
        position = self.position
        self.position = position + 1
        new = self._new[position]
        self.kept = new is KEPT
        return self._old[position] if self.kept else new

    def leaves(self, count: int) -> list[Any]:
        """Returns what `leaf` returns for the next leaves.

        Args:
          count: their number.
        """
        start, self.position = self.position, self.position + count
        old, new = self._old[start : self.position], self._new[start : self.position]
        self.kept = bool(new) and new[-1] is KEPT
        return [before if after is KEPT else after for before, after in zip(old, new, strict=True)]

    def require(self, position: int) -> None:
        """Requires that the leaf at `position` is next. Otherwise a builder would get the leaves of another builder.

        Args:
          position: position of the leaf that a builder expects.

        Raises:
          RuntimeError: another leaf is next, so the builders run in another order than the walk took their leaves.
        """
        if self.position != position:
            raise RuntimeError(
                f"A part of a value expects leaf {position} next, but leaf {self.position} is next. Nothing was changed. "
                "This is a bug in jaxckpt."
            )


class Builder(Protocol):
    """Rebuilds a part of a value."""

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the part with its new leaves.

        The result is the old object itself if all its leaves are kept, or if a change updates it in place.

        Args:
          rebuild: hands out the leaves.
        """


class LeafBuilder:
    """The builder of a leaf."""

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the leaf."""
        return rebuild.leaf()


class Constant:
    """The builder of a value without leaves."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the value."""
        return self._value


class RangeBuilder:
    """Wraps a builder, and checks that it takes exactly the leaves that the walk took from its part."""

    __slots__ = ("_inner", "_start", "_stop")

    def __init__(self, inner: Builder, start: int, stop: int) -> None:
        self._inner, self._start, self._stop = inner, start, stop

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the part."""
        rebuild.require(self._start)
        built = self._inner.build(rebuild)
        rebuild.require(self._stop)
        return built


LEAF_BUILDER = LeafBuilder()


class Walk(Protocol):
    """The walk as adapters of reference objects see it."""

    in_state: bool
    """Whether the walk is inside an `nnx.State`, whose Variables are values."""

    variable_depth: int
    """Length of the path of the NNX Variable that the walk is inside; 0 outside of Variables."""

    @property
    def position(self) -> int:
        """How many leaves the walk has found so far."""

    def take(self, value: Any, path: KnownPath) -> Builder:
        """Takes apart `value`, which lies at `path`, and returns its builder."""

    def leaf(self, value: Any, path: KnownPath, *, is_state: bool = False) -> Builder:
        """Adds `value` as a leaf, whatever its type, and returns its builder. See `Leaf` for `is_state`."""

    def empty(self, value: Any, path: KnownPath) -> Builder:
        """Adds an empty container, and returns its builder."""

    def own(self, owner: Any, start: int, *, key: Hashable = None, in_place: bool = True) -> None:
        """Records that `owner` holds the leaves from `start` on. See `Owned`.

        Args:
          owner: the object that holds the leaves.
          start: position of the first leaf.
          key: the part of `owner` that holds them, if it has several parts.
          in_place: whether a restore changes `owner` itself.
        """


class Adapter(Protocol):
    """Takes apart reference objects of one kind."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes apart one object and returns its builder.

        Args:
          node: the reference object.
          path: where it lies.
          walk: the walk that found it, to which its parts are handed back.
        """


class RootAdapter(Adapter, Protocol):
    """An adapter of objects that can be the root of a Checkpoint. A restore assigns to their fields."""

    def children(self, root: Any) -> dict[str, Any]:
        """Returns the values at the first level of `root`, by name."""

    def set_child(self, root: Any, name: str, value: Any) -> Undo:
        """Assigns a value to a field of `root`, and returns the undo.

        Args:
          root: the object.
          name: the field.
          value: its new value.
        """
