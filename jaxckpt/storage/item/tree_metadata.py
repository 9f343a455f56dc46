"""Orbax's description of a tree: ``_METADATA``, ``_sharding``, ``array_metadatas/``, ``_strings.json``.

The format is Orbax's (0.12); tests load what is written here with Orbax itself. What Orbax has no word for stands under
``custom_metadata.jaxckpt``, where Orbax keeps it and ignores it.
"""

import base64
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxckpt._lib import bounds
from jaxckpt._lib.documents import (
    DamagedError,
    as_bool,
    as_dict,
    as_int,
    as_list,
    as_text,
    damage,
    parse,
    parse_strictly,
)
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.item import layout
from jaxckpt.storage.item.content import ArrayContent, EmptyContent, Entry, Snapshot, StringContent
from jaxckpt.storage.settings import WriteSettings
from jaxckpt.storage.stores.inside import Inside
from jaxckpt.tree.names import Key, Path, leaf_name

FILE = "_METADATA"
# What Orbax writes first into it.
KEY = b'"tree_metadata"'
STRINGS = "_strings.json"
SHARDINGS = "_sharding"
ARRAY_METADATAS = "array_metadatas"
FORMAT = 1
# What a tree without any leaf is described as: its root, an empty dict.
_NOTHING = (Entry((), EmptyContent("Dict")),)
# What jaxckpt notes of leaves that Orbax has no word for: see `ArrayContent.kind`.
KINDS = frozenset(("bytes", "numpy", "jax"))


def write(directory: str, snapshot: Snapshot, settings: WriteSettings, *, process: int = 0) -> None:
    """Writes the description of `snapshot` into `directory`.

    Raises:
      OSError: with errno.
    """
    # As text, leaf by leaf: dicts in dicts for thousands of leaves take several times as long.
    tree: list[str] = []
    strings: dict[str, Any] = {}
    shardings: dict[str, str] = {}
    arrays: list[str] = []
    kinds: dict[str, str] = {}
    texts: dict[int, str | None] = {}
    entries = snapshot.entries or _NOTHING
    keys = _keys([entry.path for entry in entries])
    for entry in entries:
        content = entry.content
        name = entry.param_name
        if isinstance(content, EmptyContent):
            value = f'{{"value_type": "{content.typestr}", "skip_deserialize": true}}'
        elif isinstance(content, StringContent):
            value = '{"value_type": "string", "skip_deserialize": false}'
            put_string(strings, name, content.text)
        else:
            if content.kind is not None:
                kinds[name] = content.kind
            write_shape = ""
            if content.value_type == "jax.Array":
                write_shape = f', "write_shape": {_extents(content.write_shape)}'
                arrays.append(_array_metadata(name, content, settings))
                key = id(content.sharding)  # Shardings are slow to hash, and thousands of leaves share a few.
                if key not in texts:
                    texts[key] = sharding_text(content.sharding)
                if (text := texts[key]) is not None:
                    shardings[base64.urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode()] = text
            value = f'{{"value_type": "{content.value_type}", "skip_deserialize": false{write_shape}}}'
        path = _quoted(str(tuple([text for text, _ in entry.path])))
        tree.append(f'{path}: {{"key_metadata": [{keys.text(entry.path)}], "value_metadata": {value}}}')
    rest = json.dumps(
        {
            "use_ocdbt": layout.uses_ocdbt(settings),
            "use_zarr3": True,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": {"jaxckpt": {"format": FORMAT, "kinds": kinds, "sequences": keys.sequences()}},
        }
    )
    _write_text(os.path.join(directory, FILE), f'{{"tree_metadata": {{{", ".join(tree)}}}, {rest[1:]}')
    if strings:
        _write_text(os.path.join(directory, STRINGS), json.dumps(strings))
    if shardings:
        _write_text(os.path.join(directory, SHARDINGS), json.dumps(shardings))
    if arrays:
        stores.make_directory(os.path.join(directory, ARRAY_METADATAS))
        text = f'{{"array_metadatas": [{", ".join(arrays)}]}}'
        _write_text(os.path.join(directory, ARRAY_METADATAS, f"process_{process}"), text)


