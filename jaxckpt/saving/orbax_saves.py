"""Lets the end of the program wait for asynchronous saves that Orbax drives with our handlers. Orbax itself loses them there."""

import threading
import time

from jaxckpt.saving.program_end import PROGRAM_END, say
from jaxckpt.storage.handlers.v0 import Write

# Orbax starts its thread right after the handler has returned, unless the save has failed elsewhere.
_START_SECS = 2.0
_POLL_SECS = 0.01


class _OrbaxSave:
    """A save that a thread of Orbax completes, as the end of the program sees it; see `program_end.Awaited`."""

    def __init__(self, write: Write, directory: str, exit_timeout_secs: float) -> None:
        self.what = directory
        self.exit_timeout_secs = exit_timeout_secs
        self.ended = False
        self._write = write
        self._began = time.monotonic()

    @property
    def is_on_this_thread(self) -> bool:
        return self._write.thread is threading.current_thread()

    @property
    def is_over(self) -> bool:
        """Whether the save is over, without waiting for it."""
        thread = self._write.thread
        if thread is None:
            return time.monotonic() - self._began > _START_SECS
        return not thread.is_alive()

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.is_over and (left := end - time.monotonic()) > 0:
            thread = self._write.thread
            if thread is None:
                time.sleep(min(left, _POLL_SECS))
            else:
                thread.join(left)
        self.ended = self.is_over
        return self.ended

    def give_up(self, why: str) -> None:
        say(f"jaxckpt: gave up waiting for the save into {self.what} {why}: it is NOT saved.")

    def tell(self) -> None:
        if (error := self._write.error) is not None:
            say(f"jaxckpt: the save into {self.what} failed: it is NOT saved. {type(error).__name__}: {error}")


_saves: list[_OrbaxSave] = []


def watch(write: Write, directory: str, exit_timeout_secs: float) -> None:
    """Lets the end of the program wait for a save, and print its error if it failed.

    Args:
      write: the write of the save.
      directory: the directory of Orbax that it writes into.
      exit_timeout_secs: the longest wait in seconds.
    """
    PROGRAM_END.watch()
    # Saves that are over have had their errors raised by Orbax.
    for save in [save for save in _saves if save.is_over]:
        PROGRAM_END.discard(save)
        _saves.remove(save)
    save = _OrbaxSave(write, directory, exit_timeout_secs)
    _saves.append(save)
    PROGRAM_END.add(save)
