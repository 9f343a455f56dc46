"""An exception of one process, as the other processes of the job raise it.

The others get a `ProcessError` that is also of the kind that a caller would catch: a missing checkpoint is a FileNotFoundError on every
process, a full disk an OSError with the errno.
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
    """The traceback of the process on which an error was raised first; the cause of the ProcessError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _text(self: Exception) -> str:
    # OSError would show errno and strerror in place of the message.
    return str(self.args[0]) if self.args else ""


def _reduce(self: ProcessError) -> Any:
    # All that the pickle of a ProcessError has is text and processes; errno and the like are in the failure.
    known = getattr(self, "failure", None)
    return (rebuild, (known,)) if known is not None else ProcessError.__reduce__(self)


def _mixed(kind: type[Exception]) -> type[ProcessError]:
    """Returns the subclass of both ProcessError and `kind`."""
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
# So that they can be pickled.
globals().update({kind.__name__: kind for kind in _MIXED.values() if kind is not ProcessError})


def describe(error: BaseException, process: int) -> Failure:
    """Returns what the other processes have to know of `error`, which was raised on `process`.

    An error that is itself about another process's failure keeps that process.
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
    if isinstance(error, BaseExceptionGroup):  # Its own text only counts them.
        return f"{error}: " + "; ".join(f"{type(each).__name__}: {_text_of(each)}" for each in error.exceptions)
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _place(error: BaseException, attribute: str) -> str | None:
    """Returns what a CorruptCheckpointError says of the damaged place; None for other errors."""
    text = getattr(error, attribute) if isinstance(error, CorruptCheckpointError) else None
    return None if text is None else _shortened(text)


def _safely(text: Callable[[], str]) -> str:
    """Returns a text that the program's own code makes: that it fails must not keep the others from hearing of the error."""
    try:
        return text()
    except Exception as second:
        return f"(its text cannot be had: {type(second).__name__})"


def _shortened(text: str) -> str:
    if len(text) <= _TEXT_CHARS:
        return text
    return f"{text[: _TEXT_CHARS // 2]} [...] {text[-_TEXT_CHARS // 2 :]}"


def rebuild(failure: Failure) -> ProcessError:
    """Returns the error to raise for the failure of another process. Its cause is that process's traceback."""
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
