"""A real file system (FUSE) that shows a directory, but renames no directories, and no files either if told so. A program of its own."""

import errno
import os
import sys
from typing import Any

import mfusepy


class WithoutRename(mfusepy.Operations):  # type: ignore[misc]
    """Passes everything on to a directory, except renames and links."""

    use_ns = True

    def __init__(self, root: str, *, files: bool) -> None:
        self.root, self.files = root, files

    def at(self, path: str) -> str:
        return self.root + path

    def access(self, path: str, mode: int) -> None:
        if not os.access(self.at(path), mode):
            raise mfusepy.FuseOSError(errno.EACCES)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self.at(path))
        found = {name: getattr(status, name) for name in ("st_gid", "st_mode", "st_nlink", "st_size", "st_uid")}
        return {**found, **{f"st_{name}": getattr(status, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.at(path))]

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.at(path), flags & ~os.O_APPEND)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self.at(path), length)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: bool, fh: int) -> int:
        os.fsync(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self.at(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_files", "f_frsize", "f_namemax")
        return {name: getattr(status, name) for name in names}

    def rename(self, old: str, new: str) -> None:
        if not self.files or os.path.isdir(self.at(old)):
            raise mfusepy.FuseOSError(errno.ENOTSUP)
        os.rename(self.at(old), self.at(new))


if __name__ == "__main__":
    directory, mount, renames, subtype = sys.argv[1:]
    mfusepy.FUSE(
        WithoutRename(directory, files=renames == "files"), mount, foreground=True, subtype=subtype, fsname="test"
    )
