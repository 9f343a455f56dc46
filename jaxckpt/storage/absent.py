"""Says what is wrong with the path of a checkpoint at which there is nothing."""

import os
import shlex

from jaxckpt._lib import numbering
from jaxckpt.storage import stores
from jaxckpt.storage.commit import checkpoints
from jaxckpt.storage.commit.choice import committer_of

# An error names at most this many checkpoints.
_SHOWN = 5


def nothing_there(path: str) -> str:
    """Returns the error message for a path at which there is nothing. It suggests the path that the caller may have meant."""
    directory, name = os.path.split(path)
    if not stores.is_directory(directory):
        return "No checkpoint at this path: its directory does not exist"
    leftovers = committer_of(path).leftovers(directory, name)
    if any(os.path.basename(leftover.final) == name and not leftover.live for leftover in leftovers):
        return (
            "No checkpoint at this path: its save or deletion was not finished, because the process ended. The next save removes what is "
            f"left of it, or `jaxckpt clean {shlex.quote(directory)}` does now"
        )
    prefix = numbering.prefix_of(name)
    numbers = checkpoints.list_numbered(os.path.join(directory, prefix or name))
    shown = ", ".join(numbering.name_of(prefix or name, number) for number in numbers[-_SHOWN:])
    held = f"Its directory holds {'..., ' if len(numbers) > _SHOWN else ''}{shown}"
    if prefix is not None and numbers:
        return f"No checkpoint at this path. {held}"
    advice = "save() appends a number ('ckpt-1') and returns the full path; pass that one"
    return f"No checkpoint at this path. {advice}{f'. {held}' if numbers else ''}"
