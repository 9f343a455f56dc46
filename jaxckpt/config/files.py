"""Reads the bytes of a config file, which must be a regular file of moderate size; parses TOML text into plain values."""

import errno
import os
import re
import stat
from pathlib import Path

from jaxckpt.config.bounds import MAX_BYTES, MAX_DEPTH, TOO_DEEP
from jaxckpt.config.problems import UNUSABLE, Problem, shown
from jaxckpt.errors import ConfigError

# Matches a dotted key with too many parts. Each part is matched as a whole, so the search is as fast as reading the text.
_TOML_PART = r"""(?:[\w\-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+"""
_LONG_TOML_KEY = re.compile(rf"""(?<![\w\-"'.])(?:{_TOML_PART}\.[ \t]*+){{{MAX_DEPTH}}}""")


def content(path: Path) -> bytes:
    """Returns the bytes of a config file.

    Args:
      path: path of the file.

    Raises:
      ConfigError: the file is too long, or is a pipe or a device, whose content may never end.
      OSError: the file cannot be read, or is a directory.
    """
    # Checked by name first, because opening a device may have effects.
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
      name: name of the file, for messages.

    Returns:
      The mapping, or `UNUSABLE` if the text is not valid; and the problems.
    """
    import tomllib

    # tomllib's time grows with the square of the number of parts.
    if long := _LONG_TOML_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        words = f"expected a key of at most {MAX_DEPTH} parts, got {shown(long[0])}"
        return UNUSABLE, [Problem((), words, f"{name}:{line}")]
    try:
        return tomllib.loads(text), []
    except (ValueError, RecursionError) as error:
        reason = TOO_DEEP if isinstance(error, RecursionError) else error
        return UNUSABLE, [Problem((), f"expected valid TOML, got an error: {reason}", name)]
