"""Variables of Flax NNX. Their *raw* values are read and set, so hooks and overridden getters and setters do not run."""

from typing import Any

import jax

from jaxckpt.tree.builders import Builder, Rebuild, Undo, Walk
from jaxckpt.tree.names import KnownPath
from jaxckpt.tree.nnx_classes import flax_nnx


def _raw_value(variable: Any) -> Any:
    base = flax_nnx().Variable
    raw = base.get_raw_value(variable) if issubclass(type(variable), base) else variable.get_raw_value()
    return raw[...] if _is_ref(raw) else raw


def _set_raw_value(variable: Any, value: Any) -> Undo:
    base = flax_nnx().Variable
    if not issubclass(type(variable), base):
        old = variable.get_raw_value()
        variable.set_raw_value(value)
        return lambda: variable.set_raw_value(old)
    old = base.get_raw_value(variable)
    if _is_ref(old):
        reference, old = old, old[...]
        reference[...] = value

        def put_back() -> None:
            reference[...] = old

        return put_back
    base.set_raw_value(variable, value)
    return lambda: base.set_raw_value(variable, old)


def _is_ref(raw: Any) -> bool:
    """Whether a raw value is a jax.Ref, a mutable reference to an array."""
    ref = getattr(jax, "Ref", None)
    return ref is not None and isinstance(raw, ref)


class NnxVariable:
    """The adapter for Variables, alone, in a module or in an `nnx.State`. The raw value is a leaf, or a pytree of leaves."""

    def take(self, node: Any, path: KnownPath, walk: Walk) -> Builder:
        """Takes a Variable apart."""
        raw = _raw_value(node)
        start, outside = walk.position, walk.variable_depth
        walk.variable_depth = len(path.path)
        try:
            inner = walk.take(raw, path)
        finally:
            walk.variable_depth = outside
        walk.own(node, start, in_place=not walk.in_state)
        return _VariableBuilder(node, raw, inner, walk.in_state)


class _VariableBuilder:
    __slots__ = ("_in_state", "_inner", "_raw", "_variable")

    def __init__(self, variable: Any, raw: Any, inner: Builder, in_state: bool) -> None:
        self._variable, self._raw, self._inner, self._in_state = variable, raw, inner, in_state

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the Variable itself, and adds the change that sets its value. A Variable of an `nnx.State` is replaced instead."""
        variable, new = self._variable, self._inner.build(rebuild)
        if new is self._raw:
            return variable
        if not self._in_state:
            rebuild.changes.append(lambda: _set_raw_value(variable, new))
            return variable
        if id(variable) in rebuild.in_place:
            # A module of the same Checkpoint holds this Variable too and sets its value. The State and the module go on sharing it.
            return variable
        if id(variable) not in rebuild.renewed:
            rebuild.renewed[id(variable)] = variable.replace(new)
        return rebuild.renewed[id(variable)]
