"""Programs with models of Flax NNX."""

from typing import Any

import jax
import numpy as np
from mp_programs import options

import jaxckpt


def nnx_values(directory: str, io: int | None) -> list[str]:
    """Saves and restores NNX Variables by their raw values, nested; then restores one Variable under two names.

    Returns:
      What is raised where the two differ in what one process holds.
    """
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    class Scaled(nnx.Param):
        def get_value(self, **kwargs: Any) -> Any:
            return super().get_value(**kwargs).astype(jnp.float32) * 3

    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
    shape = (jax.device_count() * 2, 3)

    def filled(value: float, last: float) -> nnx.Dict:
        """A module, the last rows of whose array have another value."""
        array = np.full(shape, value, jnp.bfloat16)
        array[-1] = last
        spread = jax.make_array_from_callback(shape, sharding, lambda index: array[index])
        return nnx.Dict(w=Scaled(spread, eager_sharding=False), n=nnx.Variable(np.full(2, value)))

    def local(module: nnx.Dict) -> list[float]:
        raw = module.w.get_raw_value()
        assert raw.dtype == jnp.bfloat16
        return sorted({float(x) for shard in raw.addressable_shards for x in np.ravel(np.asarray(shard.data))})

    saved = jaxckpt.Checkpoint(part=jaxckpt.Checkpoint(a=filled(1, 1), s=nnx.state(filled(2, 2))))
    path = saved.save(directory + "/nested", options(io))
    module, state = filled(5, 5), nnx.state(filled(6, 6))
    part = jaxckpt.Checkpoint(a=module, s=state)
    jaxckpt.Checkpoint(part=part).restore(path, options(io)).assert_consumed()
    assert local(module) == [1]
    assert local(part.s) == [2]
    assert local(state) == [6]
    assert float(module.n.get_value()[0]) == 1

    outcomes = []
    for name, other in (("same", 1), ("differ", 2)):
        both = jaxckpt.Checkpoint(a=filled(1, 1), b=nnx.state(filled(1, other)))
        path = both.save(f"{directory}/{name}", options(io))
        module = filled(5, 5)
        try:
            jaxckpt.Checkpoint(a=module, b=nnx.state(module)).restore(path, options(io)).assert_consumed()
        except (ValueError, jaxckpt.ProcessError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
            assert local(module) == [5]
        else:
            outcomes.append("")
            assert local(module) == [1]
    return outcomes
