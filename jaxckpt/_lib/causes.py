"""Finds the true cause of an exception, ignoring an exception that the caller was merely handling at the time."""


def cause_of(error: BaseException) -> BaseException | None:
    """Returns the exception that caused `error`; None if there is not one, or if it is not known.

    If a program saves in an `except` block, Python sets the handled exception as the `__context__` of every error of the save, although it
    is unrelated. A true cause was handled in one of the frames that `error` has passed through; an unrelated exception was not.
    """
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    context = error.__context__
    if context is None or context.__traceback__ is None:
        return None
    handled_in = context.__traceback__.tb_frame
    passed = error.__traceback__
    while passed is not None:
        if passed.tb_frame is handled_in:
            return context
        passed = passed.tb_next
    return None
