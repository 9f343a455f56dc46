"""What a kind of leaf is: everything that jaxckpt has to know about leaves of one sort, in one object."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxckpt._lib.boxes import Slices
from jaxckpt.leaf_kinds.conversion import Conversion
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.item.content import ArrayContent, StringContent
from jaxckpt.storage.item.notes import Note
from jaxckpt.storage.item.tree_metadata import StoredLeaf
from jaxckpt.tree.flatten import Leaf

Content = ArrayContent | StringContent


class OtherKindError(Exception):
    """A stored leaf cannot become a value of the target's kind, whatever their shapes and dtypes. The caller says so to the user."""


class Terms(NamedTuple):
    """What holds for all leaves of one restore.

    Attributes:
      path: of the checkpoint, for errors.
      cast: whether the caller wants other dtypes of the same kind of number to be converted.
      is_alone: whether there is one process only.
    """

    path: str
    cast: bool
    is_alone: bool


class Texts:
    """One round of descriptions of leaves.

    Attributes:
      place: says where an array lies that is on devices of several processes, in the same words on each of them. Takes the sharding and
        the shape.
      known: texts that have been made, by what they depend on, each with the sharding that it speaks of.
    """

    def __init__(self, place: Callable[[Any, tuple[int, ...]], str]) -> None:
        """Starts a round.

        Args:
          place: see the attribute.
        """
        self.place = place
        self.known: dict[Any, tuple[Any, str]] = {}


class Delivery(NamedTuple):
    """How a stored leaf becomes the new value of a target. What several leaves need is read, and transferred, in one batch.

    Attributes:
      boxes: of the stored array, to be read; None for all of it. Empty if the leaf is stored as a str.
      places: device, or sharding, for each transfer, and the position in `boxes` of what goes there. Empty if nothing goes to a device.
      build: makes the value. It is given what was transferred; without places what was read; the str if the leaf is stored as one.
    """

    boxes: Sequence[Slices | None]
    places: Sequence[tuple[Any, int]]
    build: Callable[[Sequence[Any]], Any]


WHOLE: Sequence[None] = (None,)
"""`Delivery.boxes` for one box, which is the whole array."""


class LeafKind(Protocol):
    """A kind of leaf. To be derived from; a method that has a body here need not be overridden.

    Attributes:
      name: what processes call it among themselves, and in messages.
      reader_name: `LeafMetadata.kind` of such a leaf; for kinds that are stored.
      stored_as: what the checkpoint says of such a leaf: the word of its note, or else Orbax's word for its type ("PRNG key" for what has
        an implementation of PRNG keys, whatever else it is called).
      note: the note that it is stored with, if it needs one of its own.
    """

    name: str
    reader_name: str = ""
    stored_as: tuple[str, ...] = ()
    note: Note | None = None

    def owns(self, value: Any) -> bool:
        """Whether a value is of this kind. Asked once for each type, in the order of the registry: the answer holds for the type."""

    def refusal(self, value: Any, action: str) -> str | None:
        """Says why a value cannot be a leaf of a checkpoint, whatever the checkpoint holds.

        Args:
          value: of this kind; what is to be saved, or the target of a restore.
          action: "save" or "restore".

        Returns:
          The reason, to be put after the leaf's name; None if the value can be one.
        """
        return None

    # Saving.

    def is_global(self, leaf: Leaf) -> bool:
        """Whether a leaf lies on devices of several processes, so that each of them stores its shards (see `jaxckpt.saving.shards`).

        Raises:
          ValueError: its data is gone; names the leaf.
        """
        return False

    def start(self, value: Any) -> None:
        """Starts a copy to the host that `take` would wait for, and does not wait for it. Called for all leaves before the first `take`."""
        return

    def take(self, leaf: Leaf, copy: bool) -> Content:
        """Returns what is written for a leaf, all of which is on this process. Later changes of the value must not reach it.

        Args:
          leaf: of this kind.
          copy: copy host memory that the program may write into. Without it, the caller waits until everything is written.

        Raises:
          TypeError: the value cannot be stored; names the leaf.
          ValueError: its data is gone, or has too many axes; names the leaf.
        """

    # What the processes of a job compare.

    def describe(self, value: Any, texts: Texts) -> str:
        """Returns what has to be the same on every process: the kind, and what is fixed by the program, such as shape and dtype."""
        return self.name

    def digest(self, value: Any) -> str | None:
        """Returns the digest of a value in the memory of one host, which should be the same everywhere; None for what lies on devices."""

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two values of this kind are the same, bit for bit."""
        return type(one) is type(other) and bool(one == other)

    # Restoring.

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        """Validates that a stored leaf can become a value of the target.

        Args:
          target: a current value, of this kind.
          leaf: what is stored under its name.
          info: what the store says of the array; None for a leaf that is stored as a str.
          terms: of the restore.

        Returns:
          What has to be done to the stored numbers; None if nothing has.

        Raises:
          OtherKindError: the stored leaf is something else.
          ValueError: shape or dtype do not fit; names the leaf and both sides.
        """

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        """Returns how a stored leaf, which `validate` has accepted, becomes the target's new value. Args: as for `validate`."""

    # Reading without a target.

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        """Returns what a stored leaf of this kind is, for errors: "an array of shape (2,) and dtype int32". Args: as for `validate`."""
        assert info is not None
        return f"an array of shape {info.shape} and dtype {info.dtype}"

    def read(self, array: np.ndarray) -> Any:
        """Returns a leaf of this kind for a reader that has no target. Args: the stored array. Not called for what is stored as a str."""
        return array if array.flags.writeable else array.copy()
