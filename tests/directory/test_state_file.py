"""The file `checkpoint`: its text, its replacement, concurrent writers, and the functions that read it."""

import contextlib
import errno
import fcntl
import functools
import os
import random
import resource
import shutil
import signal
import string
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from examples import examples
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxckpt
from jaxckpt import storage
from jaxckpt.directory import lock, on_disk, registration, state_file
from jaxckpt.directory.state_file import Records, UnreadableStateError
from jaxckpt.directory.state_file.text import from_text, to_text

# Whatever a Linux file system accepts as a name: bytes without "/" and "\0".
names = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and b"/" not in name).map(os.fsdecode)
# What a protobuf string can hold of them.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)
times = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def records(draw: st.DrawFn, names: st.SearchStrategy[str] = names) -> Records:
    entries = draw(st.dictionaries(names, times, min_size=1, max_size=5))
    borders = draw(st.dictionaries(names | st.just(""), st.floats(0, 1e12), max_size=2))
    # A border for every name says more than a lower one for a single name.
    if "" in borders:
        borders = {name: at for name, at in borders.items() if not name or at > borders[""]}
    return Records(entries, draw(st.sets(names, max_size=3)), draw(times.filter(bool) | st.just(0.0)), borders=borders)


def make_checkpoint(path: Path) -> str:
    """Makes what `is_checkpoint` takes for a committed Orbax checkpoint."""
    path.mkdir(parents=True)
    (path / "_METADATA").write_text('{"tree_metadata": {}}')
    return str(path)


def register(path: str | Path) -> None:
    registration.register(storage.CheckpointPath.of(os.path.abspath(path)))


