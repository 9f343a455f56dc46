"""Roots: the values that a Checkpoint accepts as its positional argument, and the names of their fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxckpt.tree import objects
from jaxckpt.tree.names import as_key


def expand_root(root: Any) -> dict[str, Any]:
    """Returns the first level of `root` as top-level names and values.

    Args:
      root: a mapping, a dataclass, an NNX object, a Checkpoint, a pytree with named children, or an object with attributes.

    Raises:
      TypeError: `root` has no names at its first level.
    """
    if (adapter := objects.root_adapter(root)) is not None:
        return adapter.children(root)
    if isinstance(root, Mapping):
        for name in root:
            if not isinstance(name, str):
                raise TypeError(f"The keys of a root mapping become names: expected str, got {name!r}.")
        return dict(root)
    if isinstance(root, (str, bytes, int, float, complex, jax.Array)) or objects.is_reference(root):
        raise TypeError(
            f"root must be a mapping, a dataclass or an object with attributes, got {type(root).__name__}; "
            "pass it by name: Checkpoint(name=value)."
        )
    children = jax.tree_util.tree_flatten_with_path(root, is_leaf=lambda node: node is not root)[0]
    if (
        all(path and isinstance(path[0], (jax.tree_util.GetAttrKey, jax.tree_util.DictKey)) for path, _ in children)
        and children
    ):
        return {as_key(path[0]).text: child for path, child in children}
    if children and children[0][0]:
        raise TypeError(
            f"root must have names at its first level, but {type(root).__name__} has indices; pass its items by name."
        )
    if dataclasses.is_dataclass(root) and not isinstance(root, type):
        return {field.name: getattr(root, field.name) for field in dataclasses.fields(root)}
    try:
        attributes = {name: value for name, value in vars(root).items() if not name.startswith("_")}
        if not attributes and vars(root):
            raise TypeError("no public attributes")
        if callable(root):
            raise TypeError("a function")
    except TypeError:
        raise TypeError(
            f"root must be a mapping, a dataclass or an object with attributes, got {type(root).__name__}."
        ) from None
    return attributes
