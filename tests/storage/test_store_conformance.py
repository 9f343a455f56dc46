"""What every store does, whatever keeps the files: the same tests for disks and for buckets. A store is added in rooms.py."""

import threading
import time
from collections.abc import Callable

import pytest

from jaxckpt.storage import stores
from jaxckpt.storage.stores import ABSENT, ChangedError, Store

ODD_NAMES = ("a b", "ünï ✓", "100%25", "a+b&c=d?e#f", "'quoted\"", ".hidden", "-", "~", "0", "x" * 200, "a*[b]")


@pytest.fixture
def store(room: str) -> Store:
    """The store of the directory."""
    return stores.store_of(room)


def write(store: Store, path: str, content: bytes) -> None:
    """Writes a file, with the directories above it."""
    store.make_directory(path.rpartition("/")[0])
    store.write(path, content)


def test_where_nothing_is(store: Store, room: str) -> None:
    path = f"{room}/nothing"
    assert not store.exists(path)
    assert not store.is_file(path)
    assert not store.is_directory(path)
    assert store.tree(path) == []
    assert store.read_versioned(path) == (None, ABSENT)
    for call in (lambda: store.read(path), lambda: store.ranges(path, [(0, 3)]), lambda: store.names(path)):
        with pytest.raises(FileNotFoundError):
            call()
    store.remove(path)
    store.remove_tree(path)
    store.remove_tree(path, leaving=("file",))
    store.prune(path)


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20])
def test_what_was_written_is_read(store: Store, room: str, size: int) -> None:
    path, content = f"{room}/file", bytes(number % 251 for number in range(size))
    store.write(path, b"something longer than nothing")
    store.write(path, content)
    assert store.read(path) == content
    assert store.read(path, size) == content
    assert store.read_versioned(path, size)[0] == content
    assert store.size(path) in (None, size)
    modified = store.modified(path)
    assert modified is None or abs(time.time() - modified) < 3600
    assert store.is_file(path)
    assert store.exists(path)
    assert not store.is_directory(path)
    store.remove(path)
    assert not store.exists(path)


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 20], ids=["empty", "short", "long"])
def test_parts_end_with_the_file(store: Store, room: str, content: bytes) -> None:
    path, size = f"{room}/file", len(content)
    store.write(path, content)
    parts = [(0, 2), (1, 1), (0, size), (0, size + 1), (1, size + 50), (size, 5), (size + 7, 5), (max(0, size - 1), 9)]
    assert store.ranges(path, parts) == [content[start : start + length] for start, length in parts]
    ends = [(-1, 1), (-3, 3), (-4096, 4096), (-(1 << 20), 1 << 20)]
    assert store.ranges(path, ends) == [content[max(0, size + start) :] for start, _ in ends]
    assert store.ranges(path, []) == []


def test_odd_names_are_listed(store: Store, room: str) -> None:
    for name in ODD_NAMES:
        write(store, f"{room}/{name}", name.encode())
        write(store, f"{room}/folder {name}/{name}/{name}", b"inside")
    assert sorted(store.names(room)) == sorted([*ODD_NAMES, *(f"folder {name}" for name in ODD_NAMES)])
    assert store.tree(room) == sorted([*ODD_NAMES, *(f"folder {name}/{name}/{name}" for name in ODD_NAMES)])
    for name in ODD_NAMES:
        assert store.read(f"{room}/{name}") == name.encode()
        assert store.names(f"{room}/folder {name}/{name}") == [name]
        store.remove(f"{room}/{name}")
    assert sorted(store.names(room)) == sorted(f"folder {name}" for name in ODD_NAMES)


def test_a_directory_is_no_other_of_which_its_name_is_a_part(store: Store, room: str) -> None:
    for name in ("a/1", "a-b", "a.b/2", "a0/3", "ab", "a!"):
        write(store, f"{room}/{name}", b"")
    assert store.is_directory(f"{room}/a")
    assert store.names(f"{room}/a") == ["1"]
    assert store.tree(f"{room}/a") == ["1"]
    assert not store.exists(f"{room}/a/") or store.is_directory(f"{room}/a/")
    store.remove_tree(f"{room}/a")
    assert not store.exists(f"{room}/a")
    assert store.tree(room) == ["a!", "a-b", "a.b/2", "a0/3", "ab"]


def test_removing_all_but_some(store: Store, room: str) -> None:
    for name in ("note", "note2", "d/note", "d/e/f"):
        write(store, f"{room}/c/{name}", name.encode())
    store.remove_tree(f"{room}/c", leaving=("note",))
    assert store.tree(f"{room}/c") == ["note"]
    store.prune(f"{room}/c")
    assert store.read(f"{room}/c/note") == b"note"
    store.remove(f"{room}/c/note")
    store.prune(f"{room}/c")
    assert not store.exists(f"{room}/c")


