"""Turns a checkpoint that can be read into a checkpoint of jaxckpt, or a safetensors file, leaf by leaf.

`selection` chooses leaves and names, `leaves` reads and casts them, `convert` writes them.
"""

from jaxckpt.converting.convert import Report, convert
from jaxckpt.converting.selection import Choice

__all__ = ["Choice", "Report", "convert"]
