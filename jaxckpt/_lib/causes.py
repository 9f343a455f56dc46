"""What an exception came from, without what its caller happened to be handling."""


def cause_of(error: BaseException) -> BaseException | None:
    """Returns the exception that `error` came from; None if it came from none, or from none that is known.

    Whoever saves in an `except` block gives every error of the save that exception as its `__context__`. It says nothing of the save. The
    block that handled a true cause is one of the frames that `error` has passed.
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
