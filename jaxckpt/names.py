"""Paths and names of leaves.

A leaf's **name** is its path joined by ``/``: mapping keys, attribute names and sequence indices. Inside a key, ``~`` is spelled
``~0`` and ``/`` is spelled ``~1`` (as JSON Pointer, RFC 6901, does), so that two different paths never share a name.
"""

from collections.abc import Iterable
from typing import NamedTuple

# A true `Key.is_index`: of a container of an NNX object. NNX itself, and so Orbax, takes such an index for the key of a dict.
OBJECT_INDEX = 2


class Key(NamedTuple):
    """One step of a path: the key as text, and whether it is an index into a sequence (or, with `OBJECT_INDEX`, into which kind)."""

    text: str
    is_index: int = False


Path = tuple[Key, ...]


def leaf_name(path: Iterable[tuple[str, int]]) -> str:
    """Returns the name of the leaf at `path`, as errors, status, reader and command line show it."""
    texts = [text for text, _ in path]
    name = "/".join(texts)
    if "~" in name or name.count("/") != len(texts) - 1:
        name = "/".join(text.replace("~", "~0").replace("/", "~1") for text in texts)
    return name