def run_python(code: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def temporaries(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if "jaxckpt-tmp" in name]


@functools.cache
def message_class() -> type:
    """TensorFlow's CheckpointState, built from its definition."""
    file = descriptor_pb2.FileDescriptorProto(name="checkpoint_state.proto", package="tensorflow", syntax="proto3")
    message = file.message_type.add(name="CheckpointState")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, (name, repeated, kind) in enumerate(
        [
            ("model_checkpoint_path", False, kinds.TYPE_STRING),
            ("all_model_checkpoint_paths", True, kinds.TYPE_STRING),
            ("all_model_checkpoint_timestamps", True, kinds.TYPE_DOUBLE),
            ("last_preserved_timestamp", False, kinds.TYPE_DOUBLE),
        ],
        start=1,
    ):
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type = message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.CheckpointState"))
    return found


class TestText:
    @given(records())
    def test_round_trip(self, written: Records) -> None:
        read = from_text(to_text(written))
        assert read == written
        assert list(read.entries) == list(written.entries)
        assert to_text(written).isascii()

    @given(records(texts))
    @settings(max_examples=examples(50))
    def test_protobuf_reads_what_we_write_and_we_read_what_it_writes(self, written: Records) -> None:
        message = text_format.Parse(to_text(written), message_class()())
        assert message.model_checkpoint_path == list(written.entries)[-1]
        assert list(message.all_model_checkpoint_paths) == list(written.entries)
        assert list(message.all_model_checkpoint_timestamps) == list(written.entries.values())
        assert message.last_preserved_timestamp == written.last_preserved
        for form in (
            {"as_utf8": True},
            {"as_utf8": False},
            {"as_one_line": True},
            {"use_short_repeated_primitives": True},
        ):
            read = from_text(text_format.MessageToString(message, **form))
            assert read.entries == written.entries
            assert read.last_preserved == written.last_preserved

    def test_the_text_is_tensorflows(self) -> None:
        text = to_text(Records({"ckpt-1": 1700000000.25, "ckpt-3": 1700000001.0}, {"ckpt-0"}, 1699999999.5))
        assert text == (
            'model_checkpoint_path: "ckpt-3"\n'
            'all_model_checkpoint_paths: "ckpt-1"\n'
            'all_model_checkpoint_paths: "ckpt-3"\n'
            "all_model_checkpoint_timestamps: 1700000000.25\n"
            "all_model_checkpoint_timestamps: 1700000001.0\n"
            "last_preserved_timestamp: 1699999999.5\n"
            '# kept for ever: "ckpt-0"\n'
        )
        assert to_text(Records({'é"\\\n\x01': 0.0})).splitlines()[0] == r'model_checkpoint_path: "\303\251\"\\\n\001"'

    @pytest.mark.parametrize(
        ("text", "entries"),
        [
            ("model_checkpoint_path: 'it\\'s'", {"it's": 0.0}),
            ('model_checkpoint_path: "a" "b"\n\'c\'', {"abc": 0.0}),
            (r'model_checkpoint_path: "\xe9\u00e9\U0001f600\0601"', {os.fsdecode(b"\xe9") + "é😀01": 0.0}),
            ('model_checkpoint_path: "é"', {"é": 0.0}),
            ('model_checkpoint_path:"c"all_model_checkpoint_paths:["a",\'b\' , "c"];', {"a": 0.0, "b": 0.0, "c": 0.0}),
            ('all_model_checkpoint_paths: [] model_checkpoint_path: "a",', {"a": 0.0}),
            ('# a "comment"\nmodel_checkpoint_path: # another\n "#no comment"', {"#no comment": 0.0}),
            (
                'model_checkpoint_path: "a" all_model_checkpoint_paths: "b" all_model_checkpoint_paths: "a" '
                "all_model_checkpoint_timestamps: [1e3, 2.5f] last_preserved_timestamp: 7",
                {"b": 1000.0, "a": 2.5},
            ),
            # The latest is last, whatever the order of the list; without timestamps they count as preserved, as in
            # TensorFlow.
            (
                'model_checkpoint_path: "a" all_model_checkpoint_paths: ["a", "b"] last_preserved_timestamp: 7',
                {"b": 7.0, "a": 7.0},
            ),
        ],
    )
    def test_other_styles_are_read(self, text: str, entries: dict[str, float]) -> None:
        read = from_text(text)
        assert list(read.entries.items()) == list(entries.items())

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "garbage",
            "\0" * 64,
            "# only a comment",
            'model_checkpoint_path: ""',
            'model_checkpoint_path: "a\\0b"',
            'model_checkpoint_path: "a',
            'model_checkpoint_path: "a" b',
            'model_checkpoint_path: "a" }',
            "model_checkpoint_path: 3",
            'model_checkpoint_path "a"',
            r'model_checkpoint_path: "\q"',
            r'model_checkpoint_path: "\U00ffffff"',
            'all_model_checkpoint_paths: "a"',
            'model_checkpoint_path: "a" all_model_checkpoint_paths: ["a"',
            'model_checkpoint_path: "a" last_preserved_timestamp: "1"',
            'model_checkpoint_path: "a" last_preserved_timestamp: 1e999',
            'model_checkpoint_path: "a" last_preserved_timestamp: 1.2.3',
            'model_checkpoint_path: "a" last_preserved_timestamp: nan',
            'model_checkpoint_path: "a" unknown: 1',
        ],
    )
    def test_garbage_is_refused(self, text: str) -> None:
        with pytest.raises(UnreadableStateError):
            from_text(text)

    @given(st.text(alphabet=st.sampled_from("model_checkpoint_path:\"[],; \\#\n1.e-'") | st.characters()))
    def test_no_text_breaks_the_reader(self, text: str) -> None:
        with contextlib.suppress(UnreadableStateError):
            from_text(text)

    def test_comments_do_not_make_the_reader_slow(self) -> None:
        text = "# # # " * 20000 + "\n" + "#\n" * 20000 + "model_checkpoint_path: 1"
        with pytest.raises(UnreadableStateError):
            from_text(text)

    def test_a_truncated_file_never_names_what_was_not_there(self) -> None:
        written = Records({"ckpt-100": 1700000000.25, "ckpt-200": 1700000001.0}, {"ckpt-50"}, 1699999999.5)
        text = to_text(written)
        for end in range(len(text)):
            try:
                read = from_text(text[:end])
            except UnreadableStateError:
                continue
            assert set(read.entries) <= set(written.entries)
            assert read.latest == "ckpt-200"
            assert read.kept <= written.kept


