"""The arguments of a save, from Orbax's argument classes. What the handlers cannot do is refused, with the argument's name."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxckpt.storage.item.tree_metadata import OWN


class LeafArguments(NamedTuple):
    """The ``ocp.SaveArgs`` of one leaf.

    Attributes:
      dtype: the dtype to store; None for the leaf's own.
      chunk_byte_size: the size in bytes that no chunk may exceed; None for the setting of all arrays.
    """

    dtype: np.dtype[Any] | None = None
    chunk_byte_size: int | None = None

    @classmethod
    def of(cls, given: Any, name: str) -> "LeafArguments":
        """Returns the arguments of a leaf.

        Args:
          given: an ``ocp.SaveArgs``; None, or anything that is not one, stands for its defaults, as in Orbax.
          name: name of the leaf, for errors.

        Raises:
          ValueError: an argument asks for something that is not possible.
        """
        import orbax.checkpoint as ocp

        if given is None:
            return _DEFAULT
        if not isinstance(given, ocp.SaveArgs):
            raise ValueError(f"save_args: expected an ocp.SaveArgs or None for {name or 'the item'}, got {given!r}.")
        if given.aggregate:
            raise ValueError(f"SaveArgs.aggregate: {name}: no longer possible, also in Orbax. Leave it out.")
        _refuse_others(given, {"aggregate", "shard_axes", *cls._fields})
        if given.shard_axes:
            raise ValueError(
                f"SaveArgs.shard_axes: {name}: jaxckpt chooses itself along which axes it divides chunks. Leave it out."
            )
        return cls(
            None if given.dtype is None else np.dtype(given.dtype),
            _positive("SaveArgs.chunk_byte_size", given.chunk_byte_size),
        )


_DEFAULT = LeafArguments()


class SaveArguments(NamedTuple):
    """What one save gets.

    Attributes:
      item: the tree.
      save_args: a tree of ``ocp.SaveArgs``, or None.
      custom_metadata: what to store beside the tree, or None.
      target_data_file_size: the size in bytes at which a data file is closed; None for the setting of the handler.
    """

    item: Any
    save_args: Any
    custom_metadata: Mapping[str, Any] | None
    target_data_file_size: int | None


def of_pytree_save(given: Any) -> SaveArguments:
    """Returns the arguments in an ``ocp.args.PyTreeSave`` (or its base class).

    Raises:
      ValueError: an argument asks for something that is not possible.
      TypeError: `custom_metadata` is not JSON.
    """
    _refuse_others(given, {*SaveArguments._fields, "ocdbt_target_data_file_size"})
    size = target_size(given.ocdbt_target_data_file_size)
    return SaveArguments(given.item, given.save_args, _metadata(given.custom_metadata), size)


def target_size(given: Any) -> int | None:
    """Returns the size of a data file in bytes; None if it is not given.

    Args:
      given: Orbax's ``ocdbt_target_data_file_size``, where 0 stands for no limit.

    Raises:
      ValueError: it is not a number of bytes.
    """
    return (1 << 62) if given == 0 else _positive("ocdbt_target_data_file_size", given)


def of_standard_save(given: Any) -> SaveArguments:
    """Returns the arguments in an ``ocp.args.StandardSave``.

    Raises:
      ValueError: an argument asks for something that is not possible, or the item is not a standard tree.
      TypeError: `custom_metadata` is not JSON.
    """
    _refuse_others(given, set(SaveArguments._fields))
    return SaveArguments(_standard(given.item), given.save_args, _metadata(given.custom_metadata), None)


def _standard(item: Any) -> Any:
    """Returns a tree of arrays and numbers. Raises ValueError for anything that Orbax's StandardCheckpointHandler refuses, too."""
    import jax
    import orbax.checkpoint as ocp

    types = ocp.checkpoint_utils.STANDARD_ARRAY_TYPES
    if item is None or isinstance(item, (jax.Array, int, float, complex)):
        raise ValueError(
            f"StandardSave.item: expected a tree, got {type(item).__name__}. Save it with ocp.args.PyTreeSave."
        )

    def checked(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, (np.ndarray, jax.Array)) and hasattr(leaf, "__array__"):
            leaf = np.asarray(leaf)
        if not isinstance(leaf, types):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"StandardSave.item: {where}: expected an array, an int or a float, got {type(leaf).__name__}. Save it with "
                "ocp.args.PyTreeSave."
            )
        return leaf

    return jax.tree_util.tree_map_with_path(checked, item)


def _metadata(given: Any) -> Mapping[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(f"custom_metadata: expected a dict of JSON values, got {type(given).__name__}.")
    if OWN in given:
        raise ValueError(f"custom_metadata: jaxckpt needs the key {OWN!r} itself. Choose another one.")
    try:
        # A copy, too: the program may change its own afterwards.
        found: Mapping[str, Any] = json.loads(json.dumps(dict(given)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"custom_metadata: it is not JSON: {error}") from error
    return found


def _refuse_others(given: Any, known: set[str]) -> None:
    """Refuses arguments that this module does not know, such as those of a later Orbax, unless they have their defaults."""
    for field in dataclasses.fields(given):
        if field.name not in known and getattr(given, field.name) != field.default:
            raise ValueError(f"{field.name}: jaxckpt's handler does not know this argument. Leave it out.")


def _positive(name: str, number: Any) -> int | None:
    if number is None:
        return None
    if type(number) is not int or number < 1:
        raise ValueError(f"{name}: expected a positive number of bytes, got {number!r}.")
    return number
