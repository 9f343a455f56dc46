"""What an OCDBT database is made of. Pure."""

from typing import NamedTuple

# The file without which there is no database.
OCDBT_MANIFEST = "manifest.ocdbt"
# First bytes of a manifest, and of a node.
MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE
HEADER_BYTES = 14
# Offset and length of the root of an empty tree.
MISSING = (1 << 64) - 1


class UnknownFormatError(ValueError):
    """Not a form that is decoded here; TensorStore knows more."""


class Place(NamedTuple):
    """Where bytes are: `length` bytes at `offset` in `file`, whose path is relative to the database."""

    file: str
    offset: int
    length: int


class Node(NamedTuple):
    """A reference to a B-tree node.

    Attributes:
      first: smallest key in its subtree, below the prefix that its parent adds.
      common: length of the prefix of `first` that the keys in the node leave out.
      place: where it is.
      base: directory that the paths in the node are relative to.
      keys, tree_bytes, value_bytes: statistics of the subtree: keys, bytes of its nodes, bytes of its values in data files.
    """

    first: bytes
    common: int
    place: Place
    base: str = ""
    keys: int = 0
    tree_bytes: int = 0
    value_bytes: int = 0


class Entry(NamedTuple):
    """A key and its value: the bytes, or where they are."""

    key: bytes
    value: bytes | Place


class Root(NamedTuple):
    """What a manifest says of the newest version: its root node (None: no keys) and the levels of interior nodes."""

    node: Node | None
    height: int
