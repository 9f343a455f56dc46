"""An error names what it came from, never what its caller was handling."""

import errno
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
