"""What a node of a value is to the walk that takes the value apart. Decided once per type: `isinstance` of an abstract class is slow."""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.by_type import ByType
from jaxckpt.tree import objects

_CONTAINERS = (dict, list, tuple, Mapping)
# Types that are leaves for JAX, for good: a short cut, for thousands of leaves. Of any other type JAX is asked for each value.
_LEAVES = frozenset({bool, int, float, complex, str, bytes})
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


class Role(enum.Enum):
    """What nodes of a type are to the walk."""

    NONE = "none"
    DICT = "dict"
    SEQUENCE = "sequence"
    CONTAINER = "other container"
    REFERENCE = "reference"
    LEAF = "leaf"
    OTHER = "other"


# An enum's attributes are looked up slowly.
DICT, SEQUENCE, REFERENCE, LEAF, OTHER = Role.DICT, Role.SEQUENCE, Role.REFERENCE, Role.LEAF, Role.OTHER
_roles: ByType[Role] = ByType({type(None): Role.NONE, dict: DICT, list: SEQUENCE, tuple: SEQUENCE})

ROLES = _roles.permanent
"""The roles of the types of Python, NumPy and JAX that have been met. Look here before `role_of` is called."""


def role_of(node: Any) -> Role:
    """Returns the role of a node."""
    kind = type(node)
    return _roles.get(kind) or _roles.put(kind, _find(node))


def _find(node: Any) -> Role:
    if objects.is_reference(node):
        return REFERENCE
    if isinstance(node, _CONTAINERS):
        return Role.CONTAINER
    # Another type may be registered with JAX as a pytree later on.
    is_known = type(node) in _LEAVES or isinstance(node, _ARRAYS)
    return LEAF if is_known and jax.tree_util.all_leaves([node]) else OTHER


def stops(node: Any) -> bool:
    """Whether a pytree ends at `node`, for JAX: empty containers, None, and reference objects. Called for every node."""
    role = ROLES.get(type(node)) or role_of(node)
    if role is LEAF or role is OTHER:
        return False
    return role is REFERENCE or not node
