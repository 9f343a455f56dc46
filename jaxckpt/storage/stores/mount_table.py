"""The file systems that are mounted, as Linux lists them in /proc/self/mountinfo."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_LISTED = "/proc/self/mountinfo"
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mounted file system.

    Attributes:
      number: its number in the list, which the kernel uses again after an unmount.
      device: its device number, such as ``"0:40"``. One without a block device gets a number that the kernel uses again after an
        unmount.
      point: the directory at which it is mounted.
      kind: its type, such as ``"ext4"`` or ``"fuse.rclone"``.
      source: what is mounted, such as ``"remote:bucket"``.
    """

    number: str
    device: str
    point: str
    kind: str
    source: str


def mounted(listed: str | None = None) -> Iterator[Mount]:
    """Yields what is mounted now, in the order of the system; nothing where the system does not tell (not Linux).

    Args:
      listed: the file that lists the mounts, in the format of /proc/self/mountinfo; None for that one. Lines of another format are
        passed over.
    """
    try:
        with open(listed or _LISTED, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                fields, described = before.split(" "), after.split(" ")
                if len(fields) >= 5 and len(described) >= 2:
                    yield Mount(fields[0], fields[2], _plain(fields[4]), described[0], _plain(described[1]))
    except OSError:
        return


def _plain(text: str) -> str:
    """Returns a text without the escapes of the list: spaces are written as ``\\040`` there."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
