"""The states that are saved: made quickly, always the same, and incompressible like real weights.

| name | leaves | bytes | what it is like |
|---|---|---|---|
| `L` | 438 | 1.18 GB | a GPT-2-like model with both Adam moments, float32 |
| `S` | 5,000 | 160 kB | many leaves of 8 floats: the cost of a leaf |
| `M` | 610 | 142 MB | what a training program holds: bfloat16 weights, float32 master copy and moments, numpy, scalars, text, a PRNG key |
| `tiny-l`, `tiny-s`, `tiny-m` | few | few kB | the same shapes of trees, for tests |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = dict[str, Any]
_POOL_BYTES = 64 << 20


class _Source:
    """Random float32 arrays, cut from a pool: drawing 300 million numbers would take longer than saving them."""

    def __init__(self, seed: int, pool_bytes: int = _POOL_BYTES) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = (self._random.random(pool_bytes // 4, dtype=np.float32) - np.float32(0.5)) * np.float32(0.1)

    def __call__(self, *shape: int) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64))
        out = np.empty(size, np.float32)
        done = 0
        while done < size:
            start = int(self._random.integers(0, self._pool.size // 2))
            count = min(size - done, self._pool.size - start)
            out[done : done + count] = self._pool[start : start + count]
            done += count
        return out.reshape(shape)


def _gpt2(source: Callable[..., np.ndarray], *, layers: int, width: int, vocabulary: int, context: int) -> State:
    """Returns parameters of a GPT-2-like model: twelve leaves a layer, and two embeddings."""

    def block() -> State:
        return {
            "ln_1": {"scale": source(width), "bias": source(width)},
            "attn": {
                "c_attn": {"kernel": source(width, 3 * width), "bias": source(3 * width)},
                "c_proj": {"kernel": source(width, width), "bias": source(width)},
            },
            "ln_2": {"scale": source(width), "bias": source(width)},
            "mlp": {
                "c_fc": {"kernel": source(width, 4 * width), "bias": source(4 * width)},
                "c_proj": {"kernel": source(4 * width, width), "bias": source(width)},
            },
        }

    return {
        "wte": {"embedding": source(vocabulary, width)},
        "wpe": {"embedding": source(context, width)},
        "h": [block() for _ in range(layers)],
    }


def _adam(layers: int, width: int, vocabulary: int, context: int) -> State:
    source = _Source(0, min(_POOL_BYTES, 4 * vocabulary * width * 4))
    trees = [_gpt2(source, layers=layers, width=width, vocabulary=vocabulary, context=context) for _ in range(3)]
    return {"params": trees[0], "opt_state": {"mu": trees[1], "nu": trees[2]}}


def _many(count: int) -> State:
    source = _Source(1, 1 << 20)
    return {"leaves": {f"leaf_{number:04d}": source(8) for number in range(count)}}


def _mixed(layers: int, width: int) -> State:
    """Returns a state with a leaf of every kind that training programs hold."""
    source = _Source(2, 8 << 20)
    master = _gpt2(source, layers=layers, width=width, vocabulary=8 * width, context=2 * width)
    return {
        "params": jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16), master),
        "opt_state": {
            "master": master,
            "mu": jax.tree.map(lambda array: array * 0.5, master),
            "nu": jax.tree.map(np.square, master),
            "count": jnp.int32(7),
        },
        "batch_stats": [{"mean": source(width), "count": jnp.int32(number)} for number in range(10)],
    }


def _host_side(width: int) -> State:
    return {
        "rng": jax.random.key(3),
        "shuffle": np.random.default_rng(4).permutation(16 * width),
        "step": 1234,
        "learning_rate": 0.25,
        "run": "mixed",
    }


def _on_device(state: State) -> State:
    """Returns the state as jax.Arrays that own their memory, as the results of a computation do."""
    arrays: State = jax.tree.map(lambda array: jnp.array(array, copy=True), state)
    jax.block_until_ready(arrays)
    return arrays


_MAKERS: dict[str, Callable[[], State]] = {
    "L": lambda: _on_device(_adam(layers=12, width=768, vocabulary=16_384, context=1_024)),
    "S": lambda: _on_device(_many(5_000)),
    "M": lambda: {**_on_device(_mixed(layers=12, width=256)), **_host_side(256)},
    "tiny-l": lambda: _on_device(_adam(layers=1, width=8, vocabulary=16, context=4)),
    "tiny-s": lambda: _on_device(_many(20)),
    "tiny-m": lambda: {**_on_device(_mixed(layers=1, width=8)), **_host_side(8)},
}
NAMES = tuple(_MAKERS)


def make(name: str) -> State:
    """Returns a state: nested dicts and lists, the arrays as jax.Arrays on the default device.

    Args:
      name: one of `NAMES`.

    Raises:
      ValueError: there is no such state.
    """
    if name not in _MAKERS:
        raise ValueError(f"There is no state {name!r}; there are {', '.join(NAMES)}.")
    return _MAKERS[name]()


def leaves(count: int, size: int) -> State:
    """Returns `count` jax.Arrays of `size` float32 each."""
    source = _Source(5, max(1 << 16, 8 * size))
    return _on_device({"leaves": {f"leaf_{number:05d}": source(size) for number in range(count)}})


def targets(state: State) -> State:
    """Returns what to restore into: an abstract array for every jax.Array, everything else as it is."""

    def target(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    made: State = jax.tree.map(target, state)
    return made


def plain(leaf: Any) -> np.ndarray:
    """Returns a leaf as an array of numbers: the data of a PRNG key, the bytes of a text, anything else as it is."""
    if isinstance(leaf, str):
        return np.frombuffer(leaf.encode(), np.uint8)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def arrays_only(state: State) -> dict[str, np.ndarray]:
    """Returns the leaves of a state as arrays by dotted name, for libraries that take a flat dict of arrays."""
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): plain(leaf) for path, leaf in flat}


def nbytes(state: State) -> int:
    """Returns the bytes of all arrays."""
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))


def count(state: State) -> int:
    """Returns the number of leaves."""
    return len(jax.tree.leaves(state))


class Facts(NamedTuple):
    """Size of a state."""

    leaves: int
    nbytes: int


def facts(name: str) -> Facts:
    """Returns the size of a state, without keeping it."""
    state = make(name)
    return Facts(count(state), nbytes(state))
