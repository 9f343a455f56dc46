"""The texts by which processes compare their leaves: descriptions, which must agree, and contents of host leaves, which should agree."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
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
    """Returns the contribution of a process to the meeting of a save.

    Args:
      leaves: the leaves of the values.
      plan: the plan with which the snapshot was taken.
      more: names and descriptions of further things that are stored, such as empty nodes.
      facts: values that the center wants every process to know.
    """
    further = tuple(more)
    hosts = host_contents(_host_leaves(leaves, plan))
    return Contribution(
        _digest(leaves, plan, further),
        lambda: [*descriptions(leaves, plan), *further],
        digest_of(hosts),
        lambda: hosts,
        facts,
    )


def targets(leaves: Sequence[Leaf], plan: Plan, facts: Mapping[str, Any] = MappingProxyType({})) -> Contribution:
    """Returns the contribution of a process to the meeting of a restore. The values of the targets are not compared.

    Args:
      leaves: the targets.
      plan: a plan, for the texts of shardings.
      facts: values that the center wants every process to know.
    """
    return Contribution(_digest(leaves, plan, ()), lambda: descriptions(leaves, plan), facts=facts)


def _digest(leaves: Sequence[Leaf], plan: Plan, more: tuple[tuple[str, str], ...]) -> str:
    """Returns the digest of all descriptions. It depends on the structure alone, so a plan that is kept has it.

    Args:
      leaves: the leaves.
      plan: the plan of their structure.
      more: as for `stored_values`.
    """
    known = {} if plan.kept is None else plan.kept.setdefault("digests", {})
    found: str | None = known.get(more)
    if found is None:
        # The empty nodes are no part of the structure. They rarely change, so one digest is enough.
        known.clear()
        found = known[more] = digest_of([*descriptions(leaves, plan), *more])
    return found


def _host_leaves(leaves: Sequence[Leaf], plan: Plan) -> Sequence[Leaf]:
    """Returns the leaves without those that lie on devices of several processes."""
    if plan.kept is None:
        return leaves
    found = plan.kept.get("hosts")
    if found is None:
        found = plan.kept["hosts"] = [
            position for position, leaf in enumerate(leaves) if not kind_of(leaf.value).is_global(leaf)
        ]
    return [leaves[position] for position in found]


@quiet_gc()
def descriptions(leaves: Sequence[Leaf], plan: Plan) -> Lines:
    """Returns name and description of every leaf. Two processes that have the same leaf return the same text.

    Args:
      leaves: the leaves.
      plan: a plan, for the texts of shardings.
    """
    texts = Texts(plan.text)
    with leaf_errors.Walk(leaves) as walk:
        return [(leaf.name, kind_of(leaf.value).describe(leaf.value, texts)) for leaf in walk]


@quiet_gc()
def host_contents(leaves: Sequence[Leaf]) -> Lines:
    """Returns name and digest of the content of every host leaf, a leaf in the memory of one host.

    Args:
      leaves: the leaves; the others are left out, and so are the states of objects, which may differ.
    """
    with jax.transfer_guard_device_to_host("allow"):
        return [
            (leaf.name, digest)
            for leaf in leaves
            if not leaf.is_state and (digest := kind_of(leaf.value).digest(leaf.value)) is not None
        ]