def test_copying(store: Store, room: str) -> None:
    names = [f"d/{number}" for number in range(9)] + ["note", "empty"]
    for name in names:
        write(store, f"{room}/one/{name}", b"" if name == "empty" else name.encode() * 100)
    store.copy(f"{room}/one", f"{room}/two", leaving=("note", "d/3"))
    assert store.tree(f"{room}/two") == sorted(set(names) - {"note", "d/3"})
    assert all(
        store.read(f"{room}/two/{name}") == store.read(f"{room}/one/{name}") for name in store.tree(f"{room}/two")
    )
    store.sync_tree(f"{room}/two")


class TestConditionalWrites:
    def test_only_over_the_version_that_was_read(self, store: Store, room: str) -> None:
        path = f"{room}/file"
        first = store.write_if(path, b"1", ABSENT)
        assert store.read_versioned(path) == (b"1", first)
        with pytest.raises(ChangedError):
            store.write_if(path, b"not absent", ABSENT)
        second = store.write_if(path, b"2", first)
        assert second not in (first, ABSENT)
        with pytest.raises(ChangedError):
            store.write_if(path, b"stale", first)
        assert store.read_versioned(path) == (b"2", second)
        store.write(path, b"3")
        with pytest.raises(ChangedError):
            store.write_if(path, b"stale", second)
        assert store.read(path) == b"3"
        store.remove(path)
        with pytest.raises(ChangedError):
            store.write_if(path, b"gone", second)
        assert not store.exists(path)
        store.write_if(path, b"4", ABSENT)
        assert store.tree(room) == ["file"]
        assert store.names(room) == ["file"]

    @pytest.mark.parametrize("there", [False, True])
    def test_of_writers_at_the_same_time_one_wins(self, store: Store, room: str, there: bool) -> None:
        path = f"{room}/file"
        for turn in range(4):
            if there:
                store.write(path, b"old %d" % turn)
            else:
                store.remove(path)
            _, version = store.read_versioned(path)
            contents = [b"%d of writer %d" % (turn, number) for number in range(6)]
            won: list[bytes] = []
            lost: list[bytes] = []

            def attempt(
                content: bytes, version: bytes = version, won: list[bytes] = won, lost: list[bytes] = lost
            ) -> None:
                try:
                    store.write_if(path, content, version)
                except ChangedError:
                    lost.append(content)
                else:
                    won.append(content)

            in_threads([lambda content=content: attempt(content) for content in contents])  # type: ignore[misc]
            assert len(won) == 1
            assert len(lost) == len(contents) - 1
            assert store.read(path) == won[0]
        assert store.names(room) == ["file"]

    def test_no_change_is_lost(self, store: Store, room: str) -> None:
        path, writers, each = f"{room}/counter", 4, 6

        def count() -> None:
            for _ in range(each):
                while True:
                    content, version = store.read_versioned(path)
                    try:
                        store.write_if(path, b"%d" % (int(content or b"0") + 1), version)
                        break
                    except ChangedError:
                        continue

        in_threads([count] * writers)
        assert int(store.read(path)) == writers * each

    def test_a_reader_sees_the_old_or_the_new(self, store: Store, room: str) -> None:
        path = f"{room}/file"
        contents = [bytes([number]) * 20_000 for number in range(12)]
        version = store.write_if(path, contents[0], ABSENT)
        seen: list[bytes] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.append(store.read(path))

        def change(version: bytes = version) -> None:
            try:
                for content in contents[1:]:
                    version = store.write_if(path, content, version)
            finally:
                done.set()

        in_threads([read, change])
        assert set(seen) <= set(contents)
        assert store.read(path) == contents[-1]


def in_threads(calls: list[Callable[[], None]]) -> None:
    """Runs calls at the same time, and raises what one of them raised."""
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        barrier.wait(60)
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_names_relative_to_a_directory(store: Store, room: str) -> None:
    room = store.absolute(room)
    for path in ("ckpt-1", f"{room}/ckpt-1", "./ckpt-1", "below/../ckpt-1"):
        assert store.relative(path, room) == "ckpt-1"
    assert store.relative(f"{room}/below/ckpt-1", room) == "below/ckpt-1"
    elsewhere = f"{room.rpartition('/')[0]}/elsewhere/ckpt-1"
    assert store.relative(elsewhere, room) == elsewhere


def test_one_spelling(store: Store, room: str) -> None:
    room = store.absolute(room)
    for path in (f"{room}/c", f"{room}//c", f"{room}/c/"):
        assert store.absolute(path) == f"{room}/c"
    assert store.identity(f"{room}//c") == store.identity(f"{room}/c")
    assert store.spelled(f"{room}/c") == f"{room}/c"
    store.check_address(f"{room}/c", "path")


def test_tensorstore_finds_the_same_files(store: Store, room: str) -> None:
    import tensorstore as ts

    files = ts.KvStore.open(store.spec(room)).result()
    write(store, f"{room}/d/one", b"1")
    assert files.read("d/one").result().value == b"1"
    files.write("d/two", b"2").result()
    assert store.read(f"{room}/d/two") == b"2"
    assert store.tree(room) == ["d/one", "d/two"]
