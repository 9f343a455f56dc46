"""Finds out whether directories can be renamed in one step where a local path is. Mounted buckets cannot do so.

The kernel's list of mounts names the file system. Programs that mount a bucket (FUSE) are known by name; for an unknown one, a rename is
tried, once in each process.
"""

import errno
import functools
import os
import re

from jaxckpt.storage import owner
from jaxckpt.storage.owner import Owner
from jaxckpt.storage.stores import mount_table, removal
from jaxckpt.storage.stores.mount_table import Mount

# They have no rename of directories, or copy one file after the other: Mountpoint for S3, s3fs, gcsfuse (its buckets with a hierarchy
# rename in one step, but cannot be told from others), rclone, goofys, GeeseFS, BlobFuse, ossfs, TigrisFS.
_BUCKETS = re.compile(
    r"mountpoint-s3|s3fs|gcsfuse|rclone|goofys|geesefs|blobfuse2?|ossfs2?|tigrisfs|s3backer|riofs|yas3fs"
)
_REFUSED = (errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EIO)
# Results of trials. A device number alone is not enough: after an unmount, another file system may get the number.
_tried: dict[Mount, bool] = {}


def renames_directories(path: str) -> bool:
    """Whether a directory at `path` can be given its name by one atomic rename.

    On a file system of FUSE that is not known, this tries it beside `path`, if this process may write there.

    Args:
      path: local path, which need not exist.
    """
    there = _nearest(path)
    try:
        device = os.stat(there).st_dev
    except OSError:
        return True
    mount = _mount(device)
    if mount is None or not mount.kind.startswith("fuse"):
        return True
    if _BUCKETS.fullmatch(mount.kind.partition(".")[2] or mount.source):
        return False
    if mount not in _tried:
        found = _try(there)
        if found is None:
            # Nothing can be tried, and nothing will be written. A checkpoint by marker is told from one by rename by looking at it.
            return False
        _tried[mount] = found
    return _tried[mount]


def _nearest(path: str) -> str:
    """Returns the path, or the nearest directory above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _mount(device: int) -> Mount | None:
    """Returns the mounted file system with a device number; None if the system does not tell.

    What has no block device, such as each bucket, gets a free number of major 0, and the next one gets it after an unmount. So that is
    looked up each time.
    """
    return _of_block_device(device) if os.major(device) else _look_up(device)


def _look_up(device: int) -> Mount | None:
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((mount for mount in mount_table.mounted() if mount.device == number), None)


_of_block_device = functools.lru_cache(maxsize=64)(_look_up)


def _try(directory: str) -> bool | None:
    """Renames a directory with a file in it. Returns whether this works; None if nothing can be written there."""
    work, token = Owner.new(token_bytes=4), _Trial()
    work.begin(token)
    scratch = owner.temporary_path(os.path.join(directory, "probe"), work)
    # Names that a sweep knows, which removes them if this process is killed meanwhile.
    old, new = os.path.join(scratch, "checkpoint"), os.path.join(scratch, "deleted")
    try:
        os.makedirs(old)
    except OSError:
        work.end()
        return None
    try:
        with open(os.path.join(old, "file"), "xb"):
            pass
        os.rename(old, new)
        return os.path.exists(os.path.join(new, "file")) and not os.path.lexists(old)
    except OSError as error:
        return False if error.errno in _REFUSED else None
    finally:
        removal.remove_tree(*os.path.split(scratch))
        work.end()


class _Trial:
    """Represents a running trial of a rename."""
