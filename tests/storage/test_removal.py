"""Removing a directory: everything in it, nothing else, with few descriptors."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxckpt.storage.stores import descriptors
from jaxckpt.storage.stores.removal import remove_tree

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def descriptors_free(count: int) -> Iterator[list[int]]:
    """Leaves only this many descriptors to the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with some of everything in it, beside one that has to stay as it is."""
    (tmp_path / "precious" / "below").mkdir(parents=True)
    (tmp_path / "precious" / "below" / "file").write_text("precious")
    folder = tmp_path / "tree"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "empty").mkdir()
    for where in (folder, folder / "a", folder / "a" / "b" / "c"):
        (where / "file").write_text("text")
        (where / "link to a directory").symlink_to(tmp_path / "precious")
        (where / "link to a file").symlink_to(tmp_path / "precious" / "below" / "file")
        (where / "dangling").symlink_to(tmp_path / "nothing")
        os.mkfifo(where / "fifo")
    return folder


def assert_only_precious(directory: Path, *others: str) -> None:
    assert sorted(os.listdir(directory)) == sorted(["precious", *others])
    assert (directory / "precious" / "below" / "file").read_text() == "precious"
    assert os.listdir(directory / "precious") == ["below"]


@pytest.mark.parametrize("how", ["path", "descriptor"])
def test_everything_in_it_goes_and_links_are_not_followed(how: str, tree: Path, tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    if how == "path":
        remove_tree(str(tmp_path), "tree")
    else:
        parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        remove_tree(parent, "tree")
        os.close(parent)
    assert_only_precious(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == open_before
    # The tree is gone already.
    remove_tree(str(tmp_path), "tree")


def test_a_link_in_its_place(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(OSError, match="symbolic link") as caught:
        remove_tree(str(tmp_path), "link")
    assert caught.value.errno == errno.ELOOP
    assert os.path.islink(tmp_path / "link")
    remove_tree(str(tmp_path), "link", unlink_link=True)
    assert not os.path.lexists(tmp_path / "link")
    assert (tree / "a" / "file").read_text() == "text"


def test_a_file_or_a_fifo_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo"):
        with pytest.raises(NotADirectoryError):
            remove_tree(str(tmp_path), name, unlink_link=True)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file"]


def test_what_cannot_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "home" / "work" / "here"
    inside.mkdir(parents=True)
    (inside / "file").write_text("text")
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("", ".", "..", "a/b", "/", "a\0"):
        with pytest.raises(ValueError, match="not the name of an entry"):
            remove_tree(str(tmp_path), name)
    for parent in ("", ".", "relative"):
        with pytest.raises(ValueError, match="absolute"):
            remove_tree(parent, "home")
    for parent, name in ((inside.parent, "here"), (inside.parent.parent, "work"), (tmp_path, "home")):
        with pytest.raises(OSError, match="was not removed") as caught:
            remove_tree(str(parent), name)
        assert caught.value.errno == errno.EBUSY
    assert (inside / "file").read_text() == "text"


def test_only_the_one_that_is_meant(tree: Path, tmp_path: Path) -> None:
    status = os.stat(tree)
    tree.rename(tmp_path / "moved")
    tree.mkdir()
    (tree / "file").write_text("of another user")
    with pytest.raises(OSError, match="Another directory") as caught:
        remove_tree(str(tmp_path), "tree", identity=(status.st_dev, status.st_ino))
    assert caught.value.errno == errno.ESTALE
    assert (tree / "file").read_text() == "of another user"
    remove_tree(str(tmp_path), "moved", identity=(status.st_dev, status.st_ino))
    assert_only_precious(tmp_path, "tree")


@pytest.mark.parametrize("place", ["top", "inside"])
def test_a_directory_that_becomes_a_link_after_it_was_looked_at(
    place: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmdir = os.rmdir

    def swap_then_rmdir(name: str, *, dir_fd: int | None = None) -> None:
        if name == (str(tree) if place == "top" else "a") and not os.path.exists(tmp_path / "moved"):
            swapped = tree if place == "top" else tree / "a"
            swapped.rename(tmp_path / "moved")
            swapped.symlink_to(tmp_path / "precious")
            raise OSError(errno.ENOTEMPTY, "as it was")
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", swap_then_rmdir)
    if place == "top":
        with pytest.raises(OSError, match="link|directory"):
            remove_tree(str(tmp_path), "tree")
        assert_only_precious(tmp_path, "moved", "tree")
    else:
        remove_tree(str(tmp_path), "tree")
        assert_only_precious(tmp_path, "moved")
    assert (tmp_path / "moved" / "file").read_text() == "text"


def test_a_directory_that_is_moved_away_while_it_is_emptied(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``..`` is another directory then, whose entries are not ours."""
    (tmp_path / "precious" / "b").mkdir()
    (tmp_path / "precious" / "b" / "file").write_text("precious")
    unlink = os.unlink

    def move_then_unlink(name: str, *, dir_fd: int | None = None) -> None:
        if (tree / "a" / "b" / "c" / "file").exists() and not (tree / "a" / "file").exists() and name == "file":
            (tree / "a" / "b").rename(tmp_path / "precious" / "moved")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", move_then_unlink)
    with pytest.raises(OSError, match="was moved") as caught:
        remove_tree(str(tmp_path), "tree")
    assert caught.value.errno == errno.ESTALE
    assert (tmp_path / "precious" / "b" / "file").read_text() == "precious"
    assert (tmp_path / "precious" / "below" / "file").read_text() == "precious"


