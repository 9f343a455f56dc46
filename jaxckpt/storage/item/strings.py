"""``_strings.json``: the str leaves of a tree, in nested objects, as Orbax's type handler for str keeps them."""

from typing import Any

from jaxckpt._lib.documents import as_dict, damage, parse_strictly

FILE = "_strings.json"


def keys_of(param_name: str) -> tuple[str, ...]:
    """Returns the keys under which a str stands in ``_strings.json``: Orbax takes the name of the leaf for a JSON pointer."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in param_name.split("/"))


def put(strings: dict[str, Any], param_name: str, text: str) -> None:
    """Puts a str where Orbax looks for it. Raises ValueError if another one is in the way."""
    *parents, last = keys_of(param_name)
    for key in parents:
        strings = strings.setdefault(key, {})
        if not isinstance(strings, dict):
            raise ValueError(param_name)
    if last in strings:
        raise ValueError(param_name)
    strings[last] = text


def find(strings: dict[str, Any], param_name: str) -> str:
    """Returns a str from the content of ``_strings.json``. Raises KeyError."""
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
    """Parses the content of ``_strings.json``. Raises CorruptCheckpointError, which names the file `where`."""
    with damage(where):
        return as_dict(parse_strictly(content), "it")
