"""Finds the slot variables among the leaves of an optimizer's state, for `CheckpointOptions.experimental_skip_slot_variables`.

A *slot variable* is TensorFlow's word for an array that an optimizer keeps for each parameter, such as a moment or a trace. It has the
shape of its parameter. Counters and hyperparameters are not slot variables. Optimizer states are recognized by their types: optax's named
tuples (and plain tuples of them, as ``optax.chain`` makes), and NNX optimizers.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxckpt.tree import flatten, objects
from jaxckpt.tree.names import Key, Path, as_key

_COUNTERS = {"count", "step", "mini_step", "gradient_step", "notfinite_count", "total_notfinite"}


def slot_names(values: Mapping[str, Any], flats: Iterable[flatten.Flat]) -> set[str]:
    """Returns the names of the slot variables.

    Args:
      values: the named values of a Checkpoint.
      flats: the same values, taken apart.
    """
    prefixes = [prefix for name, value in values.items() for prefix in _optimizer_prefixes((Key(name),), value)]
    leaves = [leaf for flat in flats for leaf in flat.leaves]
    inside, outside = [], []
    for leaf in leaves:
        prefix = next((prefix for prefix in prefixes if leaf.path[: len(prefix)] == prefix), None)
        if prefix is None:
            outside.append(leaf)
        else:
            inside.append((leaf, leaf.path[len(prefix) :]))
    tails = {(_shape(leaf.value), leaf.path[index:]) for leaf in outside for index in range(1, len(leaf.path))}
    slots = set()
    for leaf, below in inside:
        shape = _shape(leaf.value)
        if shape is None:
            continue
        if shape == () and below and below[-1].text in _COUNTERS:
            continue
        if shape != () or any((shape, below[index:]) in tails for index in range(1, len(below))):
            slots.add(leaf.name)
    return slots


def _optimizer_prefixes(prefix: Path, value: Any) -> list[Path]:
    found = []
    for entries, node in jax.tree_util.tree_flatten_with_path(value, is_leaf=_stops)[0]:
        path = (*prefix, *map(as_key, entries))
        if _is_nnx_optimizer(node):
            found.append((*path, Key("opt_state")))
        elif (nested := objects.nested_values(node)) is not None:
            for name, child in nested.items():
                found += _optimizer_prefixes((*path, Key(name)), child)
        elif _is_optimizer_state(node):
            found.append(path)
    return found


def _stops(node: Any) -> bool:
    return _is_optimizer_state(node) or objects.is_reference(node)


def _is_optax(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields") and type(node).__module__.split(".")[0] == "optax"


def _is_optimizer_state(node: Any) -> bool:
    return _is_optax(node) or (type(node) is tuple and any(_is_optax(item) for item in node))


def _is_nnx_optimizer(node: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Optimizer)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) else None