class TestWriteState:
    def test_mode_bits_are_those_of_an_ordinary_file(self, tmp_path: Path) -> None:
        state_file.write(str(tmp_path), Records({"a": 1.0}))
        (tmp_path / "ordinary").touch()
        assert (tmp_path / "checkpoint").stat().st_mode == (tmp_path / "ordinary").stat().st_mode

    def test_without_entries_nothing_is_written(self, tmp_path: Path) -> None:
        state_file.write(str(tmp_path), Records())
        assert not os.listdir(tmp_path)

    def test_a_failed_write_keeps_errno_and_the_old_file(self, tmp_path: Path) -> None:
        state_file.write(str(tmp_path), Records({"old": 1.0}))
        # A limit on the size of files stands for a full disk: the write itself fails.
        code = """
            import resource, sys
            from jaxckpt.directory import state_file
            from jaxckpt.directory.state_file import Records
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
            try:
                state_file.write(sys.argv[1], Records({"new": 2.0}))
            except OSError as error:
                print(error.errno, error.filename)
        """
        process = run_python(code, tmp_path)
        output, errors = process.communicate(timeout=60)
        assert output == f"{errno.EFBIG} {tmp_path / 'checkpoint'}\n", errors
        assert state_file.read(str(tmp_path)) == Records({"old": 1.0})
        assert os.listdir(tmp_path) == ["checkpoint"]

    def test_a_directory_of_that_name_is_an_oserror(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint").mkdir()
        with pytest.raises(IsADirectoryError):
            state_file.write(str(tmp_path), Records({"a": 1.0}))
        assert os.listdir(tmp_path) == ["checkpoint"]
        with pytest.raises(IsADirectoryError):
            register(make_checkpoint(tmp_path / "a-1"))
        assert jaxckpt.latest_checkpoint(tmp_path) is None

    @pytest.mark.slow
    def test_a_killed_writer_leaves_a_whole_file_and_a_leftover_that_is_found(self, tmp_path: Path) -> None:
        code = """
            import itertools, sys
            from jaxckpt.directory import state_file
            from jaxckpt.directory.state_file import Records
            for number in itertools.count():
                state_file.write(sys.argv[1], Records({f"ckpt-{number}": 1.0}))
                print(number, flush=True)
        """
        chance = random.Random(0)
        for _ in range(3):
            process = run_python(code, tmp_path)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.random() / 20)
            process.kill()
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            read = state_file.read(str(tmp_path))
            assert read is not None
            assert len(read.entries) == 1
        storage.sweep(str(tmp_path), "checkpoint")
        assert os.listdir(tmp_path) == ["checkpoint"]


