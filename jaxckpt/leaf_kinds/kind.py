"""The interface of a kind of leaf: everything that jaxckpt has to know about leaves of one kind, in one object."""

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
    """A stored leaf cannot become a value of the target's kind, whatever its shape and dtype. The caller tells the user."""


class OtherShapeError(ValueError):
    """A stored leaf is of the target's kind, but has another shape. The message names the leaf and both shapes."""


class Terms(NamedTuple):
    """Facts about one restore that hold for all of its leaves.

    Attributes:
      path: the checkpoint's path, for errors.
      cast: whether the user allows conversion to other dtypes of the same kind of number.
      is_alone: whether this process is the only one.
    """

    path: str
    cast: bool
    is_alone: bool


class Texts:
    """A cache for describing all leaves of one state.

    Attributes:
      place: describes where an array lies that is on devices of several processes, in the same words on each process. Its arguments are
        the sharding and the shape.
      known: the texts so far, by the facts on which they depend, each with the sharding that it describes.
    """

    def __init__(self, place: Callable[[Any, tuple[int, ...]], str]) -> None:
        """Makes an empty cache.

        Args:
          place: the attribute of this name.
        """
        self.place = place
        self.known: dict[Any, tuple[Any, str]] = {}


class Delivery(NamedTuple):
    """How a stored leaf becomes the new value of a target. The reads and transfers of several leaves are done in one batch.

    Attributes:
      boxes: the boxes of the stored array to read; None for the whole array. Empty if the leaf is stored as a str.
      places: for each transfer its destination (a device or a sharding) and the position in `boxes` of its data. Empty if the leaf does
        not go to a device.
      build: makes the value from the transferred arrays, or from the arrays read if `places` is empty, or from the str.
      assemble: transfers the arrays read and makes the value, in one step; None if there is no such way. It may be used instead of
        `places` and `build`, unless the boxes are too large to be in memory at once.
    """

    boxes: Sequence[Slices | None]
    places: Sequence[tuple[Any, int]]
    build: Callable[[Sequence[Any]], Any]
    assemble: Callable[[Sequence[np.ndarray]], Any] | None = None


WHOLE: Sequence[None] = (None,)
"""The `Delivery.boxes` that read the whole array."""


class LeafKind(Protocol):
    """A kind of leaf. Derive from this class. A method that has a body here need not be overridden.

    Attributes:
      name: the kind's name in messages, to users and between processes.
      reader_name: `LeafMetadata.kind` of such a leaf; empty for kinds that cannot be stored.
      stored_as: the words that mark such a leaf in a checkpoint: the word of its note, or else Orbax's word for its type ("PRNG key" for
        every leaf that has an implementation of PRNG keys).
      note: the note that is stored with such a leaf, if the kind needs a note of its own.
      is_one_value: whether a leaf is one value, such as a text, so that the elements of the stored array mean nothing by themselves.
    """

    name: str
    reader_name: str = ""
    stored_as: tuple[str, ...] = ()
    note: Note | None = None
    is_one_value: bool = False

    def owns(self, value: Any) -> bool:
        """Whether a value is of this kind. Asked once per type, in the registry's order, so the answer must depend on the type only."""

    def refusal(self, value: Any, action: str) -> str | None:
        """Returns why a value cannot be a leaf of a checkpoint, whatever the checkpoint holds.

        Args:
          value: a value of this kind: one to save, or the target of a restore.
          action: "save" or "restore".

        Returns:
          The reason, as a text to follow the leaf's name; None if the value can be a leaf.
        """
        return None

    # Saving.

    def is_global(self, leaf: Leaf) -> bool:
        """Whether a leaf lies on devices of several processes, so that each of them stores its shards (see `jaxckpt.saving.shards`).

        Raises:
          ValueError: the leaf's data has been deleted; the message names the leaf.
        """
        return False

    def start(self, value: Any) -> None:
        """Starts the copy to the host that `take` needs, without waiting for it. Called for all leaves before the first `take`."""
        return

    def take(self, leaf: Leaf, copy: bool) -> Content:
        """Returns the content to write for a leaf all of whose data is on this process. Later changes of the value must not affect it.

        Args:
          leaf: a leaf of this kind.
          copy: whether to copy host memory that the program may write into. If False, the program waits until everything is written.

        Raises:
          TypeError: the value cannot be stored; the message names the leaf.
          ValueError: the leaf's data has been deleted, or has too many axes; the message names the leaf.
        """

    # Texts that the processes of a job compare.

    def describe(self, value: Any, texts: Texts) -> str:
        """Returns a text that must be the same on every process: the kind, and properties that the program fixes, such as shape and dtype.

        Args:
          value: a value of this kind.
          texts: the cache for this state.
        """
        return self.name

    def form(self, value: Any) -> tuple[Any, ...] | None:
        """Returns what the description of a value depends on, and how it lies on devices; None if that is not known.

        It is faster to tell and to compare than the description, and called for thousands of leaves. The last item is the sharding.
        """
        return None

    def origin(self, value: Any) -> tuple[Any, Any] | None:
        """Returns two immutable objects from which `form` follows; None if there are no such objects.

        Values that share both have the same form. It is faster to look at two objects than to make a form.
        """
        return None

    def digest(self, value: Any) -> str | None:
        """Returns the digest of a value in host memory, which should be the same on every process; None for values on devices."""

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two values of this kind are equal, bit for bit."""
        return type(one) is type(other) and bool(one == other)

    # Restoring.

    def traits(self, value: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """Returns all that `validate` and `place` look at in a target of this kind; None if they have to be asked for each target.

        For targets with equal traits, and for stored leaves that are alike but for their names, `validate` finds the same, and `place`
        returns the same. Only errors and conversions know the name of their leaf. It is asked for thousands of leaves.

        Args:
          value: the value of the target.

        Returns:
          Something that is fast to hash; and immutable objects that are slow to hash, but are the same few for most values.
        """
        return None

    def validate(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
        """Checks that a stored leaf can become the new value of a target.

        Args:
          target: a leaf with its current value, which is of this kind.
          leaf: the stored leaf of the same name.
          info: the metadata of the stored array; None for a leaf that is stored as a str.
          terms: the terms of the restore.

        Returns:
          The conversion of the stored numbers; None if they need none.

        Raises:
          OtherKindError: the stored leaf is of another kind.
          OtherShapeError: the shape does not fit; the message names the leaf and both sides.
          ValueError: the dtype does not fit; likewise.
        """

    def place(self, target: Leaf, leaf: StoredLeaf, info: ArrayInfo | None) -> Delivery:
        """Returns how a stored leaf, which `validate` has accepted, becomes the target's new value.

        Args:
          target: a leaf with its current value, which is of this kind.
          leaf: the stored leaf of the same name.
          info: the metadata of the stored array; None for a leaf that is stored as a str.
        """

    # Reading without a target.

    def describe_stored(self, leaf: StoredLeaf, info: ArrayInfo | None) -> str:
        """Returns a stored leaf of this kind in words, such as "an array of shape (2,) and dtype int32".

        Args:
          leaf: the stored leaf.
          info: the metadata of the stored array; None for a leaf that is stored as a str.
        """
        assert info is not None
        return f"an array of shape {info.shape} and dtype {info.dtype}"

    def read(self, array: np.ndarray) -> Any:
        """Returns the value of a leaf of this kind for a reader, which has no target.

        Args:
          array: the stored array; of a leaf that is stored as a str, an array without axes that holds it.
        """
        return array if array.flags.writeable else array.copy()
