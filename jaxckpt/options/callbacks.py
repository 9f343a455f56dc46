"""Write callbacks: which callables are allowed, and running them once a checkpoint is committed."""

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
      callbacks: any iterable of callables that take the checkpoint's path, or nothing; None for none.

    Returns:
      The callbacks, in order.

    Raises:
      TypeError: not an iterable (a bare function, say), or an element that is not callable.
      ValueError: a callable that accepts neither 0 nor 1 argument, or whose body would not run when it is called: an
        ``async def`` or a generator function.
    """
    if callbacks is None:
        return ()
    # Before iterability: some callables, such as classes and mocks, can be iterated too.
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
    """Runs write callbacks in order; if one raises, the others still run. Return values are ignored.

    Args:
      callbacks: what `check_callbacks` returned.
      path: of the committed checkpoint; a callback that can take an argument is given it.

    Raises:
      BaseException: what a callback raised, if one did, with a note that names the callback.
      BaseExceptionGroup: what the callbacks raised, if several did (an ExceptionGroup if all are Exceptions).
    """
    errors: list[BaseException] = []
    for callback in callbacks:
        try:
            if _takes_path(callback):
                callback(path)  # type: ignore[call-arg]
            else:
                callback()  # type: ignore[call-arg]
        except BaseException as error:
            # KeyboardInterrupt and SystemExit too: they must not keep the others from running.
            # An exception class may refuse new attributes.
            with contextlib.suppress(Exception):
                error.add_note(f"(raised by the write callback {describe(callback)}; the checkpoint {path} is saved)")
            errors.append(error)
    try:
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} write callbacks failed; the checkpoint {path} is saved", errors)
    finally:
        # No cycle of an error, its traceback and this frame.
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
            f"{describe(callback)}{error} cannot be called with 0 or 1 arguments. A write callback is given "
            "the path of the checkpoint, or nothing; functools.partial can fill in the others",
        ) from None


class _ArgumentsError(Exception):
    """A callable accepts neither zero nor one positional argument. The text is its signature."""


def _takes_path(callback: WriteCallback) -> bool:
    """Whether a callback is given the path: whenever it can take it, also if that argument has a default."""
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        if isinstance(callback, functools.partial) and _has_signature(callback.func):
            # It fills in arguments that the function does not have.
            raise _ArgumentsError from None
        # Some builtins have none.
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
    """Names the kind of a callable whose body would not run when it is called (such as "an async function"); otherwise ""."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    for function in (callback, getattr(type(callback), "__call__", None)):  # noqa: B004  It is called; not only tested.
        if inspect.iscoroutinefunction(function):
            return "an async function"
        if inspect.isasyncgenfunction(function):
            return "an async generator function"
        if inspect.isgeneratorfunction(function):
            return "a generator function"
    return ""


def describe(callback: object) -> str:
    """Returns how messages name a callback."""
    name = getattr(callback, "__qualname__", None)
    return name if isinstance(name, str) else repr(callback)
