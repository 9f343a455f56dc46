"""Flax NNX's classes. Flax is never imported here: an object can only be an NNX object if the program has imported Flax already."""

import sys
from typing import Any

STATES = ("State", "GraphState", "FlatState")
"""Names of the classes of states."""

GRAPH_NODES = ("Module", "Optimizer", "Pytree", "Object")
"""Names of the classes of graph nodes. Their base has had two names."""


def flax_nnx() -> Any:
    """Returns the module ``flax.nnx``, None if the program has not imported it."""
    return sys.modules.get("flax.nnx")


def is_of(node: Any, names: tuple[str, ...]) -> bool:
    """Whether `node` is of one of NNX's classes: `STATES` or `GRAPH_NODES`. This version of Flax may lack some of them."""
    nnx = flax_nnx()
    if nnx is None:
        return False
    found = (getattr(nnx, name, None) for name in names)
    return isinstance(node, tuple(kind for kind in found if isinstance(kind, type)))
