"""Writes the B-tree of an OCDBT database from its leaves up to the root."""

from collections.abc import Callable, Sequence

from jaxckpt._lib.groups import groups
from jaxckpt.storage.ocdbt import encode
from jaxckpt.storage.ocdbt.model import Entry, Node, Place, Root

# Size of a node, well below the limit in the manifest.
NODE_BYTES = 4 << 20
# An item of a node takes about this many bytes besides its key and its value.
_ITEM_BYTES = 40


def write(entries: Sequence[Entry], append: Callable[[bytes], Place]) -> Root:
    """Writes the tree of a database.

    Args:
      entries: all entries of the database, in the order of their keys.
      append: writes the bytes of a node to a data file, and returns their place.

    Returns:
      The root, for the manifest.
    """
    if not entries:
        return Root(None, 0)
    leaves = list(groups(entries, _entry_bytes, NODE_BYTES))
    nodes = []
    for leaf in leaves:
        # A leaf that is the root leaves out no prefix: it has no parent that could name it.
        common = 0 if len(leaves) == 1 else encode.common_prefix(leaf[0].key, leaf[-1].key)
        place = append(encode.encode_leaf(leaf, common))
        outside = sum([value.length for _, value in leaf if isinstance(value, Place)])
        nodes.append(Node(leaf[0].key, common, place, "", len(leaf), place.length, outside))
    height = 0
    while len(nodes) > 1:
        height += 1
        above = []
        for part in groups(nodes, lambda node: len(node.first) + _ITEM_BYTES, NODE_BYTES, fewest=2):
            place = append(encode.encode_interior(part, height))
            keys, inner, outside = (sum(column) for column in zip(*(node[4:] for node in part), strict=True))
            above.append(Node(part[0].first, 0, place, "", keys, inner + place.length, outside))
        nodes = above
    return Root(nodes[0], height)


def _entry_bytes(entry: Entry) -> int:
    key, value = entry
    return len(key) + (len(value) if isinstance(value, bytes) else 0) + _ITEM_BYTES
