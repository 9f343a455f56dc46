"""Targets + a stored checkpoint → new values, on the devices where they belong. Changes no target.

Targets are matched with stored leaves by name (`matching`), all pairs are validated (`validation`), and only then is the first byte of
an array read (`reading`), converted if its target needs that (`conversion`), and put where its target lies (`placement`).
"""

from jaxckpt.restoring.matching import Matched, match
from jaxckpt.restoring.reading import New, load
from jaxckpt.restoring.targets import resolved
from jaxckpt.storage.source import Source

__all__ = ["Matched", "New", "Source", "load", "match", "resolved"]
