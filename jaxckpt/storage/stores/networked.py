"""Whether a local path leads to a disk of this machine, or over a network, by the mounts of the machine."""

import os

from jaxckpt.storage.stores import mount_table

# Of FUSE file systems nearly all are mounted buckets or cluster file systems, so all count ("fuse.*").
_NETWORKED = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
    )
)


def is_networked(path: str, listed: str | None = None) -> bool:
    """Returns whether the files at a path are reached over a network: NFS, CIFS, Lustre, FUSE and the like.

    False where the system does not tell.

    Args:
      path: a local path; what does not exist counts as its nearest parent that does.
      listed: the file that lists the mounts, in the format of /proc/self/mountinfo; None for that one.
    """
    real = os.path.realpath(path)
    best, kind = "", ""
    for mount in mount_table.mounted(listed):
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        # Of several mounts at one place, the last one is seen.
        if inside and len(mount.point) >= len(best):
            best, kind = mount.point, mount.kind
    return kind in _NETWORKED or kind.startswith("fuse.") or kind == "fuse"