class TestRegister:
    def test_the_latest_moves_to_the_end_and_missing_ones_are_dropped(self, tmp_path: Path) -> None:
        paths = [make_checkpoint(tmp_path / f"ckpt-{number}") for number in (1, 2, 3)]
        for path in paths:
            register(path)
        register(paths[0])
        shutil.rmtree(paths[1])
        register(paths[0])
        state = jaxckpt.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_paths == [paths[2], paths[0]]
        assert state.model_checkpoint_path == paths[0]
        assert len(state.all_model_checkpoint_timestamps) == 2
        assert state.all_model_checkpoint_timestamps == sorted(state.all_model_checkpoint_timestamps)
        assert abs(state.all_model_checkpoint_timestamps[-1] - time.time()) < 3600
        assert not temporaries(tmp_path)

    def test_a_relative_path_is_of_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_checkpoint(tmp_path / "sub" / "ckpt-1")
        make_checkpoint(tmp_path / "ckpt-1")
        monkeypatch.chdir(tmp_path)
        register("sub/ckpt-1")
        register("ckpt-1")
        assert jaxckpt.latest_checkpoint("sub") == "sub/ckpt-1"
        assert jaxckpt.latest_checkpoint(".") == "./ckpt-1"
        assert jaxckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")

    def test_timestamp_of_preservation_and_kept_ones_survive(self, tmp_path: Path) -> None:
        for number in (1, 2):
            make_checkpoint(tmp_path / f"ckpt-{number}")
        state_file.write(str(tmp_path), Records({"ckpt-1": 5.0}, {"ckpt-1", "gone-1"}, 4.0))
        register(str(tmp_path / "ckpt-2"))
        read = state_file.read(str(tmp_path))
        assert read is not None
        assert (read.kept, read.last_preserved, read.entries["ckpt-1"]) == ({"ckpt-1"}, 4.0, 5.0)
        state = jaxckpt.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.last_preserved_timestamp == 4.0
        assert state.preserved_checkpoint_paths == [str(tmp_path / "ckpt-1")]

    @pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff\xfe\0", b'model_checkpoint_path: "ckpt-'])
    def test_garbage_is_rebuilt_from_the_disk(
        self, tmp_path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Numbers do not give the order, the commits do.
        for age, name in enumerate(["ckpt-2", "other-1", "ckpt-10", "new\n-1"]):
            make_checkpoint(tmp_path / name)
            os.utime(tmp_path / name, (1000 + age, 1000 + age))
        make_checkpoint(tmp_path / "unnumbered")
        make_checkpoint(tmp_path / "ckpt-3.orbax-checkpoint-tmp")
        (tmp_path / "file-1").touch()
        (tmp_path / "checkpoint").write_bytes(garbage)
        register(make_checkpoint(tmp_path / "ckpt-1"))
        read = state_file.read(str(tmp_path))
        assert read is not None
        assert list(read.entries) == ["ckpt-2", "other-1", "ckpt-10", "new\n-1", "ckpt-1"]
        assert read.kept == {"ckpt-2", "other-1", "ckpt-10", "new\n-1"}
        assert read.entries["ckpt-10"] == 1002.0
        assert "Rebuilding" in caplog.text

    def test_the_commit_time_that_orbax_recorded_counts_more_than_that_of_the_directory(self, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path / "ckpt-1")
        os.utime(path, (5, 5))
        assert on_disk.commit_time(path) == 5.0
        metadata = tmp_path / "ckpt-1" / "_CHECKPOINT_METADATA"
        metadata.write_text('{"commit_timestamp_nsecs": 3000000000}')
        assert on_disk.commit_time(path) == 3.0
        for damaged in ('{"commit_timestamp_nsecs": null}', "[]", "{", "{}", ""):
            metadata.write_text(damaged)
            os.utime(path, (5, 5))
            assert on_disk.commit_time(path) == 5.0
        assert on_disk.commit_time(str(tmp_path / "missing")) == 0.0

    def test_threads_lose_no_registration(self, tmp_path: Path) -> None:
        paths = [make_checkpoint(tmp_path / f"{letter}-{n}") for letter in string.ascii_lowercase[:8] for n in range(5)]
        threads = [
            threading.Thread(target=lambda own: [register(path) for path in own], args=(paths[i : i + 5],))
            for i in range(0, 40, 5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        read = state_file.read(str(tmp_path))
        assert read is not None
        assert {os.path.join(tmp_path, name) for name in read.entries} == set(paths)

    @pytest.mark.slow
    def test_processes_lose_no_registration(self, tmp_path: Path) -> None:
        code = """
            import sys
            from jaxckpt.directory import registration
            from jaxckpt import storage
            for path in sys.argv[1:]:
                registration.register(storage.CheckpointPath.of(path))
        """
        paths = [make_checkpoint(tmp_path / f"{letter}-{n}") for letter in "abc" for n in range(15)]
        processes = [run_python(code, *paths[i : i + 15]) for i in range(0, 45, 15)]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        read = state_file.read(str(tmp_path))
        assert read is not None
        assert {os.path.join(tmp_path, name) for name in read.entries} == set(paths)
        assert not temporaries(tmp_path)

    def test_a_process_that_keeps_the_lock_only_delays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = make_checkpoint(tmp_path / "ckpt-1")
        code = """
            import fcntl, os, sys
            fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
            print("locked", flush=True)
            sys.stdin.read()
        """
        monkeypatch.setattr(lock, "_WAIT_SECS", 0.05)
        process = run_python(code, tmp_path, stdin=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            register(path)
        finally:
            process.communicate("", timeout=60)
        assert jaxckpt.latest_checkpoint(tmp_path) == path
        assert "without the lock" in caplog.text

    def test_a_file_system_without_locks_is_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(fcntl, "flock", flock)
        path = make_checkpoint(tmp_path / "ckpt-1")
        register(path)
        assert jaxckpt.latest_checkpoint(tmp_path) == path

    def test_the_lock_is_given_back_after_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint").mkdir()
        path = make_checkpoint(tmp_path / "ckpt-1")
        for _ in range(2):
            with pytest.raises(IsADirectoryError):
                register(path)
        (tmp_path / "checkpoint").rmdir()
        register(path)
        assert jaxckpt.latest_checkpoint(tmp_path) == path

    def test_a_full_descriptor_table_keeps_errno(self, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path / "ckpt-1")
        register(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                register(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE
        assert jaxckpt.latest_checkpoint(tmp_path) == path


class TestLatestCheckpoint:
    def test_no_directory_no_file_garbage_and_a_target_that_is_gone_are_none(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for function in (jaxckpt.latest_checkpoint, jaxckpt.get_checkpoint_state):
            assert function(tmp_path / "missing") is None
            assert function(tmp_path) is None
        assert not caplog.text
        (tmp_path / "checkpoint").write_text("garbage")
        assert jaxckpt.latest_checkpoint(tmp_path) is None
        assert jaxckpt.get_checkpoint_state(tmp_path) is None
        assert "Ignoring the state file" in caplog.text
        # The path is a file, not a directory.
        assert jaxckpt.latest_checkpoint(tmp_path / "checkpoint") is None
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"')
        assert jaxckpt.latest_checkpoint(tmp_path) is None
        state = jaxckpt.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.model_checkpoint_path == str(tmp_path / "ckpt-1")
        # The directory exists, but is not a checkpoint.
        (tmp_path / "ckpt-1").mkdir()
        assert jaxckpt.latest_checkpoint(tmp_path) is None
        (tmp_path / "ckpt-1").rmdir()
        make_checkpoint(tmp_path / "ckpt-1")
        assert jaxckpt.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-1")

    def test_it_does_not_fall_back_to_an_older_one(self, tmp_path: Path) -> None:
        for number in (1, 2):
            register(make_checkpoint(tmp_path / f"ckpt-{number}"))
        shutil.rmtree(tmp_path / "ckpt-2")
        assert jaxckpt.latest_checkpoint(tmp_path) is None

    def test_a_moved_directory_works_and_absolute_paths_are_read(self, tmp_path: Path) -> None:
        register(make_checkpoint(tmp_path / "a" / "ckpt-1"))
        (tmp_path / "a").rename(tmp_path / "b")
        assert jaxckpt.latest_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "ckpt-1")
        elsewhere = make_checkpoint(tmp_path / "elsewhere" / "ckpt-7")
        inside = str(tmp_path / "b" / "ckpt-1")
        (tmp_path / "b" / "checkpoint").write_text(
            f'model_checkpoint_path: "{elsewhere}" all_model_checkpoint_paths: ["{inside}", "../elsewhere/ckpt-7"]'
        )
        assert jaxckpt.latest_checkpoint(tmp_path / "b") == elsewhere
        register(make_checkpoint(tmp_path / "b" / "ckpt-2"))
        text = (tmp_path / "b" / "checkpoint").read_text()
        assert '"ckpt-1"' in text
        assert inside not in text
        assert f'"{elsewhere}"' in text
        assert '"../elsewhere/ckpt-7"' in text
        assert jaxckpt.latest_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "ckpt-2")

    def test_joined_as_the_directory_was_spelled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        register(make_checkpoint(tmp_path / "d" / "ckpt-1"))
        monkeypatch.chdir(tmp_path)
        for spelled in ("d", "d/", "./d", "../" + tmp_path.name + "/d"):
            assert jaxckpt.latest_checkpoint(spelled) == os.path.join(spelled, "ckpt-1")

    @pytest.mark.parametrize(
        "function", [jaxckpt.latest_checkpoint, jaxckpt.get_checkpoint_state, jaxckpt.checkpoints_iterator]
    )
    def test_arguments_of_the_wrong_type(self, function: object, tmp_path: Path) -> None:
        assert callable(function)
        for directory in (None, 3, b"/tmp", ["x"]):
            with pytest.raises(TypeError, match="directory"):
                function(directory)
        with pytest.raises(TypeError, match="options"):
            function(tmp_path, options={"enable_async": True})
        with pytest.raises(ValueError, match="99"):
            function(tmp_path, options=jaxckpt.CheckpointOptions(experimental_io_device=99))
        function(tmp_path, options=jaxckpt.CheckpointOptions(experimental_io_device="/job:localhost"))


class TestCheckpointsIterator:
    def test_each_new_latest_once(self, tmp_path: Path) -> None:
        first = make_checkpoint(tmp_path / "ckpt-1")
        second = make_checkpoint(tmp_path / "ckpt-2")
        register(first)
        found = jaxckpt.checkpoints_iterator(tmp_path, timeout=0)
        assert next(found) == first
        register(second)
        assert next(found) == second
        assert next(found, None) is None

    def test_waits_for_what_comes_from_another_thread(self, tmp_path: Path) -> None:
        directory = tmp_path / "later"
        found = jaxckpt.checkpoints_iterator(directory, timeout=60)
        thread = threading.Timer(0.2, lambda: register(make_checkpoint(directory / "ckpt-1")))
        thread.start()
        assert next(found) == str(directory / "ckpt-1")
        thread.join()

    def test_timeout_function_decides(self, tmp_path: Path) -> None:
        answers = []

        def ask() -> bool:
            answers.append(len(answers))
            if len(answers) == 2:
                register(make_checkpoint(tmp_path / "ckpt-1"))
            return len(answers) == 4

        assert list(jaxckpt.checkpoints_iterator(tmp_path, timeout=0, timeout_fn=ask)) == [str(tmp_path / "ckpt-1")]
        assert len(answers) == 4

    def test_least_interval(self, tmp_path: Path) -> None:
        paths = [make_checkpoint(tmp_path / f"ckpt-{number}") for number in (1, 2)]
        register(paths[0])
        found = jaxckpt.checkpoints_iterator(tmp_path, min_interval_secs=0.2, timeout=0)
        start = time.monotonic()
        next(found)
        register(paths[1])
        assert next(found) == paths[1]
        assert time.monotonic() - start >= 0.2

    def test_arguments_are_checked_at_the_call(self, tmp_path: Path) -> None:
        for name in ("min_interval_secs", "timeout"):
            with pytest.raises(ValueError, match=name):
                jaxckpt.checkpoints_iterator(tmp_path, **{name: -1})
            with pytest.raises(ValueError, match=name):
                jaxckpt.checkpoints_iterator(tmp_path, **{name: float("nan")})
            for wrong in ("1", True):
                with pytest.raises(TypeError, match=name):
                    jaxckpt.checkpoints_iterator(tmp_path, **{name: wrong})
        with pytest.raises(TypeError, match="timeout_fn"):
            jaxckpt.checkpoints_iterator(tmp_path, timeout_fn=3)  # type: ignore[arg-type]
