"""What the parts that take values apart and put them together again have in common. The README of this room explains the words."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from jaxckpt.tree.names import KnownPath

Undo = Callable[[], None]
"""Gives an object back what it held before a change."""

Change = Callable[[], Undo]
"""Changes an object in place, and returns what undoes that. One that raises has changed nothing."""


def together(undos: Sequence[Undo]) -> Undo:
    """Returns one undo for several, which go from the last to the first. One that fails does not keep the others from it."""

    def undo_all() -> None:
        failure: BaseException | None = None
        for undo in reversed(undos):
            try:
                undo()
            except BaseException as error:
                if failure is None:
                    failure = error
                else:
                    failure.add_note(f"Besides, another part could not be given back its old value: {error!r}")
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
"""Stands for the new value of a leaf that keeps its old one."""


class Owned(NamedTuple):
    """Leaves that something holds which is changed in place, so that it can have one value only, under however many names it stands.

    Attributes:
      owner: what holds them, such as a Variable.
      key: which part of `owner` it is, if there are several; else None.
      start, stop: which leaves of the walk.
      in_place: whether a restore changes `owner` itself. If not, it is part of a value that is replaced, such as an `nnx.State`.
    """

    owner: Any
    key: Hashable
    start: int
    stop: int
    in_place: bool


class Rebuild:
    """One rebuild: hands out the new leaves, and collects the changes that reference objects need.

    Attributes:
      changes: carrying one out returns its undo.
      in_place: ids of the owners that a restore changes in place.
      renewed: what stands for an owner that is part of a value and is replaced, by its id.
      position: number of the leaves that were handed out.
      kept: whether the last leaf keeps its old value. (Python may have one object for two equal strings: identity does not tell.)
    """

    def __init__(self, in_place: set[int]) -> None:
        self.changes: list[Change] = []
        self.in_place = in_place
        self.renewed: dict[int, Any] = {}
        self.kept = False
        self.position = 0
        self._old: Sequence[Any] = ()
        self._new: Sequence[Any] = ()

    def start(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Starts with another value. Args: old and new value of each of its leaves."""
        self._old, self._new = old, new
        self.position = 0

    def leaf(self) -> Any:
        """Returns the value of the next leaf: the very old one if it is kept."""
        position = self.position
        self.position = position + 1
        new = self._new[position]
        self.kept = new is KEPT
        return self._old[position] if self.kept else new

    def require(self, position: int) -> None:
        """Refuses to go on at another leaf than the one that is next: a builder would be given the leaves of another one.

        Raises:
          RuntimeError: the builders do not stand in the order in which their leaves were taken.
        """
        if self.position != position:
            raise RuntimeError(
                f"A part of a value was to be put together from leaf {position}, but leaf {self.position} is next. "
                "Nothing was changed. This is a fault of jaxckpt."
            )


class Builder(Protocol):
    """Puts a part of a value together."""

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the part with new leaves. It is the very old one if they all are the old ones, or if it is changed in place."""


class LeafBuilder:
    """Puts a value together that is a leaf."""

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the leaf."""
        return rebuild.leaf()


class Constant:
    """Puts a value together that holds no leaves."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the value."""
        return self._value


class RangeBuilder:
    """Puts a part together that must be given just the leaves that were taken from it, whatever its builder does."""

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
    """What an adapter of reference objects may ask of a walk."""

    in_state: bool
    """Whether the walk is inside an `nnx.State`, whose Variables are values."""

    variable_depth: int
    """Length of the path of the NNX Variable that the walk is inside of; 0 outside."""

    @property
    def position(self) -> int:
        """Number of the leaves so far."""

    def take(self, value: Any, path: KnownPath) -> Builder:
        """Takes a value apart that stands at `path`."""

    def leaf(self, value: Any, path: KnownPath) -> Builder:
        """Adds a leaf, which `value` is whatever it is."""

    def empty(self, value: Any, path: KnownPath) -> Builder:
        """Adds an empty container."""

    def own(self, owner: Any, start: int, *, key: Hashable = None, in_place: bool = True) -> None:
        """Says that `owner` holds the leaves from `start` on; see `Owned`."""


class Adapter(Protocol):
    """How to take reference objects of one kind apart."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes `node` apart, which stands at `path`."""


class RootAdapter(Adapter, Protocol):
    """An adapter of objects that can be the root of a Checkpoint, and are written into."""

    def children(self, root: Any) -> dict[str, Any]:
        """Returns the first level of `root`, by name."""

    def set_child(self, root: Any, name: str, value: Any) -> Undo:
        """Gives a child another value. Returns what gives it the old one back."""
