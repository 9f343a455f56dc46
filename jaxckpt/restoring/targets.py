"""What a target says about where its new value belongs."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxckpt.leaf_kinds.abstract import ABSTRACT
from jaxckpt.leaf_kinds.on_devices import sharding_of
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf

# Shardings that fit a shape, kept alive: another object must not get their id.
_Fits = dict[tuple[Any, int], Any]


def resolved(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Gives abstract targets the devices that the program means.

    `jax.eval_shape` under `jax.set_mesh` returns shardings over a mesh without devices (an AbstractMesh): they get those of the current
    mesh. A target without a sharding, such as a step counter of that program, lies on all devices of the current mesh, if there is one,
    as the program's own value would.

    Args:
      leaves: the targets.

    Returns:
      The targets, with new `jax.ShapeDtypeStruct` where something changed.

    Raises:
      ValueError: an abstract mesh that is not the current one, or a sharding that does not fit the shape; names the leaf.
    """
    fitting: _Fits = {}
    mesh = _current_mesh()
    return [_resolved(leaf, mesh, fitting) if kind_of(leaf.value) is ABSTRACT else leaf for leaf in leaves]


def _resolved(leaf: Leaf, current: Any, fitting: _Fits) -> Leaf:
    value = _resolve(leaf, current)
    sharding, shape = value.sharding, value.shape
    # Leaves share shardings, and shapes.
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
    """Args: a target; the current mesh, None if there is none."""
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
        # Says no more than that the value is not divided.
        found = None
    else:
        now = f"the current mesh has {_axes(current)}" if current is not None else "no mesh is set"
        raise ValueError(
            f"{leaf.name}: the target's sharding {sharding.spec} is over an abstract mesh of {_axes(mesh)}, which has no devices, and "
            f"{now}. Call restore under jax.set_mesh(mesh), with the mesh that the target was made for, or give the target a sharding "
            "over it."
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
        # JAX does not tell inside of jax.grad and jax.vmap.
        return None
    return None if mesh.empty else mesh


def _axes(mesh: Any) -> str:
    return ", ".join(f"{name}={size}" for name, size in zip(mesh.axis_names, mesh.axis_sizes, strict=True)) or "no axes"
