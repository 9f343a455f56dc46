"""Classifies the nodes of a value for the walk that takes it apart. Decided once per type: `isinstance` of an abstract class is slow."""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.by_type import ByType
from jaxckpt.tree import objects

_CONTAINERS = (dict, list, tuple, Mapping)
# Types that JAX always treats as leaves: a short cut for thousands of leaves. For other types, JAX is asked about each value.
_LEAVES = frozenset({bool, int, float, complex, str, bytes})
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


class Role(enum.Enum):
    """The role of all nodes of one type in a walk."""

    NONE = "none"
    DICT = "dict"
    SEQUENCE = "sequence"
    CONTAINER = "other container"
    REFERENCE = "reference"
    LEAF = "leaf"
    OTHER = "other"


# Plain names, because looking up an enum's attributes is slow.
DICT, SEQUENCE, REFERENCE, LEAF, OTHER = Role.DICT, Role.SEQUENCE, Role.REFERENCE, Role.LEAF, Role.OTHER
_roles: ByType[Role] = ByType({type(None): Role.NONE, dict: DICT, list: SEQUENCE, tuple: SEQUENCE})

ROLES = _roles.permanent
"""The roles of those types of Python, NumPy and JAX that have been met. Look here first; call `role_of` only if a type is missing."""


def role_of(node: Any) -> Role:
    """Returns the role of a node."""
    kind = type(node)
    return _roles.get(kind) or _roles.put(kind, _find(node))


def _find(node: Any) -> Role:
    if objects.is_reference(node):
        return REFERENCE
    if isinstance(node, _CONTAINERS):
        return Role.CONTAINER
    # A program may register any other type with JAX as a pytree later.
    is_known = type(node) in _LEAVES or isinstance(node, _ARRAYS)
    return LEAF if is_known and jax.tree_util.all_leaves([node]) else OTHER


def stops(node: Any) -> bool:
    """Whether JAX shall not look inside `node`: an empty container, None, or a reference object. Called for every node."""
    role = ROLES.get(type(node)) or role_of(node)
    if role is LEAF or role is OTHER:
        return False
    return role is REFERENCE or not node
