"""Config files: their bytes, as long as it is a regular file of a moderate size, and TOML text into plain values."""

import errno
import os
import re
import stat
from pathlib import Path

from jaxckpt.config.bounds import MAX_BYTES, MAX_DEPTH, TOO_DEEP
from jaxckpt.config.problems import UNUSABLE, Problem, shown
from jaxckpt.errors import ConfigError

# A dotted key with too many parts. Each part is matched as a whole, so the search takes no longer than reading the text.
_TOML_PART = r"""(?:[\w\-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+"""
_LONG_TOML_KEY = re.compile(rf"""(?<![\w\-"'.])(?:{_TOML_PART}\.[ \t]*+){{{MAX_DEPTH}}}""")


def content(path: Path) -> bytes:
    """Returns the bytes of a config file.

    Args:
      path: of the file.

    Raises:
      ConfigError: it is a pipe or a device, which may have no end, or too long.
      OSError: it cannot be read, or is a directory.
    """
    # First by name: opening a device may do something.
    _require_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        _require_regular(path, os.fstat(descriptor).st_mode)
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a config file of at most {MAX_BYTES:,} bytes, got a longer one")
    return found


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise ConfigError(f"{path}: expected a config file, got {kind}")


def parse_toml(text: str, name: str) -> tuple[object, list[Problem]]:
    """Parses TOML.

    Args:
      text: content of the file.
      name: of the file, for messages.

    Returns:
      The mapping, or `UNUSABLE`; and the problems.
    """
    import tomllib

    # tomllib needs time that grows with the square of the parts.
    if long := _LONG_TOML_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        words = f"expected a key of at most {MAX_DEPTH} parts, got {shown(long[0])}"
        return UNUSABLE, [Problem((), words, f"{name}:{line}")]
    try:
        return tomllib.loads(text), []
    except (ValueError, RecursionError) as error:
        reason = TOO_DEEP if isinstance(error, RecursionError) else error
        return UNUSABLE, [Problem((), f"expected valid TOML, got an error: {reason}", name)]
