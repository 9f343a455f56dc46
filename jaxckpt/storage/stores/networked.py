"""Whether a local path leads to a disk of this machine, or over a network. Linux tells it in /proc/self/mountinfo."""

import os
import re

_MOUNTS = "/proc/self/mountinfo"
# Of FUSE file systems nearly all are mounted buckets or cluster file systems, so all count ("fuse.*").
_NETWORKED = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
    )
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def is_networked(path: str, mounts: str = _MOUNTS) -> bool:
    """Returns whether the files at a path are reached over a network: NFS, CIFS, Lustre, FUSE and the like.

    False where the system does not tell.

    Args:
      path: a local path; what does not exist counts as its nearest parent that does.
      mounts: the file that lists the mounts, in the format of /proc/self/mountinfo.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        try:
            point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
            found = fields[fields.index("-", 6) + 1]
        except (IndexError, ValueError):
            continue
        # Of several mounts at one place, the last one is seen.
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind in _NETWORKED or kind.startswith("fuse.") or kind == "fuse"
