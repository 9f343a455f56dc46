"""An interrupt while a process waits for its turn to meet the others: the next call gets it."""

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from jaxckpt.errors import ProcessError
from jaxckpt.job.agree import meeting
from jaxckpt.job.agree.call import Call, Contribution


def test_an_interrupt_loses_no_turn() -> None:
    code = meeting._meet.__code__
    seen: list[str] = []

    def interrupted_at(wanted: int) -> BaseException | None:
        lines = 0
        met = False

        def trace_line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal lines
            # Only up to the meeting: the line after the one that takes the turn is among these.
            if event == "line" and not met:
                lines += 1
                if lines == wanted:
                    raise KeyboardInterrupt
            return trace_line

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal met
            met = met or frame.f_code is meeting._Meeting.__init__.__code__
            return trace_line if frame.f_code is code else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            meeting._meet(Call("save", "ckpt", 0, 1.0), Contribution(), None)
        except (KeyboardInterrupt, ProcessError) as error:
            return error
        finally:
            sys.settrace(before)
        return None

    for wanted in range(1, 20):
        error = interrupted_at(wanted)
        seen.append(type(error).__name__)
        free: list[bool] = []

        def look(free: list[bool] = free) -> None:
            free.append(meeting._turns.acquire(timeout=1))
            if free[0]:
                meeting._turns.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        if not free[0]:
            meeting._turns.release()
            pytest.fail(f"interrupted at its line {wanted}, the turn was never given back")
        # Without an interrupt it fails, in a job of one process: there is nobody to meet.
        if isinstance(error, ProcessError):
            break
    assert seen[:-1] == ["KeyboardInterrupt"] * (len(seen) - 1)
    assert len(seen) > 4
    assert seen[-1] == "ProcessError"
