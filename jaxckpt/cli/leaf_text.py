"""What is said about a leaf in tables and on pages."""

import functools
import math
import operator
from collections.abc import Mapping

from jaxckpt.cli import shardings
from jaxckpt.cli.folding import Node
from jaxckpt.cli.statistics import Statistics
from jaxckpt.leaf_kinds.described import LeafMetadata


def combined(node: Node, statistics: Mapping[str, Statistics]) -> Statistics | None:
    """Returns the statistics of all leaves that a node stands for; None if there are none."""
    found = [statistics[leaf.name] for leaf in node.leaves if leaf.name in statistics]
    return functools.reduce(operator.add, found) if found else None


def number_text(value: float) -> str:
    """Returns a statistic with a few digits; "-" for NaN, where there is no number."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) or abs(value) >= 10**6 else str(value)


def saved_as(leaf: LeafMetadata) -> str:
    """Returns the kind of a leaf, and how it was divided over devices."""
    if leaf.key_impl is not None:
        return f"PRNG key ({leaf.key_impl})"
    return leaf.kind if leaf.sharding is None else f"{leaf.kind}, {shardings.described(leaf)}"
