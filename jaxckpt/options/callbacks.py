"""Write callbacks: functions of the user that run after a checkpoint is committed. Checks them and runs them."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from jaxckpt._lib.arguments import refusal

WriteCallback: TypeAlias = Callable[[str], object] | Callable[[], object]

_NAME = "experimental_write_callbacks"


def check_callbacks(callbacks: Iterable[WriteCallback] | None) -> tuple[WriteCallback, ...]:
    """Checks and copies write callbacks.

    Args:
      callbacks: an iterable of callables that take the checkpoint's path or no argument; None for an empty one.

    Returns:
      The callbacks, in order.

    Raises:
      TypeError: `callbacks` is not an iterable (it is a bare function, for example), or an element is not callable.
      ValueError: a callable accepts neither 0 nor 1 argument, or its body would not run when it is called (an ``async def`` or a
        generator function).
    """
    if callbacks is None:
        return ()
    # Checked before iterability, because some callables, such as classes and mocks, can be iterated too.
    if callable(callbacks):
        name = describe(callbacks)
        raise TypeError(f"{_NAME} must be a list of callables, got the callable {name}; write [{name}].")
    if isinstance(callbacks, (str, bytes, bytearray)) or not isinstance(callbacks, Iterable):
        raise TypeError(f"{_NAME} must be a list of callables or None, got {type(callbacks).__name__}.")
    copied = tuple(callbacks)
    for index, callback in enumerate(copied):
        _check(callback, f"{_NAME}[{index}]")
    return copied


def run_callbacks(callbacks: Iterable[WriteCallback], path: str) -> None:
    """Runs write callbacks in order. If one raises, the others still run. Return values are ignored.

    Args:
      callbacks: the callbacks, as `check_callbacks` returned them.
      path: path of the committed checkpoint, passed to every callback that can take an argument.

    Raises:
      BaseException: the error of the one callback that raised, with a note that names the callback.
      BaseExceptionGroup: the errors, if several callbacks raised (an ExceptionGroup if all are Exceptions).
    """
    errors: list[BaseException] = []
    for callback in callbacks:
        try:
            if _takes_path(callback):
                callback(path)  # type: ignore[call-arg]
            else:
                callback()  # type: ignore[call-arg]
        except BaseException as error:
            # KeyboardInterrupt and SystemExit are caught too, because they must not keep the other callbacks from running.
            # The note is optional: an exception class may refuse new attributes.
            with contextlib.suppress(Exception):
                error.add_note(f"(raised by the write callback {describe(callback)}; the checkpoint {path} is saved)")
            errors.append(error)
    try:
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} write callbacks failed; the checkpoint {path} is saved", errors)
    finally:
        # This breaks the cycle of an error, its traceback and this frame.
        errors.clear()


def _check(callback: Any, where: str) -> None:
    if not callable(callback):
        raise refusal(
            TypeError, where, f"a write callback must be callable, got {type(callback).__name__}: {callback!r}"
        )
    if kind := _never_runs(callback):
        raise refusal(
            ValueError,
            where,
            f"{describe(callback)} is {kind}, and calling it would not run its body. "
            "A write callback must be an ordinary callable of 0 or 1 arguments",
        )
    try:
        _takes_path(callback)
    except _ArgumentsError as error:
        raise refusal(
            ValueError,
            where,
            f"{describe(callback)}{error} cannot be called with 0 or 1 arguments. A write callback gets the "
            "path of the checkpoint, or no argument; functools.partial can fill in other arguments",
        ) from None


class _ArgumentsError(Exception):
    """A callable accepts neither zero nor one positional argument. The text is its signature."""


def _takes_path(callback: WriteCallback) -> bool:
    """Whether a callback gets the path. It does if it can take an argument, even one with a default."""
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        if isinstance(callback, functools.partial) and _has_signature(callback.func):
            # The partial fills in arguments that the function does not have.
            raise _ArgumentsError from None
        # Some builtins do not have a signature. They get the path.
        return True
    for arguments in (("path",), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise _ArgumentsError(str(signature))


def _has_signature(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return True


def _never_runs(callback: Any) -> str:
    """Returns the kind of a callable whose body does not run when it is called (such as "an async function"); "" for others."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    # `__call__` is inspected here, which `callable` could not do.
    for function in (callback, getattr(type(callback), "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(function):
            return "an async function"
        if inspect.isasyncgenfunction(function):
            return "an async generator function"
        if inspect.isgeneratorfunction(function):
            return "a generator function"
    return ""


def describe(callback: object) -> str:
    """Returns the name of a callback for messages."""
    name = getattr(callback, "__qualname__", None)
    return name if isinstance(name, str) else repr(callback)
