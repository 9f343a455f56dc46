"""Orbax's description of a tree: ``_METADATA``, ``_sharding``, ``array_metadatas/``, ``_strings.json``.

The format is Orbax's (0.12); tests load what is written here with Orbax itself. What Orbax has no word for stands under
``custom_metadata.jaxckpt``, where Orbax keeps it and ignores it.
"""

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.names import leaf_name
from jaxckpt.quiet_gc import quiet_gc
from jaxckpt.storage import bounds, files, layout
from jaxckpt.storage.content import ArrayContent, EmptyContent, Snapshot, StringContent
from jaxckpt.storage.documents import (
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
from jaxckpt.storage.inside import Inside
from jaxckpt.storage.settings import WriteSettings

FILE = "_METADATA"
STRINGS = "_strings.json"
SHARDINGS = "_sharding"
ARRAY_METADATAS = "array_metadatas"
FORMAT = 1
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
    for entry in snapshot.entries:
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
        keys = ", ".join(
            [f'{{"key": {_quoted(text)}, "key_type": {1 if is_index else 2}}}' for text, is_index in entry.path]
        )
        path = _quoted(str(tuple([text for text, _ in entry.path])))
        tree.append(f'{path}: {{"key_metadata": [{keys}], "value_metadata": {value}}}')
    rest = json.dumps(
        {
            "use_ocdbt": layout.uses_ocdbt(settings),
            "use_zarr3": True,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": {"jaxckpt": {"format": FORMAT, "kinds": kinds}},
        }
    )
    _write_text(os.path.join(directory, FILE), f'{{"tree_metadata": {{{", ".join(tree)}}}, {rest[1:]}')
    if strings:
        _write_text(os.path.join(directory, STRINGS), json.dumps(strings))
    if shardings:
        _write_text(os.path.join(directory, SHARDINGS), json.dumps(shardings))
    if arrays:
        files.make_directory(os.path.join(directory, ARRAY_METADATAS))
        text = f'{{"array_metadatas": [{", ".join(arrays)}]}}'
        _write_text(os.path.join(directory, ARRAY_METADATAS, f"process_{process}"), text)


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
    from jaxckpt.storage import private

    return private.sharding_text(sharding)


def _write_text(path: str, text: str) -> None:
    files.write(path, text.encode())


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """What the tree metadata says of a leaf.

    Attributes:
      path: keys from the top, each with whether it is an index.
      param_name: Orbax's name, the prefix of its keys in the store.
      value_type: Orbax's word: "jax.Array", "np.ndarray", "scalar", "string", or that of an empty container.
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


@dataclass(frozen=True, slots=True)
class StoredTree:
    """The tree metadata of a checkpoint.

    Attributes:
      leaves: in stored order, empty containers included.
      use_zarr3: zarr version 3, otherwise 2.
      complete_chunks: every chunk was stored, so that a missing one is damage and not a fill value.
      by_jaxckpt: jaxckpt's format number, or None if plain Orbax wrote it.
    """

    leaves: tuple[StoredLeaf, ...]
    use_zarr3: bool
    complete_chunks: bool
    by_jaxckpt: int | None


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
        by_jaxckpt, kinds = _custom(document)
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
    return StoredTree(tuple(leaves), use_zarr3, complete, by_jaxckpt)


def _custom(document: dict[str, Any]) -> tuple[int | None, dict[str, str]]:
    """Returns the format of the jaxckpt that wrote a tree, None for plain Orbax, and what it noted of leaves."""
    custom = as_dict(document.get("custom_metadata") or {}, "custom_metadata").get("jaxckpt")
    if custom is None:
        return None, {}
    number = as_int(as_dict(custom, "custom_metadata.jaxckpt").get("format"), "format")
    if number > FORMAT:
        raise DamagedError(
            f"it was written by a later jaxckpt (format {number}; this one knows {FORMAT}); upgrade jaxckpt to read it"
        )
    kinds = as_dict(custom.get("kinds"), "kinds")
    if not all(type(kind) is str and kind in KINDS for kind in kinds.values()):
        raise DamagedError("it notes a kind of leaf that is unknown")
    return number, kinds


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
        names = sorted(files.names(os.path.join(inside.directory, ARRAY_METADATAS)))
    except FileNotFoundError:
        return found
    except NotADirectoryError as error:
        where = os.path.join(inside.directory, ARRAY_METADATAS)
        raise CorruptCheckpointError(f"{where}: this is damaged: it is not a directory.") from error
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