class _Keys:
    """How Orbax is told of the keys of a tree.

    Orbax rebuilds a sequence item by item, so that one with a hole (of what nothing is stored, such as a function in an `nnx.List`) is
    a dict for it, as are all containers of NNX objects. What is one container for many leaves is worked out once.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Args: of all leaves."""
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
        # Containers whose keys are indices, each with whether Orbax is told that it is a sequence.
        self._indexed = {
            parent: keys.issuperset([Key(str(index), True) for index in range(len(keys))])
            for parent, keys in children.items()
            if all(key.is_index for key in keys)
        }
        self._above: dict[Path, str] = {(): ""}

    def text(self, path: Path) -> str:
        """Returns the keys of a leaf as JSON objects."""
        return self._to(path[:-1]) + self._last(path) if path else ""

    def _to(self, path: Path) -> str:
        """Returns the keys of a container, and what separates them from the next."""
        found = self._above.get(path)
        if found is None:
            found = self._above[path] = f"{self._to(path[:-1])}{self._last(path)}, "
        return found

    def _last(self, path: Path) -> str:
        text, is_index = path[-1]
        key_type = 1 if is_index and self._indexed.get(path[:-1]) else 2
        return f'{{"key": {_quoted(text)}, "key_type": {key_type}}}'

    def sequences(self) -> list[list[str]]:
        """Returns the containers that are not described as the sequences that they are: readers take them for what they are."""
        return [[key.text for key in path] for path, is_sequence in self._indexed.items() if not is_sequence]


_latest_keys = _Keys(())


def _keys(paths: Sequence[Path]) -> _Keys:
    """Returns the keys of a tree. A training loop saves the same paths (see `jaxckpt.tree.flatten`) again and again."""
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


def string_keys(param_name: str) -> tuple[str, ...]:
    """Returns the keys under which a str stands in ``_strings.json``: Orbax takes the name of the leaf for a JSON pointer."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in param_name.split("/"))


def put_string(strings: dict[str, Any], param_name: str, text: str) -> None:
    """Puts a str where Orbax looks for it. Raises ValueError if another one is in the way."""
    *parents, last = string_keys(param_name)
    for key in parents:
        strings = strings.setdefault(key, {})
        if not isinstance(strings, dict):
            raise ValueError(param_name)
    if last in strings:
        raise ValueError(param_name)
    strings[last] = text


def find_string(strings: dict[str, Any], param_name: str) -> str:
    """Returns a str from the content of ``_strings.json``. Raises KeyError."""
    if isinstance(text := strings.get(param_name), str):
        return text
    node: Any = strings
    for key in string_keys(param_name):
        if not isinstance(node, dict):
            raise KeyError(param_name)
        node = node[key]
    if not isinstance(node, str):
        raise KeyError(param_name)
    return node


def read_strings(content: bytes, where: str) -> dict[str, Any]:
    """Parses the content of ``_strings.json``. Raises CorruptCheckpointError, which names the file `where`."""
    with damage(where):
        return as_dict(parse_strictly(content), "it")


def read_shardings(content: bytes, where: str) -> dict[str, str]:
    """Parses the content of ``_sharding``: text by Orbax's name of the leaf. Raises CorruptCheckpointError."""
    with damage(where):
        return {
            base64.urlsafe_b64decode(key).decode("utf-8", "surrogatepass"): as_text(text, "a sharding")
            for key, text in as_dict(parse(content), "it").items()
        }


def sharding_text(sharding: Any) -> str | None:
    """Returns Orbax's text for a sharding, or None for kinds that it has none for."""
    from jaxckpt.storage import compat

    return compat.sharding_text(sharding)


def _write_text(path: str, text: str) -> None:
    stores.write(path, text.encode())


