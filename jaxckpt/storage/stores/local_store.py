"""The store of local directories."""

import errno
import os
import re
import shutil
from collections.abc import Collection, Sequence
from typing import Any

from jaxckpt._lib.arguments import refusal
from jaxckpt.storage.stores import conditional, local, removal


class LocalStore:
    """Local files. See `Store` for the methods."""

    is_local = True
    largest_file = None

    def check_address(self, path: str, argument: str) -> None:
        """See `Store`. Refuses addresses with a scheme that has no store, such as ``ftp://``."""
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path):
            raise refusal(
                ValueError,
                f"{argument}={path!r}",
                f"{scheme[1]}:// is not supported; local directories, gs:// and s3:// are",
            )
        if re.match(r"(gs|s3):/", path):
            raise ValueError(
                f"{argument}={path!r} has one slash after the colon: pathlib removes the other one; give a str (or an etils.epath.Path)."
            )

    def absolute(self, path: str) -> str:
        """See `Store`. Resolves ``..`` as the operating system does; see `local.absolute`."""
        return local.absolute(path)

    def spelled(self, path: str) -> str:
        """See `Store`."""
        return local.spelled(path)

    def identity(self, path: str) -> str:
        """See `Store`. Resolves links in the directory, but not the entry itself."""
        return local.identity(path)

    def relative(self, path: str, directory: str) -> str:
        """See `Store`."""
        if "/" not in path:
            return path
        if not os.path.isabs(path) and os.pardir not in path.split("/"):
            return os.path.normpath(path)
        joined = os.path.join(directory, path).rstrip("/") or "/"
        found = os.path.relpath(local.identity(joined), os.path.realpath(directory))
        return path if found.split("/")[0] == os.pardir else found

    def spec(self, directory: str) -> dict[str, Any]:
        """See `Store`."""
        return {"driver": "file", "path": os.path.join(local.absolute(directory), "")}

    def exists(self, path: str) -> bool:
        """See `Store`."""
        return os.path.lexists(path)

    def is_file(self, path: str) -> bool:
        """See `Store`."""
        return os.path.exists(path)

    def is_directory(self, path: str) -> bool:
        """See `Store`."""
        return os.path.isdir(path)

    def names(self, directory: str) -> list[str]:
        """See `Store`."""
        return os.listdir(directory)

    def tree(self, directory: str) -> list[str]:
        """See `Store`."""
        return local.tree(directory)

    def size(self, path: str) -> int | None:
        """See `Store`."""
        return os.path.getsize(path)

    def modified(self, path: str) -> float | None:
        """See `Store`."""
        return os.stat(path).st_mtime

    def read(self, path: str, limit: int | None = None) -> bytes:
        """See `Store`."""
        return local.read(path, limit)

    def read_versioned(self, path: str, limit: int | None = None) -> tuple[bytes | None, bytes]:
        """See `Store`."""
        return conditional.read(path, limit)

    def ranges(self, path: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store`."""
        return local.ranges(path, parts)

    def write(self, path: str, content: bytes) -> None:
        """See `Store`."""
        local.write(path, content)

    def write_if(self, path: str, content: bytes, expected: bytes) -> bytes:
        """See `Store`."""
        return conditional.write(path, content, expected)

    def require_conditions(self, scratch: str, contents: Sequence[bytes]) -> None:
        """See `Store`. Renames and links keep it."""

    def remove(self, path: str) -> None:
        """See `Store`."""
        local.remove(path)

    def remove_tree(self, directory: str, leaving: Collection[str] = ()) -> None:
        """See `Store`. Works through open handles, so that it cannot be led elsewhere; see `removal`."""
        if not leaving:
            removal.remove_tree(*os.path.split(directory))
            return
        try:
            with os.scandir(directory) as entries:
                listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return
        for name, is_directory in listed:
            if name in leaving:
                continue
            if is_directory:
                removal.remove_tree(directory, name)
            else:
                local.remove(os.path.join(directory, name))

    def prune(self, directory: str) -> None:
        """See `Store`."""
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def copy(self, source: str, target: str, leaving: Collection[str] = ()) -> None:
        """See `Store`. Syncs the copies."""
        os.makedirs(target, exist_ok=True)
        for name in local.tree(source):
            if name in leaving:
                continue
            path = os.path.join(target, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copyfile(os.path.join(source, name), path)
        local.sync_tree(target)

    def make_directory(self, path: str) -> None:
        """See `Store`."""
        os.makedirs(path, exist_ok=True)

    def sync_tree(self, directory: str) -> None:
        """See `Store`."""
        local.sync_tree(directory)
