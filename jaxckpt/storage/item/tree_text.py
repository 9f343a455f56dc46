"""Writes Orbax's metadata of a tree: ``_METADATA``, ``_sharding``, ``array_metadatas/`` and ``_strings.json``.

The format is that of Orbax 0.12. Tests load the files with Orbax itself. `tree_metadata` reads them.
"""

import base64
import json
import operator
import os
from collections.abc import Sequence
from typing import Any

from jaxckpt.storage import compat, stores
from jaxckpt.storage.item import layout, strings
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, Snapshot, StringContent
from jaxckpt.storage.item.tree_metadata import ARRAY_METADATAS, FILE, FORMAT, OWN, SHARDINGS
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Key, Path

# A tree without leaves is described by its root, an empty dict.
_NOTHING = (Entry((), EmptyContent("Dict")),)


def write(directory: str, snapshot: Snapshot, settings: WriteSettings, *, process: int = 0) -> None:
    """Writes the tree metadata of a snapshot.

    Args:
      directory: directory of the item.
      snapshot: the snapshot, with all its leaves.
      settings: how the arrays are written.
      process: index of the process; part of the name of the array metadata file.

    Raises:
      OSError: with errno.
    """
    # The text is made leaf by leaf: for thousands of leaves, nested dicts and json.dumps would take several times as long.
    tree: list[str] = []
    texts: dict[str, Any] = {}
    shardings: dict[str, str] = {}
    arrays: list[str] = []
    kinds: dict[str, str] = {}
    sharding_texts: dict[tuple[int, str], str | None] = {}
    entries = snapshot.entries or _NOTHING
    keys = _keys([entry.path for entry in entries])
    for entry in entries:
        content = entry.content
        name = entry.param_name
        if isinstance(content, EmptyContent):
            value = f'{{"value_type": "{content.typestr}", "skip_deserialize": true}}'
        elif isinstance(content, StringContent):
            value = '{"value_type": "string", "skip_deserialize": false}'
            strings.put(texts, name, content.text)
        else:
            if content.note is not None:
                kinds[name] = content.note
            write_shape = ""
            if content.value_type == "jax.Array":
                write_shape = f', "write_shape": {_extents(content.write_shape)}'
                arrays.append(_array_metadata(name, content, settings))
            # An array of several processes has one too, though Orbax is told of a numpy array: people want to see how it lay.
            if content.sharding is not None:
                # Shardings are slow to hash, and thousands of leaves share a few.
                key = id(content.sharding), content.value_type
                if key not in sharding_texts:
                    found = compat.sharding_text(content.sharding)
                    sharding_texts[key] = found if content.value_type == "jax.Array" else _without_devices(found)
                if (text := sharding_texts[key]) is not None:
                    shardings[base64.urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode()] = text
            value = f'{{"value_type": "{content.value_type}", "skip_deserialize": false{write_shape}}}'
        path = _quoted(str(tuple([text for text, _ in entry.path])))
        tree.append(f'{path}: {{"key_metadata": [{keys.text(entry.path)}], "value_metadata": {value}}}')
    rest = json.dumps(
        {
            "use_ocdbt": layout.uses_ocdbt(settings),
            "use_zarr3": True,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": {
                **(snapshot.custom_metadata or {}),
                OWN: {"format": FORMAT, "kinds": kinds, "sequences": keys.sequences()},
            },
        }
    )
    _write_text(os.path.join(directory, FILE), f'{{"tree_metadata": {{{", ".join(tree)}}}, {rest[1:]}')
    if texts:
        _write_text(os.path.join(directory, strings.FILE), json.dumps(texts))
    if shardings:
        _write_text(os.path.join(directory, SHARDINGS), json.dumps(shardings))
    if arrays:
        stores.make_directory(os.path.join(directory, ARRAY_METADATAS))
        text = f'{{"array_metadatas": [{", ".join(arrays)}]}}'
        _write_text(os.path.join(directory, ARRAY_METADATAS, f"process_{process}"), text)


def _without_devices(text: str | None) -> str | None:
    """Returns a sharding's text without the list of its devices. In a large job it is long, and it would be repeated for each array."""
    if text is None:
        return None
    note = json.loads(text)
    note.pop("device_mesh", None)
    return json.dumps(note)


class _Keys:
    """The keys of a tree, as they are described to Orbax.

    Orbax rebuilds a sequence item by item. So a sequence with a hole (an item that is not stored, such as a function in an `nnx.List`) is
    described as a dict, and so is every container of an NNX object. The text for a container is made once for all its leaves.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Finds the containers.

        Args:
          paths: paths of all leaves.
        """
        self.paths = paths
        children: dict[Path, set[Key]] = {}
        level = paths
        while level:
            above = []
            for path in level:
                if path:
                    parent = path[:-1]
                    if (keys := children.get(parent)) is None:
                        children[parent] = keys = set()
                        above.append(parent)
                    keys.add(path[-1])
            level = above
        # Each container whose keys are indices → whether it is described as a sequence.
        self._indexed = {
            parent: keys.issuperset([Key(str(index), True) for index in range(len(keys))])
            for parent, keys in children.items()
            if all(key.is_index for key in keys)
        }
        self._above: dict[Path, str] = {(): ""}

    def text(self, path: Path) -> str:
        """Returns the keys of a leaf as JSON objects, separated by commas."""
        return self._to(path[:-1]) + self._last(path) if path else ""

    def _to(self, path: Path) -> str:
        """Returns the keys of a container as JSON objects, with a comma after each."""
        found = self._above.get(path)
        if found is None:
            found = self._above[path] = f"{self._to(path[:-1])}{self._last(path)}, "
        return found

    def _last(self, path: Path) -> str:
        text, is_index = path[-1]
        key_type = 1 if is_index and self._indexed.get(path[:-1]) else 2
        return f'{{"key": {_quoted(text)}, "key_type": {key_type}}}'

    def sequences(self) -> list[list[str]]:
        """Returns the paths of the sequences that are described as dicts, so that jaxckpt restores them as sequences."""
        return [[key.text for key in path] for path, is_sequence in self._indexed.items() if not is_sequence]


_latest_keys = _Keys(())


def _keys(paths: Sequence[Path]) -> _Keys:
    """Returns the `_Keys` of a tree. The latest are cached: a training loop saves the same paths (see `jaxckpt.tree.flatten`) each time."""
    global _latest_keys
    found = _latest_keys
    if len(paths) != len(found.paths) or not all(map(operator.is_, paths, found.paths)):
        found = _latest_keys = _Keys(paths)
    return found


def _array_metadata(name: str, content: ArrayContent, settings: WriteSettings) -> str:
    chunks = layout.chunks_of(content, settings)
    extra = "null" if content.key_impl is None else f'{{"random_key_impl": {_quoted(content.key_impl)}}}'
    return (
        f'{{"array_metadata": {{"param_name": {_quoted(name)}, "write_shape": {_extents(content.write_shape)}, '
        f'"chunk_shape": {_extents(chunks)}, "ext_metadata": {extra}}}}}'
    )


def _quoted(text: str) -> str:
    return json.encoder.encode_basestring_ascii(text)


def _extents(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _write_text(path: str, text: str) -> None:
    stores.write(path, text.encode())
