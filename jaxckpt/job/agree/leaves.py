"""What processes compare of their leaves: descriptions, which must agree, and the contents of host leaves, which should."""

from collections.abc import Sequence

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.plan import Plan
from jaxckpt.leaf_kinds.kind import Texts
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf

Lines = list[tuple[str, str]]


@quiet_gc()
def descriptions(leaves: Sequence[Leaf], plan: Plan) -> Lines:
    """Returns name and description of every leaf, the same text on every process that has the same leaf."""
    texts = Texts(plan.text)
    with leaf_errors.Walk(leaves) as walk:
        return [(leaf.name, kind_of(leaf.value).describe(leaf.value, texts)) for leaf in walk]


@quiet_gc()
def host_contents(leaves: Sequence[Leaf]) -> Lines:
    """Returns name and digest of the content of every leaf that lives in the memory of one host."""
    with jax.transfer_guard_device_to_host("allow"):
        return [
            (leaf.name, digest) for leaf in leaves if (digest := kind_of(leaf.value).digest(leaf.value)) is not None
        ]
