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
from jaxckpt.storage import files, layout
from jaxckpt.storage.content import ArrayContent, EmptyContent, Snapshot, StringContent
from jaxckpt.storage.settings import WriteSettings

FILE = "_METADATA"
STRINGS = "_strings.json"
SHARDINGS = "_sharding"
ARRAY_METADATAS = "array_metadatas"
FORMAT = 1


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
        node = node[key]
    if not isinstance(node, str):
        raise KeyError(param_name)
    return node


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
def read(directory: str, text: str) -> StoredTree:
    """Parses the content of ``_METADATA``.

    Args:
      directory: for messages, and where the array metadata files are.
      text: the content of the file.

    Raises:
      CorruptCheckpointError: it is not what Orbax writes, or from a later jaxckpt.
    """
    where = os.path.join(directory, FILE)
    impls = _key_impls(directory)
    try:
        document = json.loads(text)
        custom = (document.get("custom_metadata") or {}).get("jaxckpt")
        by_jaxckpt = None if custom is None else int(custom["format"])
        kinds: dict[str, str] = {} if custom is None else custom["kinds"]
        leaves = []
        for described in document["tree_metadata"].values():
            path = tuple((str(key["key"]), key["key_type"] == 1) for key in described["key_metadata"])
            name = ".".join(text for text, _ in path)
            value_type = described["value_metadata"]["value_type"]
            leaves.append(StoredLeaf(path, name, value_type, kinds.get(name), impls.get(name)))
        use_zarr3 = bool(document.get("use_zarr3", False))
        complete = bool(document.get("store_array_data_equal_to_fill_value", False))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from error
    if by_jaxckpt is not None and by_jaxckpt > FORMAT:
        raise CorruptCheckpointError.at(
            where,
            f"written by a later jaxckpt (format {by_jaxckpt}; this one knows {FORMAT}). Upgrade jaxckpt to read it.",
        )
    return StoredTree(tuple(leaves), use_zarr3, complete, by_jaxckpt)


def _key_impls(directory: str) -> dict[str, str]:
    """Returns the PRNG implementations of typed keys, from the array metadata files of all processes."""
    folder = os.path.join(directory, ARRAY_METADATAS)
    found: dict[str, str] = {}
    try:
        names = sorted(files.names(folder))
    except FileNotFoundError:
        return found
    for name in names:
        where = os.path.join(folder, name)
        content = files.read(where)
        try:
            for item in json.loads(content)["array_metadatas"]:
                described = item["array_metadata"]
                extra = described.get("ext_metadata") or {}
                if "random_key_impl" in extra:
                    found[described["param_name"]] = extra["random_key_impl"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(where, error) from error
    return found


def _damaged(where: str, error: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError.at(
        where, f"this file is damaged ({type(error).__name__}: {error}). Restore another checkpoint."
    )
