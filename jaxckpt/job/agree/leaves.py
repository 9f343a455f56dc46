"""What processes compare of their leaves: descriptions, which must agree, and the contents of host leaves, which should."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.plan import Plan, digest_of
from jaxckpt.leaf_kinds.kind import Texts
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf

Lines = list[tuple[str, str]]


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
