"""The events that listeners of `jax.monitoring` get. All names are here."""

import contextvars
import logging
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

LOGGER = logging.getLogger("jaxckpt")

Mode: TypeAlias = Literal["sync", "async"]
# Durations in seconds.
SAVE_BLOCKED = "/jaxckpt/save/blocked_secs"
SAVE_WAITED = "/jaxckpt/save/waited_secs"
SAVE_WRITTEN = "/jaxckpt/save/written_secs"
SAVE_SINCE_PREVIOUS = "/jaxckpt/save/since_previous_secs"
RESTORE_SECS = "/jaxckpt/restore/secs"
DELETE_SECS = "/jaxckpt/delete/secs"
# Scalars.
SAVE_BYTES = "/jaxckpt/save/bytes"
RESTORE_BYTES = "/jaxckpt/restore/bytes"
# An event without a value.
SAVE_FAILED = "/jaxckpt/save/failed"

_mode: contextvars.ContextVar[Mode] = contextvars.ContextVar("mode", default="sync")


# Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some exception classes refuse.
class within:  # noqa: N801
    """Makes `mode_here` return a mode inside the block: deletions belong to the save that causes them."""

    def __init__(self, mode: Mode) -> None:
        """Makes the context manager.

        Args:
          mode: "async" if the block runs in the background.
        """
        self._wanted = mode

    def __enter__(self) -> None:
        self._token = _mode.set(self._wanted)

    def __exit__(self, *error: object) -> None:
        _mode.reset(self._token)


def mode_here() -> Mode:
    """Returns the mode of the save that the caller belongs to; "sync" outside of saves."""
    return _mode.get()


def duration(name: str, seconds: float, mode: Mode) -> None:
    """Reports a duration.

    Args:
      name: one of the names of durations above.
      seconds: the duration.
      mode: the label of the event.
    """
    import jax.monitoring

    _report(jax.monitoring.record_event_duration_secs, name, seconds, mode=mode)


def scalar(name: str, value: float, mode: Mode) -> None:
    """Reports a number.

    Args:
      name: one of the names of scalars above.
      value: the number.
      mode: the label of the event.
    """
    import jax.monitoring

    _report(jax.monitoring.record_scalar, name, value, mode=mode)


def event(name: str, mode: Mode) -> None:
    """Reports that something has happened.

    Args:
      name: the name of the event.
      mode: the label of the event.
    """
    import jax.monitoring

    _report(jax.monitoring.record_event, name, mode=mode)


def _report(record: Callable[..., Any], name: str, *values: float, mode: Mode) -> None:
    try:
        record(name, *values, mode=mode)
    except Exception as error:
        # JAX calls the program's listeners, and raises their errors here. A checkpoint must not fail because of them.
        LOGGER.warning("A listener of jax.monitoring failed at %s: %s: %s", name, type(error).__name__, error)