class StoredLeaf(NamedTuple):
    """What the tree metadata says of a leaf.

    Attributes:
      path: keys from the top, each with whether Orbax takes it for an index.
      param_name: Orbax's name, the prefix of its keys in the store.
      value_type: Orbax's word: "jax.Array", "np.ndarray", "scalar", "string", that of an empty container, or of a program's own
        type handler.
      kind: "bytes", "numpy" or None, as jaxckpt noted it.
      key_impl: PRNG implementation, if the leaf holds a typed key.
    """

    path: tuple[tuple[str, bool], ...]
    param_name: str
    value_type: str
    kind: str | None
    key_impl: str | None

    @property
    def name(self) -> str:
        """The path joined by ``/``."""
        return leaf_name(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether this is an empty container or None."""
        return self.value_type in ("None", "Dict", "List", "Tuple", "NamedTuple")

    @property
    def is_string(self) -> bool:
        """Whether this is a str."""
        return self.value_type == "string"

    @property
    def is_foreign(self) -> bool:
        """Whether a type handler has stored this that Orbax does not come with, in a form that only that handler can read."""
        return self.value_type not in _KNOWN

    def foreign(self, path: str) -> str:
        """Returns what to say of a foreign leaf of the checkpoint `path`."""
        return (
            f"{self.name}: {path} holds a leaf that Orbax's type handler for {self.value_type!r} stored. jaxckpt cannot read it; plain "
            "Orbax can, where that handler is registered."
        )


_KNOWN = frozenset({"jax.Array", "np.ndarray", "scalar", "string", "None", "Dict", "List", "Tuple", "NamedTuple"})


@dataclass(frozen=True, slots=True)
class StoredTree:
    """The tree metadata of a checkpoint.

    Attributes:
      leaves: in stored order, empty containers included.
      use_zarr3: zarr version 3, otherwise 2.
      complete_chunks: every chunk was stored, so that a missing one is damage and not a fill value.
      by_jaxckpt: jaxckpt's format number, or None if plain Orbax wrote it.
      sequences: paths (keys as text) of containers that are sequences although Orbax takes them for dicts.
    """

    leaves: tuple[StoredLeaf, ...]
    use_zarr3: bool
    complete_chunks: bool
    by_jaxckpt: int | None
    sequences: frozenset[tuple[str, ...]] = frozenset()


@quiet_gc()
def read(inside: Inside, content: bytes) -> StoredTree:
    """Parses the content of ``_METADATA``.

    Args:
      inside: the directory that it is from, where the array metadata files are.
      content: of the file.

    Raises:
      CorruptCheckpointError: it is not what Orbax writes, or from a later jaxckpt.
      OSError: an array metadata file cannot be read.
    """
    where = os.path.join(inside.directory, FILE)
    impls = _key_impls(inside)
    with damage(where):
        document = as_dict(parse(content), "it")
        by_jaxckpt, kinds, sequences = _custom(document)
        leaves = []
        for described in as_dict(document["tree_metadata"], "tree_metadata").values():
            path = tuple([(key["key"], key["key_type"] == 1) for key in described["key_metadata"]])
            # Raises TypeError if a key is no text.
            name = ".".join([text for text, _ in path])
            value_type = described["value_metadata"]["value_type"]
            leaves.append(StoredLeaf(path, name, value_type, kinds.get(name), impls.get(name)))
        _check_leaves(leaves)
        use_zarr3 = as_bool(document.get("use_zarr3", False) or False, "use_zarr3")
        complete = as_bool(
            document.get("store_array_data_equal_to_fill_value", False) or False, "store_array_data_equal_to_fill_value"
        )
    return StoredTree(tuple(leaves), use_zarr3, complete, by_jaxckpt, sequences)


def _custom(document: dict[str, Any]) -> tuple[int | None, dict[str, str], frozenset[tuple[str, ...]]]:
    """Returns the format of the jaxckpt that wrote a tree, None for plain Orbax, and what it noted of leaves and of sequences."""
    custom = as_dict(document.get("custom_metadata") or {}, "custom_metadata").get("jaxckpt")
    if custom is None:
        return None, {}, frozenset()
    number = as_int(as_dict(custom, "custom_metadata.jaxckpt").get("format"), "format")
    if number > FORMAT:
        raise DamagedError(
            f"it was written by a later jaxckpt (format {number}; this one knows {FORMAT}); upgrade jaxckpt to read it"
        )
    kinds = as_dict(custom.get("kinds"), "kinds")
    if not all(type(kind) is str and kind in KINDS for kind in kinds.values()):
        raise DamagedError("it notes a kind of leaf that is unknown")
    sequences = as_list(custom.get("sequences", []), "sequences")
    return (
        number,
        kinds,
        frozenset(tuple(as_text(key, "a key") for key in as_list(path, "a path")) for path in sequences),
    )


def _check_leaves(leaves: Sequence[StoredLeaf]) -> None:
    if not all(type(leaf.value_type) is str for leaf in leaves):
        raise DamagedError("a leaf has a value_type that is not a string")
    if max([len(leaf.path) for leaf in leaves], default=0) > bounds.TREE_LEVELS:
        raise DamagedError(f"a leaf lies more than {bounds.TREE_LEVELS} levels deep")
    # Orbax knows no difference between a key that holds a dot and two keys.
    names = [leaf.param_name for leaf in leaves if not leaf.is_empty]
    if len(set(names)) != len(names):
        raise DamagedError("it names a leaf twice")


def _key_impls(inside: Inside) -> dict[str, str]:
    """Returns the PRNG implementations of typed keys, from the array metadata files of all processes."""
    found: dict[str, str] = {}
    try:
        names = sorted(stores.names(os.path.join(inside.directory, ARRAY_METADATAS)))
    except FileNotFoundError:
        return found
    except NotADirectoryError as error:
        where = os.path.join(inside.directory, ARRAY_METADATAS)
        raise CorruptCheckpointError.at(where, "this is damaged: it is not a directory.") from error
    for name in names:
        with damage(os.path.join(inside.directory, ARRAY_METADATAS, name)):
            content = inside.read(f"{ARRAY_METADATAS}/{name}", bounds.METADATA_FILE_BYTES)
            for item in as_list(as_dict(parse(content), "it")["array_metadatas"], "array_metadatas"):
                described = item["array_metadata"]
                extra = described.get("ext_metadata")
                if extra and "random_key_impl" in extra:
                    name = as_text(described["param_name"], "param_name")
                    found[name] = as_text(extra["random_key_impl"], "random_key_impl")
    return found
