"""Real signals at random moments of a call."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

EXIT_STATUS = 143
_AGAIN = 0.25
_SOON_SECS = 5e-5


class Moment(NamedTuple):
    """When a signal comes.

    Attributes:
      number: SIGINT, or SIGTERM, whose handler raises SystemExit.
      secs: seconds after the call began; None for `lines`.
      lines: after how many lines of Python in the package and in `threading`; None for `secs`.
      again: seconds from the first signal to a second one; None for one signal.
    """

    number: int
    secs: float | None
    lines: int | None
    again: float | None

    def __str__(self) -> str:
        when = f"after {self.secs:.6f} s" if self.secs is not None else f"at line {self.lines}"
        more = "" if self.again is None else f", again {self.again:.6f} s later"
        return f"{signal.Signals(self.number).name} {when}{more}"


class Outcome(NamedTuple):
    """How a call ended: what it returned, or raised, how many signals came while it ran, and how long it took."""

    value: Any
    error: BaseException | None
    fired: int
    secs: float

    @property
    def interrupted(self) -> bool:
        """Whether it raised what the handler of a signal had raised."""
        return isinstance(self.error, KeyboardInterrupt) or (
            isinstance(self.error, SystemExit) and self.error.code == EXIT_STATUS
        )


class Shooter:
    """Interrupts calls of the main thread."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._armed = False
        self._fired = 0
        self._moment: Moment | None = None
        self._lines = 0
        # How long the calls last, by their kind: in seconds, and, where each line is counted, in lines.
        self._secs: dict[str, float] = {}
        self._length: dict[str, int] = {}
        signal.signal(signal.SIGINT, self._raise)
        signal.signal(signal.SIGTERM, self._raise)
        signal.signal(signal.SIGALRM, self._send)

    def moment(self, kind: str) -> Moment | None:
        """Chooses when to interrupt a call of a kind: None for not at all, which measures it instead."""
        if kind not in self._secs or kind not in self._length or self._random.random() < 0.05:
            return None
        secs, lines = self._secs[kind], self._length[kind]
        number = self._random.choice([signal.SIGINT, signal.SIGTERM])
        again = self._random.uniform(0, 1.2 * secs) if self._random.random() < _AGAIN else None
        if self._random.random() < 0.5:
            return Moment(number, self._random.uniform(0, 1.1 * secs), None, again)
        return Moment(number, None, self._random.randint(1, max(1, lines)), again)

    def call(self, kind: str, work: Callable[[], Any], moment: Moment | None) -> Outcome:
        """Makes a call and interrupts it."""
        self._moment, self._fired, self._lines = moment, 0, 0
        value, error = None, None
        counting = moment.lines is not None if moment is not None else self._random.random() < 0.5
        began = time.monotonic()
        try:
            try:
                self._armed = True
                if counting:
                    sys.settrace(self._trace)
                elif moment is not None and moment.secs is not None:
                    signal.setitimer(signal.ITIMER_REAL, max(_SOON_SECS, moment.secs))
                value = work()
            finally:
                self._armed = False
                sys.settrace(None)
        except BaseException as raised:
            error = raised
        self._armed = False
        sys.settrace(None)
        secs = time.monotonic() - began
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._moment = None
        if moment is None and error is None:
            if counting:
                self._length[kind] = self._lines
            else:
                self._secs[kind] = secs
        return Outcome(value, error, self._fired, secs)

    def _send(self, number: int, frame: FrameType | None) -> None:
        if self._moment is None:
            return
        if frame is not None and frame.f_code in _OWN:
            signal.setitimer(signal.ITIMER_REAL, _SOON_SECS)
        else:
            os.kill(os.getpid(), self._moment.number)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._armed or self._moment is None:
            return
        if frame is not None and frame.f_code is Shooter._send.__code__:
            frame = frame.f_back
        if frame is not None and frame.f_code in _OWN:
            # Between two instructions of the trace function, where no signal would come without it: a little later.
            signal.setitimer(signal.ITIMER_REAL, _SOON_SECS)
            return
        self._fired += 1
        if self._fired == 1 and self._moment.again is not None:
            signal.setitimer(signal.ITIMER_REAL, max(_SOON_SECS, self._moment.again))
        elif self._fired > 1:
            self._armed = False
        if number == signal.SIGTERM:
            raise SystemExit(EXIT_STATUS)
        raise KeyboardInterrupt

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        return self._trace_line if "/jaxckpt/" in name or name.endswith("/threading.py") else None

    def _trace_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._lines += 1
            if self._moment is not None and self._lines == self._moment.lines:
                signal.setitimer(signal.ITIMER_REAL, _SOON_SECS)
        return self._trace_line


_OWN = {Shooter._trace.__code__, Shooter._trace_line.__code__, Shooter._raise.__code__, Shooter._send.__code__}
