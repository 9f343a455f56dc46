"""Saves that Orbax drives with our handlers: what they need from the rooms above storage, and the end of the program waits for them."""

import threading
import time
from typing import Any

import jax

from jaxckpt.job.plan import Plan
from jaxckpt.options import CheckpointOptions, sharding, sharding_callback_of
from jaxckpt.saving import items
from jaxckpt.saving.program_end import PROGRAM_END, say
from jaxckpt.storage.handlers.arguments import SaveArguments
from jaxckpt.storage.handlers.engine import Engine
from jaxckpt.storage.handlers.v0 import Write
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.storage.settings import WriteSettings

# Orbax starts its thread right after the handler has returned, unless the save has failed elsewhere.
_START_SECS = 2.0
_POLL_SECS = 0.01


def engine_for(options: CheckpointOptions, settings: WriteSettings) -> Engine:
    """Returns the engine of a handler.

    Args:
      options: the options of the handler.
      settings: the settings that they were translated into.

    Raises:
      ValueError: an option is not possible with a handler; see `refuse`.
    """
    refuse(options)
    processes = jax.process_count()
    process = jax.process_index()
    is_alone = processes == 1 or settings.io_process is not None

    def take(arguments: SaveArguments, *, copy: bool) -> Snapshot:
        plan = None if is_alone else Plan(process, None)
        if plan is None and processes > 1:
            _refuse_divided(arguments.item)
        taken = items.take(arguments.item, arguments.save_args, plan, copy=copy)
        return sharding.arranged(taken, sharding_callback_of(options), process, processes > 1)

    return Engine(settings, take, process, 1 if is_alone else processes)


def refuse(options: CheckpointOptions) -> None:
    """Raises ValueError for an option of which a handler of Orbax cannot do what it says; the message names the option."""
    if options.experimental_write_callbacks:
        raise ValueError(
            "experimental_write_callbacks: Orbax calls a handler before the commit, so a handler cannot run what must come after it. Use "
            "jaxckpt.Checkpoint, or call them after wait_until_finished()."
        )
    if options.experimental_skip_slot_variables:
        raise ValueError(
            "experimental_skip_slot_variables: Orbax restores what the program asks for, so a handler cannot leave slot variables as they "
            "are. Use jaxckpt.Checkpoint, or ocp.args.PyTreeRestore(..., partial_restore=True)."
        )


def _refuse_divided(item: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(item):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name}: experimental_io_device: parts of this array are on other processes, and this checkpointer would not save them. "
                "Save the array with jaxckpt.Checkpoint, or leave experimental_io_device out."
            )


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
