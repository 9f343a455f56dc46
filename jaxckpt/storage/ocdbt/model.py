"""The parts of an OCDBT database. Pure."""

from typing import NamedTuple

# Name of the manifest. A directory without this file is not a database.
OCDBT_MANIFEST = "manifest.ocdbt"
# Magic numbers: the first bytes of a manifest and of a node.
MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE
HEADER_BYTES = 14
# The offset and the length of the root of an empty tree have this value.
MISSING = (1 << 64) - 1


class UnknownFormatError(ValueError):
    """The database has a format that this package does not decode. TensorStore may."""


class Place(NamedTuple):
    """The place of a value or of a node: `length` bytes at `offset` in `file`, whose path is relative to the database."""

    file: str
    offset: int
    length: int


class Node(NamedTuple):
    """A reference to a B-tree node.

    Attributes:
      first: smallest key in its subtree, without the prefix that its parent leaves out.
      common: number of bytes at the beginning of `first` that the keys in the node leave out.
      place: where the node is.
      base: directory that the paths in the node are relative to.
      keys: number of keys in the subtree.
      tree_bytes: size of all nodes of the subtree in bytes.
      value_bytes: size in bytes of the values of the subtree that are in data files.
    """

    first: bytes
    common: int
    place: Place
    base: str = ""
    keys: int = 0
    tree_bytes: int = 0
    value_bytes: int = 0


class Entry(NamedTuple):
    """A key and its value: the bytes, or their place."""

    key: bytes
    value: bytes | Place


class Root(NamedTuple):
    """The root of the tree of the newest version.

    Attributes:
      node: reference to the root node; None if there are no keys.
      height: number of levels of nodes below it.
    """

    node: Node | None
    height: int
