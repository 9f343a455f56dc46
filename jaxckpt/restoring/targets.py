"""Finds out on which devices the new value of an abstract target belongs."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxckpt.leaf_kinds.abstract import ABSTRACT
from jaxckpt.leaf_kinds.on_devices import sharding_of
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf

# Shardings that are known to fit a shape, by shape and id. They are kept alive, so that another object cannot get their id.
_Fits = dict[tuple[Any, int], Any]


def resolved(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Gives abstract targets (jax.ShapeDtypeStruct) the devices that the program means.

    `jax.eval_shape` under `jax.set_mesh` returns shardings over a mesh without devices (an AbstractMesh). They get the devices of the
    current mesh. A target without a sharding, such as a step counter, gets all devices of the current mesh, if there is one: the
    program's own value would lie there.

    Args:
      leaves: the targets.

    Returns:
      The targets. Those that changed have a new `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: an abstract mesh differs from the current one, or a sharding does not fit the shape. The message names the leaf.
    """
    fitting: _Fits = {}
    mesh = _current_mesh()
    found: list[Leaf] = []
    last: Any = None
    is_abstract = False
    for leaf in leaves:
        value = leaf.value
        if type(value) is not last:
            last, is_abstract = type(value), kind_of(value) is ABSTRACT
        # A sharding that is known to fit is one over devices, so the target stays as it is.
        if is_abstract and (value.shape, id(value.sharding)) not in fitting:
            leaf = _resolved(leaf, mesh, fitting)
        found.append(leaf)
    return found


def _resolved(leaf: Leaf, current: Any, fitting: _Fits) -> Leaf:
    value = _resolve(leaf, current)
    sharding, shape = value.sharding, value.shape
    # Many leaves share a sharding and a shape: check each pair once.
    if sharding is not None and (shape, id(sharding)) not in fitting:
        try:
            sharding.shard_shape(tuple(shape))
        except Exception as error:
            raise ValueError(
                f"{leaf.name}: the target's sharding does not fit its shape {tuple(shape)}: {error or type(error).__name__}. "
                "Give the target a sharding that divides it evenly."
            ) from error
        fitting[shape, id(sharding)] = sharding
    return leaf if value is leaf.value else leaf._replace(value=value)


def _resolve(leaf: Leaf, current: Any) -> Any:
    """Returns the value of a target with the sharding that the program means.

    Args:
      leaf: the target.
      current: the current mesh; None if there is none.
    """
    value = leaf.value
    sharding = sharding_of(value)
    mesh: Any = getattr(sharding, "mesh", None)
    if sharding is not None and not isinstance(mesh, jax.sharding.AbstractMesh):
        return value
    if sharding is None:
        if current is None:
            return value
        found: Any = jax.sharding.NamedSharding(current, jax.sharding.PartitionSpec())
    elif current is not None and current.axis_names == mesh.axis_names and current.axis_sizes == mesh.axis_sizes:
        found = jax.sharding.NamedSharding(current, sharding.spec, memory_kind=sharding.memory_kind)
    elif sharding.is_fully_replicated and current is None:
        # This sharding says only that the value is not divided: JAX may choose the device.
        found = None
    else:
        now = f"the current mesh has {_axes(current)}" if current is not None else "no mesh is set"
        raise ValueError(
            f"{leaf.name}: the target's sharding {sharding.spec} is over an abstract mesh of {_axes(mesh)}, which has no devices, and "
            f"{now}. Call restore under jax.set_mesh(mesh), with the mesh that the target was made for, or give the target a sharding "
            "over that mesh."
        )
    try:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=found, weak_type=value.weak_type)
    except Exception as error:
        raise leaf_errors.named(error, leaf.name) from error


def _current_mesh() -> Any:
    """Returns the mesh that the program has set, None if there is none."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:
        # JAX does not tell the mesh inside jax.grad and jax.vmap.
        return None
    return None if mesh.empty else mesh


def _axes(mesh: Any) -> str:
    return ", ".join(f"{name}={size}" for name, size in zip(mesh.axis_names, mesh.axis_sizes, strict=True)) or "no axes"
