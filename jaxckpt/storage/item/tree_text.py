"""Writes Orbax's metadata of a tree: ``_METADATA``, ``_sharding``, ``array_metadatas/`` and ``_strings.json``.

The format is that of Orbax 0.12. Tests load the files with Orbax itself. `tree_metadata` reads them.
"""

import base64
import json
import operator
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxckpt.storage import compat, stores
from jaxckpt.storage.item import layout, strings
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, Snapshot, StringContent
from jaxckpt.storage.item.tree_metadata import ARRAY_METADATAS, FILE, FORMAT, OWN, SHARDINGS
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.tree.names import Key, Path

# A tree without leaves is described by its root, an empty dict.
_NOTHING = (Entry((), EmptyContent("Dict")),)
# Under this name the files of the last save are kept (see `Snapshot.kept`), if they have at most so many bytes.
_KEPT = "tree"
_KEPT_BYTES = 8 << 20


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
    for name, content in _files(snapshot, settings, process).items():
        folder = os.path.dirname(name)
        if folder:
            stores.make_directory(os.path.join(directory, folder))
        stores.write(os.path.join(directory, name), content)


def _files(snapshot: Snapshot, settings: WriteSettings, process: int) -> dict[str, bytes]:
    """Returns the content of the files, by name. That of the last save of the structure is kept: it is the same if nothing else differs.

    Args:
      snapshot: as for `write`.
      settings: as for `write`.
      process: as for `write`.
    """
    kept, rest = snapshot.kept, snapshot.rest
    if kept is None or rest is None:
        return _texts(snapshot, settings, process)
    others = [_described(snapshot.entries[position]) for position in rest]
    # As text, because the program may change it, and because 1 == True.
    made_of = process, settings, json.dumps(snapshot.custom_metadata), others
    found = kept.get(_KEPT)
    if found is not None and found[0] == made_of:
        files: dict[str, bytes] = found[1]
        return files
    files = _texts(snapshot, settings, process)
    if sum(map(len, files.values())) <= _KEPT_BYTES:
        kept[_KEPT] = made_of, files
    return files


def _described(entry: Entry) -> tuple[Any, ...]:
    """Returns what the texts about a leaf depend on."""
    path, content = entry
    if isinstance(content, ArrayContent):
        # Not its pieces, which hold data.
        return path, content._replace(pieces=(), share=None)
    return path, content


def _texts(snapshot: Snapshot, settings: WriteSettings, process: int) -> dict[str, bytes]:
    """Returns the content of the files, by name."""
    # The text is made leaf by leaf: for thousands of leaves, nested dicts and json.dumps would take several times as long.
    tree: list[str] = []
    texts: dict[str, Any] = {}
    shardings: dict[str, str] = {}
    arrays: list[str] = []
    kinds: dict[str, str] = {}
    sharding_texts: dict[tuple[int, str], str | None] = {}
    # Thousands of leaves share a few of these texts too.
    values: dict[tuple[str, tuple[int, ...]], str] = {}
    array_texts: dict[tuple[Any, ...], str] = {}
    entries = snapshot.entries or _NOTHING
    keys = _keys([path for path, _ in entries])
    for entry in entries:
        path, content = entry
        if isinstance(content, EmptyContent):
            value = f'{{"value_type": "{content.typestr}", "skip_deserialize": true}}'
        elif isinstance(content, StringContent):
            value = '{"value_type": "string", "skip_deserialize": false}'
            strings.put(texts, entry.param_name, content.text)
        else:
            if content.note is not None:
                kinds[entry.param_name] = content.note
            if content.value_type == "jax.Array":
                like = content.shape, content.dtype, content.write_shape, content.chunk_byte_size, content.key_impl
                if (text := array_texts.get(like)) is None:
                    text = array_texts[like] = _array_metadata(content, settings)
                arrays.append(f'{{"array_metadata": {{"param_name": {_quoted(entry.param_name)}, {text}}}}}')
            # An array of several processes has one too, though Orbax is told of a numpy array: people want to see how it lay.
            if content.sharding is not None:
                # Shardings are slow to hash, and thousands of leaves share a few.
                key = id(content.sharding), content.value_type
                if key not in sharding_texts:
                    found = compat.sharding_text(content.sharding)
                    sharding_texts[key] = found if content.value_type == "jax.Array" else _without_devices(found)
                if (text := sharding_texts[key]) is not None:
                    name = entry.param_name.encode("utf-8", "surrogatepass")
                    shardings[base64.urlsafe_b64encode(name).decode()] = text
            described = content.value_type, content.write_shape
            value = values.get(described) or values.setdefault(described, _value_metadata(content))
        tree.append(f'{keys.text(path)}, "value_metadata": {value}}}')
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
    files = {FILE: f'{{"tree_metadata": {{{", ".join(tree)}}}, {rest[1:]}'}
    if texts:
        files[strings.FILE] = json.dumps(texts)
    if shardings:
        files[SHARDINGS] = json.dumps(shardings)
    if arrays:
        files[os.path.join(ARRAY_METADATAS, f"process_{process}")] = f'{{"array_metadatas": [{", ".join(arrays)}]}}'
    return {name: text.encode() for name, text in files.items()}


