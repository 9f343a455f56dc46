"""Reads Orbax's metadata of a tree: ``_METADATA``, ``_sharding`` and ``array_metadatas/``. `tree_text` writes it.

Facts for which Orbax has no field are stored in ``custom_metadata.jaxckpt``, which Orbax keeps and ignores.
"""

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
)
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.errors import CorruptCheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.item import notes, plain_text
from jaxckpt.storage.stores.inside import Inside
from jaxckpt.tree.names import leaf_name

FILE = "_METADATA"
# Orbax writes this key first into the file.
KEY = b'"tree_metadata"'
SHARDINGS = "_sharding"
ARRAY_METADATAS = "array_metadatas"
FORMAT = 1
# Our key in `custom_metadata`.
OWN = "jaxckpt"
# `StoredLeaf.note` of a string that may be a str or bytes, because TensorFlow has one type for both.
STR_OR_BYTES = "str or bytes"


def read_shardings(content: bytes, where: str) -> dict[str, str]:
    """Parses the content of ``_sharding``.

    Args:
      content: content of the file.
      where: path of the file, for the error.

    Returns:
      Orbax's text for the sharding of each array, by Orbax's name of the leaf.

    Raises:
      CorruptCheckpointError: Orbax does not write such a content.
    """
    with damage(where):
        return {
            base64.urlsafe_b64decode(key).decode("utf-8", "surrogatepass"): as_text(text, "a sharding")
            for key, text in as_dict(parse(content), "it").items()
        }


