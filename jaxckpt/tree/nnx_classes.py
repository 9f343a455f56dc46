"""Flax NNX's classes. Flax is not imported here: an object can only be an NNX object if the program has imported Flax already."""

import sys
from typing import Any

STATES = ("State", "GraphState", "FlatState")
"""Names of the classes of states."""

GRAPH_NODES = ("Module", "Optimizer", "Pytree", "Object")
"""Names of the classes of graph nodes. Their base class was renamed between versions, so both of its names are listed."""


def flax_nnx() -> Any:
    """Returns the module ``flax.nnx``; None if the program has not imported it."""
    return sys.modules.get("flax.nnx")


def is_of(node: Any, names: tuple[str, ...]) -> bool:
    """Whether `node` is an instance of one of NNX's classes.

    Args:
      node: the object.
      names: names of the classes, `STATES` or `GRAPH_NODES`. The installed version of Flax may lack some of them.
    """
    nnx = flax_nnx()
    if nnx is None:
        return False
    found = (getattr(nnx, name, None) for name in names)
    return isinstance(node, tuple(kind for kind in found if isinstance(kind, type)))