@pytest.mark.slow
def test_a_directory_without_permission(tmp_path: Path) -> None:
    """As a user who is not root, where there is one."""
    for place in ("closed", "closed/listed", "closed/searched"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "file").write_text("text")
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o500)
    # By a descriptor: the parents of pytest's directories let no other user through.
    code = """
        import os, sys
        from jaxckpt.storage.stores.removal import remove_tree

        if os.getuid() == 0:
            os.setuid(65534)
        os.symlink("../outside", "closed/link")
        for place, mode in (("closed/listed", 0o444), ("closed/searched", 0o111), ("closed", 0)):
            os.chmod(place, mode)
        remove_tree(os.open(".", os.O_RDONLY), "closed")
        """
    if os.getuid() == 0:
        for folder in (tmp_path, *tmp_path.rglob("*")):
            os.chown(folder, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["outside"]
    assert outside.stat().st_mode & 0o777 == 0o500


def test_what_cannot_be_removed_is_named_and_the_rest_goes(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == "fifo":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="'fifo' in this directory") as caught:
        remove_tree(str(tmp_path), "tree")
    assert caught.value.filename == str(tree)
    left = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    assert left == ["a", "a/b", "a/b/c", "a/b/c/fifo", "a/fifo", "fifo"]
    assert_only_precious(tmp_path, "tree")


def test_files_that_appear_meanwhile(tree: Path, tmp_path: Path) -> None:
    """A thread of the save that failed may still be writing."""
    stop = threading.Event()

    def write() -> None:
        for number in range(200):
            with contextlib.suppress(OSError):
                (tree / "a" / f"late {number}").write_text("text")
            if stop.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with contextlib.suppress(OSError):
            remove_tree(str(tmp_path), "tree")
    finally:
        stop.set()
        thread.join()
    remove_tree(str(tmp_path), "tree")
    assert_only_precious(tmp_path)


def test_deep_nesting_and_many_files_with_two_descriptors(tmp_path: Path) -> None:
    (tmp_path / "precious" / "below").mkdir(parents=True)
    (tmp_path / "precious" / "below" / "file").write_text("precious")
    (tmp_path / "tree").mkdir()
    for number in range(3000):
        (tmp_path / "tree" / f"{number}").touch()
    here = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.mkfifo("fifo", dir_fd=here)
    os.close(here)
    with descriptors_free(2):
        remove_tree(str(tmp_path), "tree")
    assert_only_precious(tmp_path)


def test_descriptors_that_were_put_aside(tree: Path, tmp_path: Path) -> None:
    spare = descriptors.SpareDescriptors()
    with descriptors_free(0):
        with pytest.raises(OSError, match="Too many open files"):
            descriptors.SpareDescriptors()
        spare.close()
        remove_tree(str(tmp_path), "tree")
    spare.close()
    assert_only_precious(tmp_path)


def test_descriptors_that_are_given_back_a_moment_later(tree: Path, tmp_path: Path) -> None:
    with descriptors_free(0) as taken:

        def give_back() -> None:
            for _ in range(2):
                os.close(taken.pop())

        timer = threading.Timer(0.1, give_back)
        timer.start()
        remove_tree(str(tmp_path), "tree")
        timer.join()
    assert_only_precious(tmp_path)
    (tmp_path / "empty").mkdir()
    with descriptors_free(0):
        remove_tree(str(tmp_path), "empty")
    assert_only_precious(tmp_path)
