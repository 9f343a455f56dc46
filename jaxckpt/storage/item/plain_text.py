"""Reads what jaxckpt and Orbax write about thousands of leaves with one regular expression. JSON's parser takes three times as long.

A text is read like this only if it has, character for character, the form that both of them write, with keys that need no escapes. For
any other text the functions say so, and the caller parses it as JSON. So nothing is accepted here that is not JSON, and every error comes
from the parser. No part of an expression is tried twice at one character, so the time grows with the length of the text only.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxckpt._lib.documents import DamagedError, parse

# A string without escapes, and an array of numbers, as JSON allows them.
_TEXT = r'[^"\\\x00-\x1f]*+'
_NUMBER = r"(?:0|[1-9][0-9]{0,17}+)"
_EXTENTS = rf"\[(?:{_NUMBER}(?:, {_NUMBER})*+)?+\]"
_KEY = rf'\{{"key": "{_TEXT}", "key_type": [12]\}}'
_BEGIN = '{"tree_metadata": {'
# The groups: the whole leaf with the comma behind it, its name, the keys of its container, its last key and the type of this, its value.
_LEAF = re.compile(
    rf'("({_TEXT})": \{{"key_metadata": \[((?:{_KEY}, )*+)\{{"key": "({_TEXT})", "key_type": ([12])\}}\], '
    rf'"value_metadata": \{{"value_type": "({_TEXT})", "skip_deserialize": (?:false|true)(?:, "write_shape": {_EXTENTS})?+\}}\}}'
    r'(?:, (?=")|(?=\}, )))'
)
_KEYS = re.compile(rf'"key": "({_TEXT})", "key_type": ([12])')
_SHAPES = rf'"write_shape": {_EXTENTS}, "chunk_shape": {_EXTENTS}'
_ARRAY = rf'\{{"array_metadata": \{{"param_name": "{_TEXT}", {_SHAPES}, "ext_metadata": null\}}\}}'
_ARRAYS = re.compile(rf'\{{"array_metadatas": \[{_ARRAY}(?:, {_ARRAY})*+\]\}}')

_Path = tuple[tuple[str, bool], ...]
# The path of a leaf, Orbax's name for it, and Orbax's word for its type.
Described = tuple[_Path, str, str]


def leaves_of(content: bytes) -> tuple[Iterator[Described], dict[str, Any]] | None:
    """Reads a ``_METADATA``.

    Args:
      content: content of the file.

    Returns:
      The leaves, and the rest of the document; None if the content must be parsed as JSON.
    """
    try:
        text = content.decode("utf-8", "surrogatepass")
        found = _LEAF.findall(text)
        if not found or not text.startswith(_BEGIN):
            return None
        wholes, names, above, last, kinds, value_types = zip(*found, strict=True)
        # There must be nothing between the leaves, and nothing before them.
        whole = "".join(wholes)
        end = len(_BEGIN) + len(whole)
        if not text.startswith(whole, len(_BEGIN)) or text[end : end + 3] != "}, ":
            return None
        rest = parse("{" + text[end + 3 :])
    except (UnicodeDecodeError, DamagedError):
        return None
    # A comma must be followed by something. Of two values under one name, JSON's parser takes the last.
    if type(rest) is not dict or not rest or "tree_metadata" in rest or len(set(names)) != len(names):
        return None
    return _described(above, last, kinds, value_types), rest


def _described(
    above: Sequence[str], last: Sequence[str], kinds: Sequence[str], value_types: Sequence[str]
) -> Iterator[Described]:
    """Yields the leaves. The arguments are the groups of the expression, in columns."""
    containers = {keys: _container(keys) for keys in set(above)}
    for keys, text, kind, value_type in zip(above, last, kinds, value_types, strict=True):
        path, name = containers[keys]
        yield (*path, (text, kind == "1")), name + text, value_type


def _container(keys: str) -> tuple[_Path, str]:
    """Returns the path of a container, and what Orbax's names of its leaves begin with."""
    path = tuple([(text, kind == "1") for text, kind in _KEYS.findall(keys)])
    return path, "".join([f"{text}." for text, _ in path])


def is_without_keys(content: bytes) -> bool:
    """Whether a file of ``array_metadatas/`` certainly is right, and describes no PRNG keys. False if it must be parsed as JSON.

    Args:
      content: content of the file.
    """
    try:
        return _ARRAYS.fullmatch(content.decode("utf-8", "surrogatepass")) is not None
    except UnicodeDecodeError:
        return False
