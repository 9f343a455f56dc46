"""What a checkpoint remembers of its save besides step and metrics: when, how long, how much, by whom. It stands in ``_JAXCKPT``.

Everything is measured before the commit, because a committed checkpoint is never changed.
"""

import functools
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxckpt._lib.documents import DamagedError, as_bool, as_dict, as_int, as_text

_PACKAGES = ("jaxckpt", "jax", "orbax-checkpoint")


class Account(NamedTuple):
    """What a checkpoint remembers of its save, as the process that did the file access measured it.

    Attributes:
      began: when `save` was called, in seconds since the epoch.
      asynchronous: whether it was written in the background.
      blocked_secs: how many seconds the call kept the program. Of a synchronous save, and of an asynchronous one that was written before
        the call returned, only those until all files were written, right before the commit.
      waited_secs: how many of them it waited for the save before.
      written_secs: seconds from the call until all files were written. The sync of the last ones and the commit come after it.
      bytes: size of all arrays.
      processes: how many processes the job had.
      versions: versions by name: of jaxckpt, JAX, Orbax and Python.
    """

    began: float
    asynchronous: bool
    blocked_secs: float
    waited_secs: float
    written_secs: float
    bytes: int
    processes: int
    versions: Mapping[str, str]


@functools.cache
def versions() -> Mapping[str, str]:
    """Returns the versions of this program's packages, by name. A package that is not installed as one is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # It runs from a directory of sources.
            continue
    return found


def parsed(value: Any) -> Account:
    """Returns an account out of JSON values.

    Args:
      value: what `Account._asdict` returned when the checkpoint was saved. Later versions may have added more.

    Raises:
      DamagedError: it is not such a value.
    """
    found = as_dict(value, "save")
    return Account(
        _number(found, "began"),
        as_bool(found.get("asynchronous"), "save.asynchronous"),
        _number(found, "blocked_secs"),
        _number(found, "waited_secs"),
        _number(found, "written_secs"),
        as_int(found.get("bytes"), "save.bytes"),
        as_int(found.get("processes"), "save.processes", 1),
        {name: as_text(text, "a version") for name, text in as_dict(found.get("versions"), "save.versions").items()},
    )


def _number(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    # The limit is that of times of files: the year 2262.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e10:
        raise DamagedError(f"save.{name} is not a number of seconds")
    return float(value)
