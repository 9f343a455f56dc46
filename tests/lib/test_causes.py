"""An error names what it came from, never what its caller was handling."""

import errno
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxckpt
from jaxckpt._lib.causes import cause_of


def _caught(work: Callable[[], None]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError("Nothing was raised.")


def _fail_while_handling() -> None:
    try:
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer")  # noqa: B904


def test_what_was_handled_inside_is_the_cause() -> None:
    error = _caught(_fail_while_handling)
    assert isinstance(cause_of(error), KeyError)


def test_a_named_cause_is_the_cause() -> None:
    def work() -> None:
        raise ValueError from KeyError("named")

    assert isinstance(cause_of(_caught(work)), KeyError)


def test_a_suppressed_cause_is_none() -> None:
    def work() -> None:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None

    assert cause_of(_caught(work)) is None


def test_what_the_caller_handles_is_not_the_cause() -> None:
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError as handled:
        error = _caught(_fail_while_handling)
        cause = cause_of(error)
        assert isinstance(cause, KeyError)
        assert cause.__context__ is handled
        assert cause_of(cause) is None


def test_damage_met_while_a_full_disk_is_handled_is_damage(tmp_path: Path) -> None:
    """The restore of a run whose save has failed must not say that the disk is full."""
    checkpoint = jaxckpt.Checkpoint(value=np.arange(1000.0))
    path = Path(checkpoint.save(tmp_path / "ckpt"))
    for file in path.rglob("d/*"):
        file.write_bytes(b"x" * file.stat().st_size)
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        with pytest.raises(jaxckpt.CorruptCheckpointError):
            checkpoint.restore(path)


def test_an_error_of_a_save_while_another_is_handled_stays_itself(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(value=np.arange(3.0))

    def refuse(path: str) -> None:
        raise ValueError("of the callback")

    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        with pytest.raises(ValueError, match="of the callback"):
            checkpoint.save(tmp_path / "ckpt", jaxckpt.CheckpointOptions(experimental_write_callbacks=[refuse]))


class AlarmError(Exception):
    """What signal handlers raise here."""


def _ring(*_: object) -> None:
    raise AlarmError


class _Bell:
    def ring(self, *_: object) -> None:
        raise AlarmError

    __call__ = ring


@pytest.mark.parametrize(
    "handler",
    [_ring, _Bell().ring, _Bell(), functools.partial(_ring, "more")],
    ids=["function", "method", "object", "partial"],
)
def test_what_a_signal_interrupted_is_no_cause(handler: Callable[..., None]) -> None:
    def work() -> None:
        try:
            raise FileExistsError(errno.EEXIST, "File exists")
        except FileExistsError:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        error = _caught(work)
        assert isinstance(error, AlarmError)
        assert cause_of(error) is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_save_raises_what_a_signal_handler_raised_while_an_error_was_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.makedirs` handles a FileExistsError if the directory is there already."""
    isdir = os.path.isdir

    def interrupted(path: str) -> bool:
        if path == str(tmp_path):
            signal.raise_signal(signal.SIGUSR1)
        return isdir(path)

    before = signal.signal(signal.SIGUSR1, _ring)
    try:
        monkeypatch.setattr(os.path, "isdir", interrupted)
        with pytest.raises(AlarmError):
            jaxckpt.Checkpoint(value=np.zeros(3)).save(tmp_path / "ckpt")
    finally:
        signal.signal(signal.SIGUSR1, before)