def _value_metadata(content: ArrayContent) -> str:
    shape = f', "write_shape": {_extents(content.write_shape)}' if content.value_type == "jax.Array" else ""
    return f'{{"value_type": "{content.value_type}", "skip_deserialize": false{shape}}}'


def _without_devices(text: str | None) -> str | None:
    """Returns a sharding's text without the list of its devices. In a large job it is long, and it would be repeated for each array."""
    if text is None:
        return None
    note = json.loads(text)
    note.pop("device_mesh", None)
    return json.dumps(note)


class _Above(NamedTuple):
    """What the descriptions of all leaves of one container begin with.

    Attributes:
      shown: the items of its path as Orbax shows them, in a JSON string, with a comma after each.
      keys: its keys as JSON objects, with a comma after each.
      index_type: the type of keys that are indices.
    """

    shown: str
    keys: str
    index_type: int


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
        self._above: dict[Path, _Above] = {(): _Above("", "", self._index_type(()))}
        # Most leaves lie beside the one before.
        self._latest: tuple[Path, _Above] = (), self._above[()]

    def text(self, path: Path) -> str:
        """Returns the beginning of the description of a leaf: its path as Orbax writes it, and its keys as JSON objects."""
        if not path:
            return '"()": {"key_metadata": []'
        above = path[:-1]
        latest, found = self._latest
        if above != latest:
            found = self._to(above)
            self._latest = above, found
        text, is_index = path[-1]
        shown, quoted = _quoted(repr(text))[1:-1], _quoted(text)
        end = "" if above else ","
        key_type = found.index_type if is_index else 2
        return f'"({found.shown}{shown}{end})": {{"key_metadata": [{found.keys}{{"key": {quoted}, "key_type": {key_type}}}]'

    def _to(self, path: Path) -> "_Above":
        found = self._above.get(path)
        if found is None:
            above = self._to(path[:-1])
            text, is_index = path[-1]
            key_type = above.index_type if is_index else 2
            found = self._above[path] = _Above(
                f"{above.shown}{_quoted(repr(text))[1:-1]}, ",
                f'{above.keys}{{"key": {_quoted(text)}, "key_type": {key_type}}}, ',
                self._index_type(path),
            )
        return found

    def _index_type(self, path: Path) -> int:
        return 1 if self._indexed.get(path) else 2

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


def _array_metadata(content: ArrayContent, settings: WriteSettings) -> str:
    """Returns the metadata of an array that is not its name."""
    chunks = layout.chunks_of(content, settings)
    extra = "null" if content.key_impl is None else f'{{"random_key_impl": {_quoted(content.key_impl)}}}'
    return f'"write_shape": {_extents(content.write_shape)}, "chunk_shape": {_extents(chunks)}, "ext_metadata": {extra}'


def _quoted(text: str) -> str:
    return json.encoder.encode_basestring_ascii(text)


def _extents(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
