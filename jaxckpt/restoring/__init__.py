"""Targets + a stored checkpoint → new values, on the devices where they belong. Changes no target.

Targets are matched with stored leaves by name (`matching`). All pairs are validated (`reading`, which asks the kind of each target, see
`jaxckpt.leaf_kinds`), and only then is the first byte of an array read, converted if its target needs that, and put where its target lies
(`placement`).
"""

from jaxckpt.restoring.matching import Matched, match
from jaxckpt.restoring.reading import New, load
from jaxckpt.restoring.targets import resolved
from jaxckpt.storage.source import Source

__all__ = ["Matched", "New", "Source", "load", "match", "resolved"]
