"""What processes compare of their leaves: descriptions, which must agree, and the contents of host leaves, which should."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.plan import Plan, digest_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.kinds import Kind, is_key_dtype, is_weak, kind_of

Lines = list[tuple[str, str]]
_Texts = dict[Any, tuple[Any, str]]  # the sharding and the text, by what the text depends on


def stored_values(
    leaves: Sequence[Leaf], plan: Plan, more: Iterable[tuple[str, str]], facts: Mapping[str, Any]
) -> Contribution:
    """Returns what a process says of values that are going to be stored.

    Args:
      leaves: of the values.
      plan: that the snapshot was taken with.
      more: name and description of what is stored besides.
      facts: what the center tells everyone.
    """
    described = [*descriptions(leaves, plan), *more]
    hosts = host_contents(leaves)
    return Contribution(digest_of(described), lambda: described, digest_of(hosts), lambda: hosts, facts)


def targets(leaves: Sequence[Leaf], plan: Plan) -> Contribution:
    """Returns what a process says of the targets of a restore, whose values do not count.

    Args:
      leaves: the targets.
      plan: who owns what.
    """
    described = descriptions(leaves, plan)
    return Contribution(digest_of(described), lambda: described)


@quiet_gc()
def descriptions(leaves: Sequence[Leaf], plan: Plan) -> Lines:
    """Returns name and description of every leaf, the same text on every process that has the same leaf."""
    texts: _Texts = {}
    with leaf_errors.Walk(leaves) as walk:
        return [(leaf.name, _describe(leaf.value, plan, texts)) for leaf in walk]


def _describe(value: Any, plan: Plan, texts: _Texts) -> str:
    kind = kind_of(value)
    if kind in (Kind.JAX, Kind.ABSTRACT):
        # Thousands of leaves share a few texts, which take longer to make than to look up. Shardings are slow to hash; that of a PRNG
        # key is made anew each time it is asked for, and has to be kept: another object must not get its id.
        sharding = getattr(value, "sharding", None)
        key = kind, value.shape, value.dtype, is_weak(value), id(sharding)
        found = texts.get(key)
        if found is None:
            found = texts[key] = sharding, _describe_array(kind, value, plan)
        return found[1]
    if kind is Kind.NUMPY:
        return f"{kind.value} of shape {value.shape}, dtype {value.dtype}"
    return str(kind.value)


def _describe_array(kind: Kind, value: Any, plan: Plan) -> str:
    sharding = getattr(value, "sharding", None)
    where = ""  # A host leaf: each process has its own.
    if sharding is not None and not sharding.is_fully_addressable:
        where = f", on {plan.text(sharding, tuple(value.shape))}"
    # Programs that differ in weak types compute with different dtypes.
    weak = " (weak)" if is_weak(value) else ""
    return f"{kind.value} of shape {tuple(value.shape)}, dtype {value.dtype}{weak}{where}"


@quiet_gc()
def host_contents(leaves: Sequence[Leaf]) -> Lines:
    """Returns name and digest of the content of every leaf that lives in the memory of one host."""
    with jax.transfer_guard_device_to_host("allow"):
        return [(leaf.name, digest) for leaf in leaves if (digest := _digest(leaf.value)) is not None]


def _digest(value: Any) -> str | None:
    kind = kind_of(value)
    if kind is Kind.JAX:
        if not value.is_fully_addressable or value.is_deleted():
            return None
        if is_key_dtype(value.dtype):
            value = jax.random.key_data(value)
        return _checksum(np.asarray(value))
    if kind in (Kind.NUMPY, Kind.NUMPY_SCALAR):
        array = np.asarray(value)
        return None if array.dtype.hasobject else _checksum(array)
    if kind is Kind.BYTES:
        return _checksum(np.frombuffer(value, np.uint8))
    if kind in (Kind.STR, Kind.INT, Kind.BOOL, Kind.FLOAT, Kind.COMPLEX):
        return repr(value) if len(repr(value)) < 64 else _checksum(np.frombuffer(repr(value).encode(), np.uint8))
    return None


def _checksum(array: np.ndarray) -> str:
    import google_crc32c

    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if math.prod(array.shape) else b""
    return f"{array.shape} {google_crc32c.value(bytes(flat) if array.nbytes < 4096 else flat):08x}"
