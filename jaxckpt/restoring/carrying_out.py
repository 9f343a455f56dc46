"""Replaces the values of a program: all of them on every process, or none."""

from collections.abc import Callable, Iterable

from jaxckpt.tree.builders import Undo


def carry_out(changes: Iterable[Callable[[], Undo]], agree: Callable[[BaseException | None], None]) -> None:
    """Makes all changes on every process, or none.

    Args:
      changes: functions; each makes one change, and returns a function that undoes it.
      agree: tells the other processes the error of this one (or None), and raises if any process failed.
    """
    undos: list[Undo] = []
    failure: BaseException | None = None
    try:
        for change in changes:
            undos.append(change())
    except BaseException as error:
        failure = error
    try:
        agree(failure)
    except BaseException as error:
        for undo in reversed(undos):
            try:
                undo()
            except Exception as second:
                error.add_note(f"In addition, the old state of an object could not be restored: {second!r}")
        raise
    finally:
        del failure
