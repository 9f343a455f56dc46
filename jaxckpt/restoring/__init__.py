"""Turns targets and a stored checkpoint into new values, on the devices where they belong. The targets are not changed.

`adapting` gives targets the names that they have in the checkpoint. `matching` matches targets with stored leaves by name. `reading`
validates all pairs (it asks the kind of each target, see `jaxckpt.leaf_kinds`) before it reads the first byte of an array. `placement`
reads the arrays, converts them if their targets need that, and puts them on the devices of their targets. Both look once at pairs that
are alike, which `alike` puts together.
"""

from jaxckpt.restoring.matching import Matched, match
from jaxckpt.restoring.reading import GROUP_BYTES, New, Validated, load, validate
from jaxckpt.restoring.targets import resolved
from jaxckpt.storage.source import Source

__all__ = ["GROUP_BYTES", "Matched", "New", "Source", "Validated", "load", "match", "resolved", "validate"]
