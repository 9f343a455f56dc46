"""The file ``_strings.json``: the str leaves of a tree, in nested objects, as Orbax's type handler for str stores them."""

from typing import Any

from jaxckpt._lib.documents import as_dict, damage, parse_strictly

FILE = "_strings.json"


def keys_of(param_name: str) -> tuple[str, ...]:
    """Returns the nested keys of a str in ``_strings.json``. Orbax reads its name of the leaf (`param_name`) as a JSON pointer."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in param_name.split("/"))


def put(strings: dict[str, Any], param_name: str, text: str) -> None:
    """Adds a str where Orbax looks for it.

    Args:
      strings: the content of ``_strings.json``, which is changed.
      param_name: Orbax's name of the leaf.
      text: the value of the leaf.

    Raises:
      ValueError: another str has the same keys, or a part of them.
    """
    *parents, last = keys_of(param_name)
    for key in parents:
        strings = strings.setdefault(key, {})
        if not isinstance(strings, dict):
            raise ValueError(param_name)
    if last in strings:
        raise ValueError(param_name)
    strings[last] = text


def find(strings: dict[str, Any], param_name: str) -> str:
    """Finds the value of a str leaf.

    Args:
      strings: the content of ``_strings.json``.
      param_name: Orbax's name of the leaf.

    Raises:
      KeyError: the content does not have the leaf.
    """
    if isinstance(text := strings.get(param_name), str):
        return text
    node: Any = strings
    for key in keys_of(param_name):
        if not isinstance(node, dict):
            raise KeyError(param_name)
        node = node[key]
    if not isinstance(node, str):
        raise KeyError(param_name)
    return node


def read(content: bytes, where: str) -> dict[str, Any]:
    """Parses the content of ``_strings.json``.

    Args:
      content: content of the file.
      where: path of the file, for the error.

    Raises:
      CorruptCheckpointError: the content is not a JSON object.
    """
    with damage(where):
        return as_dict(parse_strictly(content), "it")
