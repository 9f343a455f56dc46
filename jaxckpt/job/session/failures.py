"""Turns an exception of one process into a message, and the message into the exception that the other processes raise.

The others raise a `ProcessError` that is also of the class that a caller would catch: a missing checkpoint is a FileNotFoundError on
every process, and a full disk is an OSError with its errno.
"""

import traceback
from collections.abc import Callable
from typing import Any

from jaxckpt.errors import CheckpointError, ConfigError, CorruptCheckpointError, ProcessError
from jaxckpt.job.protocol.parts import Failure

_TRACEBACK_CHARS = 8000
_TEXT_CHARS = 20_000
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(
            FileNotFoundError,
            FileExistsError,
            PermissionError,
            NotADirectoryError,
            IsADirectoryError,
            TimeoutError,
            ConnectionError,
            OSError,
        ),
        *(KeyError, IndexError, LookupError, AttributeError, TypeError, MemoryError, NotImplementedError, ValueError),
        *(UnicodeError, ZeroDivisionError, OverflowError, ArithmeticError, AssertionError, ImportError, EOFError),
        *(CorruptCheckpointError, ConfigError, CheckpointError),
    )
}


class RemoteTracebackError(Exception):
    """Shows the traceback of the process that failed first. It is the `__cause__` of the ProcessError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _text(self: Exception) -> str:
    # The __str__ of OSError would show errno and strerror instead of the message.
    return str(self.args[0]) if self.args else ""


def _reduce(self: ProcessError) -> Any:
    # The pickle of a ProcessError has only text and processes. Errno and the like are in the failure.
    known = getattr(self, "failure", None)
    return (rebuild, (known,)) if known is not None else ProcessError.__reduce__(self)


def _mixed(kind: type[Exception]) -> type[ProcessError]:
    """Returns a subclass of both ProcessError and `kind`."""
    if issubclass(ProcessError, kind):
        return ProcessError
    name = f"Process{kind.__name__}"
    namespace = {
        "__doc__": f"A {kind.__name__} of another process.",
        "__str__": _text,
        "__reduce__": _reduce,
        "__module__": __name__,
    }
    return type(name, (ProcessError, kind), namespace)


_MIXED: dict[str, type[ProcessError]] = {name: _mixed(kind) for name, kind in _KINDS.items()}
# Pickle looks classes up by name in their module.
globals().update({kind.__name__: kind for kind in _MIXED.values() if kind is not ProcessError})


def describe(error: BaseException, process: int) -> Failure:
    """Returns the description of an error, for the other processes.

    Args:
      error: the error. If it was rebuilt from the failure of another process, that failure is returned.
      process: index of the process that raised it.
    """
    known = getattr(error, "failure", None)
    if isinstance(error, ProcessError) and isinstance(known, Failure):
        return known
    kind = next(
        (base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS and base is _KINDS[base.__name__]), ""
    )
    text = _shortened(_safely(lambda: _text_of(error)))
    name = type(error).__name__
    own = error if isinstance(error, OSError) else OSError()
    return Failure(
        process=process,
        processes=tuple(error.processes) if isinstance(error, ProcessError) else (process,),
        about=isinstance(error, ProcessError),
        kind=kind,
        text=text if isinstance(error, ProcessError) else f"{name}: {text}" if text else name,
        errno=int(own.errno) if isinstance(own.errno, int) else None,
        strerror=_safely(lambda: str(own.strerror)) if own.strerror is not None else None,
        filename=_safely(lambda: str(own.filename)) if own.filename is not None else None,
        where=_place(error, "where"),
        what=_place(error, "what"),
        traceback=_safely(lambda: "".join(traceback.format_exception(error)))[-_TRACEBACK_CHARS:],
    )


def _text_of(error: BaseException) -> str:
    # The own text of an exception group only counts the exceptions.
    if isinstance(error, BaseExceptionGroup):
        return f"{error}: " + "; ".join(f"{type(each).__name__}: {_text_of(each)}" for each in error.exceptions)
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _place(error: BaseException, attribute: str) -> str | None:
    """Returns `where` or `what` of a CorruptCheckpointError; None for other errors.

    Args:
      error: the error.
      attribute: "where" or "what".
    """
    text = getattr(error, attribute) if isinstance(error, CorruptCheckpointError) else None
    return None if text is None else _shortened(text)


def _safely(text: Callable[[], str]) -> str:
    """Returns the text that a function builds, or says why it cannot: the exception class may be the program's own, and its code may fail.

    The other processes must hear of the error in any case.

    Args:
      text: builds the text.
    """
    try:
        return text()
    except Exception as second:
        return f"(its text is not available: {type(second).__name__})"


def _shortened(text: str) -> str:
    if len(text) <= _TEXT_CHARS:
        return text
    return f"{text[: _TEXT_CHARS // 2]} [...] {text[-_TEXT_CHARS // 2 :]}"


def rebuild(failure: Failure) -> ProcessError:
    """Returns the error to raise for the failure of another process. Its cause shows the traceback of that process.

    Args:
      failure: the description, as `describe` returned it on the other process.
    """
    cls = _MIXED.get(failure.kind, ProcessError)
    text = failure.text if failure.about else f"Process {failure.process} failed: {failure.text}"
    error = cls(text, failure.processes)
    error.failure = failure  # type: ignore[attr-defined]
    if isinstance(error, OSError):
        error.errno, error.strerror, error.filename = failure.errno, failure.strerror, failure.filename
    if isinstance(error, CorruptCheckpointError):
        error.where, error.what = failure.where, failure.what
    error.__cause__ = RemoteTracebackError(failure.traceback)
    return error
