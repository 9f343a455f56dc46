"""What the processes compare of a call: texts that an interrupt of an earlier call cannot change."""

import sys
from types import FrameType
from typing import Any

from jaxckpt import OrbaxSettings, options
from jaxckpt.job.agree.call import Call


def test_details_are_texts() -> None:
    settings = OrbaxSettings(timeout_secs=4, compression="zstd")
    details = {"orbax": settings, "policy": options.MaxShardSizePolicy(64), "none": None, "word": "a", "number": 3}
    assert Call("save", "ckpt", 0, 4.0, details).detail_texts() == {
        "orbax": repr(settings),
        "policy": repr(options.MaxShardSizePolicy(64)),
        "none": "None",
        "word": "a",
        "number": "3",
    }
    assert "timeout_secs=4" in repr(settings)


def test_an_interrupt_at_any_line_changes_no_text() -> None:
    # Kept by the test: the `repr` of a dataclass keeps a list of the objects, by their addresses.
    made = []
    for wanted in range(1, 1000):
        settings = OrbaxSettings(timeout_secs=7)
        made.append(settings)
        call = Call("save", "ckpt", 0, 4.0, {"orbax": settings})
        lines = 0

        def trace(frame: FrameType, event: str, argument: Any, wanted: int = wanted) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == wanted:
                    raise KeyboardInterrupt
            return trace

        interrupted = False
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call.detail_texts()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        assert call.detail_texts() == {"orbax": repr(OrbaxSettings(timeout_secs=7))}, wanted
        if not interrupted:
            break
    assert len(made) > 5
    assert not interrupted