class StoredLeaf(NamedTuple):
    """The tree metadata of one leaf.

    Attributes:
      path: keys from the root to the leaf. Each key says whether Orbax takes it for an index.
      param_name: Orbax's name of the leaf. The leaf's keys in the key-value store begin with it.
      value_type: Orbax's word for the type: "jax.Array", "np.ndarray", "scalar", "string", the type of an empty container, or the word
        of a program's own type handler.
      note: word of the note that jaxckpt wrote for the leaf (see `jaxckpt.storage.item.notes`), or None.
      key_impl: PRNG implementation, if the leaf is a typed PRNG key; otherwise None.
    """

    path: tuple[tuple[str, bool], ...]
    param_name: str
    value_type: str
    note: str | None
    key_impl: str | None

    @property
    def name(self) -> str:
        """The path joined by ``/``."""
        return leaf_name(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether this is an empty container or None."""
        return self.value_type in _EMPTY

    @property
    def is_string(self) -> bool:
        """Whether this is a str."""
        return self.value_type == _STRING

    @property
    def is_foreign(self) -> bool:
        """Whether a type handler of the program stored this leaf, so that perhaps only that handler can read it."""
        return self.value_type not in _KNOWN

    def foreign(self, path: str) -> str:
        """Returns the error message for a read of this foreign leaf.

        Args:
          path: path of the checkpoint.
        """
        if self.value_type.startswith("safetensors "):
            return f"{self.name}: {path} holds an array of dtype {self.value_type}, which numpy does not have."
        if self.value_type.startswith("TensorFlow "):
            what = "an array of strings" if self.value_type == "TensorFlow string" else f"a tensor of {self.value_type}"
            return (
                f"{self.name}: {path} holds {what}, which is not a leaf of a JAX program. "
                "A reader (load_checkpoint) gives arrays of strings."
            )
        return (
            f"{self.name}: {path} holds a leaf that Orbax's type handler for {self.value_type!r} stored. jaxckpt cannot read it; plain "
            "Orbax can, where that handler is registered."
        )


# A NamedTuple's own constructor takes three times as long, and there are thousands of leaves.
_new_leaf = tuple.__new__
_STRING = "string"
_EMPTY = frozenset({"None", "Dict", "List", "Tuple", "NamedTuple"})
_KNOWN = _EMPTY | {"jax.Array", "np.ndarray", "scalar", _STRING}


@dataclass(frozen=True, slots=True)
class StoredTree:
    """The tree metadata of a checkpoint.

    Attributes:
      leaves: all leaves in stored order, including empty containers.
      use_zarr3: whether arrays are stored as zarr version 3; otherwise as version 2.
      complete_chunks: whether every chunk was stored. Then a missing chunk is damage; otherwise it stands for the fill value.
      by_jaxckpt: number of jaxckpt's format, or None if plain Orbax wrote the checkpoint.
      sequences: paths (keys as text) of the containers that are sequences although they are described to Orbax as dicts.
      has_nested: whether leaves may lie below other leaves, where a tree has no place. In an Orbax checkpoint that is damage.
      aliases: leaves that are among `leaves` too, under other names: variables that several objects of a TensorFlow program share.
    """

    leaves: tuple[StoredLeaf, ...]
    use_zarr3: bool
    complete_chunks: bool
    by_jaxckpt: int | None
    sequences: frozenset[tuple[str, ...]] = frozenset()
    aliases: tuple[StoredLeaf, ...] = ()
    has_nested: bool = False

    @property
    def value_types(self) -> set[str]:
        """The words for the types of the leaves, each once: thousands of leaves have few."""
        return {leaf.value_type for leaf in self.leaves}

    @property
    def has_strings(self) -> bool:
        """Whether any leaf is a str."""
        return _STRING in self.value_types

    @property
    def has_foreign(self) -> bool:
        """Whether any leaf is foreign, see `StoredLeaf.is_foreign`."""
        return not _KNOWN.issuperset(self.value_types)

    @property
    def filled(self) -> Sequence[StoredLeaf]:
        """The leaves in stored order, without empty containers."""
        if _EMPTY.isdisjoint(self.value_types):
            return self.leaves
        return [leaf for leaf in self.leaves if not leaf.is_empty]

    @property
    def by_name(self) -> dict[str, StoredLeaf]:
        """The leaves by Orbax's names, without empty containers: Orbax can give one of these and an array the same name."""
        return {leaf.param_name: leaf for leaf in self.leaves if not leaf.is_empty}

    @property
    def positions(self) -> dict[str, int]:
        """The positions of the leaves in `by_name`, by Orbax's names."""
        return {leaf.param_name: position for position, leaf in enumerate(self.leaves) if not leaf.is_empty}

    def below(self, name: str) -> "StoredTree":
        """Returns the tree as the value called `name` in a dict.

        Args:
          name: the key. The names by which arrays are found stay as they are.
        """
        leaves = tuple(leaf._replace(path=((name, False), *leaf.path)) for leaf in self.leaves)
        return replace(self, leaves=leaves, sequences=frozenset((name, *path) for path in self.sequences))

    def at(self, keys: tuple[str, ...]) -> "StoredTree":
        """Returns the part of the tree below some keys, which its paths no longer have. It has the leaves of other names too.

        Args:
          keys: the keys from the root; none for the whole tree, without the leaves of other names.
        """
        depth = len(keys)
        found: dict[tuple[tuple[str, bool], ...], StoredLeaf] = {}
        for leaf in (*self.leaves, *self.aliases) if keys else self.leaves:
            if tuple(text for text, _ in leaf.path[:depth]) == keys:
                found.setdefault(leaf.path[depth:], leaf._replace(path=leaf.path[depth:]))
        sequences = frozenset(path[depth:] for path in self.sequences if path[:depth] == keys)
        return replace(self, leaves=tuple(found.values()), sequences=sequences, aliases=())


@quiet_gc()
def read(inside: Inside, content: bytes) -> StoredTree:
    """Parses the content of ``_METADATA``.

    Args:
      inside: the files of its directory, which has the array metadata files too.
      content: content of the file.

    Raises:
      CorruptCheckpointError: Orbax does not write such a content, or a later jaxckpt wrote it.
      OSError: an array metadata file cannot be read.
    """
    where = os.path.join(inside.directory, FILE)
    impls = _key_impls(inside)
    with damage(where):
        described, document = plain_text.leaves_of(content) or _parsed(content)
        by_jaxckpt, kinds, sequences = _custom(document)
        leaves = [
            _new_leaf(StoredLeaf, (path, name, value_type, kinds.get(name), impls.get(name)))
            for path, name, value_type in described
        ]
        _check_leaves(leaves)
        use_zarr3 = as_bool(document.get("use_zarr3", False) or False, "use_zarr3")
        complete = as_bool(
            document.get("store_array_data_equal_to_fill_value", False) or False, "store_array_data_equal_to_fill_value"
        )
    return StoredTree(tuple(leaves), use_zarr3, complete, by_jaxckpt, sequences)


def _parsed(content: bytes) -> tuple[Iterable[plain_text.Described], dict[str, Any]]:
    """Returns what `plain_text.leaves_of` returns for texts of one form, for any text."""
    document = as_dict(parse(content), "it")

    def leaves() -> Iterator[plain_text.Described]:
        for described in as_dict(document["tree_metadata"], "tree_metadata").values():
            path = tuple([(key["key"], key["key_type"] == 1) for key in described["key_metadata"]])
            # This raises TypeError if a key is not text.
            name = ".".join([text for text, _ in path])
            yield path, name, described["value_metadata"]["value_type"]

    return leaves(), document


def _custom(document: dict[str, Any]) -> tuple[int | None, dict[str, str], frozenset[tuple[str, ...]]]:
    """Returns jaxckpt's entries in ``_METADATA``.

    Returns:
      Number of the format (None if plain Orbax wrote the file), words of the notes by Orbax's name of the leaf, and
      `StoredTree.sequences`.
    """
    custom = as_dict(document.get("custom_metadata") or {}, "custom_metadata").get(OWN)
    if custom is None:
        return None, {}, frozenset()
    number = as_int(as_dict(custom, "custom_metadata.jaxckpt").get("format"), "format")
    if number > FORMAT:
        raise DamagedError(
            f"it was written by a later jaxckpt (format {number}; this one knows {FORMAT}); upgrade jaxckpt to read it"
        )
    kinds = as_dict(custom.get("kinds"), "kinds")
    if not all(type(word) is str and notes.find(word) is not None for word in kinds.values()):
        raise DamagedError("it contains an unknown note of a leaf")
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
    # Orbax cannot tell one key that contains a dot from two keys.
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
        raise CorruptCheckpointError.at(where, "the checkpoint is damaged: this is not a directory.") from error
    for name in names:
        with damage(os.path.join(inside.directory, ARRAY_METADATAS, name)):
            content = inside.read(f"{ARRAY_METADATAS}/{name}", bounds.METADATA_FILE_BYTES)
            if plain_text.is_without_keys(content):
                continue
            for item in as_list(as_dict(parse(content), "it")["array_metadatas"], "array_metadatas"):
                described = item["array_metadata"]
                extra = described.get("ext_metadata")
                if extra and "random_key_impl" in extra:
                    name = as_text(described["param_name"], "param_name")
                    found[name] = as_text(extra["random_key_impl"], "random_key_impl")
    return found
