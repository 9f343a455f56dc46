"""An error of one process is of the same kind on the others, whatever it is made of."""

import copy
import errno
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.errors import CheckpointError, ConfigError, CorruptCheckpointError, ProcessError
from jaxckpt.job.protocol import frames
from jaxckpt.job.protocol.messages import Failed
from jaxckpt.job.session import failures


def told(error: BaseException, process: int = 3) -> ProcessError:
    head = json.loads(frames.encoded(Failed(failures.describe(error, process)))[4:])
    message = frames.decoded(head)
    assert isinstance(message, Failed)
    return failures.rebuild(message.failure)


@pytest.mark.parametrize(
    "kind",
    [
        *(FileNotFoundError, PermissionError, OSError, TimeoutError, KeyError, ValueError, TypeError, LookupError),
        *(CorruptCheckpointError, ConfigError, CheckpointError, MemoryError, ZeroDivisionError, ImportError),
        *(RuntimeError, NotImplementedError, AttributeError, UnicodeError),
    ],
)
def test_the_kind(kind: type[Exception]) -> None:
    found = told(kind("why"))
    expected = next(base for base in kind.__mro__ if base in (OSError, kind))
    assert isinstance(found, expected)
    assert isinstance(found, ProcessError)
    assert found.processes == (3,)
    assert "Process 3 failed" in str(found)
    assert "why" in str(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), StopIteration(1)])
def test_what_is_no_ordinary_error(error: BaseException) -> None:
    found = told(error)
    assert type(found) is ProcessError
    assert type(error).__name__ in str(found)


def test_errno_and_traceback() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left", "/disk/file")
    except OSError as error:
        found = told(error)
    for each in (found, pickle.loads(pickle.dumps(found)), copy.copy(found)):
        assert isinstance(each, OSError)
        assert (each.errno, each.strerror, each.filename) == (errno.ENOSPC, "No space left", "/disk/file")
        assert each.processes == (3,)
        assert "test_errno_and_traceback" in str(each.__cause__)


def test_what_is_told_twice_keeps_the_first_process() -> None:
    first = told(PermissionError(13, "no", "x"), 2)
    second = told(first, 1)
    assert second.processes == (2,)
    assert str(second) == str(first)
    assert isinstance(second, PermissionError)
    assert second.errno == 13


def test_a_process_error_keeps_the_processes_that_it_is_about() -> None:
    found = told(ProcessError("Processes 4, 5 are late.", (5, 4)), 0)
    assert found.processes == (4, 5)
    assert str(found) == "Processes 4, 5 are late."


class UnspeakableError(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddError(OSError):
    errno = property(lambda self: object())  # type: ignore[assignment]
    strerror = property(lambda self: object())  # type: ignore[assignment]
    filename = property(lambda self: b"\xff")  # type: ignore[assignment]


def test_errors_that_refuse_to_be_described() -> None:
    assert isinstance(told(UnspeakableError()), ValueError)
    assert isinstance(told(OddError("x")), OSError)
    assert isinstance(told(OSError({1}, [2], 3)), OSError)
    assert len(str(told(ValueError("x" * 10**7)))) < 10**5


@given(st.text())
def test_any_text(text: str) -> None:
    found = told(KeyError(text))
    assert isinstance(found, KeyError)
    assert text[:5000] in str(found)


def test_where_the_damage_is() -> None:
    error = CorruptCheckpointError.at("model/layer: 1", "its data is 812 bytes long")
    assert str(error) == "model/layer: 1: its data is 812 bytes long"
    found = told(error)
    assert isinstance(found, CorruptCheckpointError)
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), found, pickle.loads(pickle.dumps(found))):
        assert (each.where, each.what) == ("model/layer: 1", "its data is 812 bytes long")
    without = CorruptCheckpointError("several things")
    for each in (without, pickle.loads(pickle.dumps(without)), told(without)):
        assert (each.where, each.what) == (None, None)
