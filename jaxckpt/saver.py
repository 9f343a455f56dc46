"""Saves and restores named values: the work behind `Checkpoint` and `CheckpointManager`.

It is a class of its own because every public method of `Checkpoint` takes away a name that a value could have.
"""

import threading
from collections.abc import Callable
from typing import Any

from jaxckpt._lib.arguments import StrPath
from jaxckpt.directory import free_numbers, paths
from jaxckpt.directory.counter import SaveCounter
from jaxckpt.directory.hooks import SaveHooks, Unregistered
from jaxckpt.loading import Loading
from jaxckpt.options import CheckpointOptions, checked_options
from jaxckpt.restoring.adapting import Adaptation
from jaxckpt.saving import tracing
from jaxckpt.saving.save import Save
from jaxckpt.saving.saves import Saves
from jaxckpt.status import CheckpointDiff, CheckpointLoadStatus
from jaxckpt.storage import NO_FACTS, SaveFacts
from jaxckpt.telemetry import SaveTimes
from jaxckpt.translate import to_orbax
from jaxckpt.tree import flatten
from jaxckpt.tree.named_values import NamedValues


class Saver:
    """Saves and restores the values of one Checkpoint.

    Attributes:
      values: the named values.
      counter: `save_counter`, and the number of the next save.
      lock: held from the beginning of a save until it is written or handed to the background, and during a restore. While a thread
        holds it, other threads can neither save nor restore. Reentrant.
    """

    def __init__(self, values: NamedValues, counter: SaveCounter, checkpoint_id: int) -> None:
        """Creates a saver that has not saved anything yet.

        Args:
          values: the named values.
          counter: `save_counter`, and the number of the next save.
          checkpoint_id: `id()` of the Checkpoint. A value that contains the Checkpoint itself is refused. The saver does not refer to the
            Checkpoint, because that would be a reference cycle.
        """
        self.values = values
        self.counter = counter
        self.lock = threading.RLock()
        self._checkpoint_id = checkpoint_id
        self._saves = Saves()
        # The last save, from which the time to the next one is counted.
        self._previous: SaveTimes | None = None

    def refuse_tracing(self, action: str) -> None:
        """Refuses a call inside a function that JAX traces: it would run once, during tracing, and not when the function runs.

        Args:
          action: the call, such as "save".

        Raises:
          TypeError: JAX traces the caller. The message names the first value that is traced, if there is one.
        """
        tracing.refuse(action, lambda: ((leaf.name, leaf.value) for flat in self._flats() for leaf in flat.leaves))

    def _flats(self) -> list[flatten.Flat]:
        return list(self.values.flats(self._checkpoint_id, self.values.current()).values())

    def save(
        self,
        prefix: str,
        options: CheckpointOptions | None,
        hooks: SaveHooks,
        *,
        number: int | None = None,
        facts: SaveFacts = NO_FACTS,
    ) -> str:
        """Saves a numbered checkpoint.

        Args:
          prefix: directory and name, as `paths.checked_prefix` returned it.
          options: how to save; None for the defaults.
          hooks: called at the steps of the save.
          number: number chosen by the caller. A checkpoint that has it is replaced. None takes the next number.
          facts: what the program says about this save.

        Returns:
          Path of the checkpoint.

        Raises:
          BaseException: as `Checkpoint.save`.
        """
        place = paths.absolute(prefix)

        def give(given: int) -> None:
            if number is None:
                self.counter.give(place, given)

        return self._run(
            "save",
            prefix,
            options,
            hooks,
            lambda save: self.counter.reserve(save, prefix, place, number),
            replace=number is not None,
            details={"checkpoint_number": number},
            give=give,
            facts=facts,
        )

    def write(self, path: str, options: CheckpointOptions | None) -> str:
        """Saves a checkpoint at exactly this path, and does not register it.

        Args:
          path: path of the checkpoint, as `paths.checked_path` returned it. A checkpoint that exists there is replaced.
          options: how to save; None for the defaults.

        Returns:
          Path of the checkpoint.

        Raises:
          BaseException: as `Checkpoint.write`.
        """

        def reserve(save: Save) -> tuple[int, str]:
            exact = paths.spelled(path)
            free_numbers.reserve(save, exact)
            return self.counter.number, exact

        return self._run("write", path, options, Unregistered(), reserve, replace=True)

    def _run(
        self,
        action: str,
        subject: str,
        options: CheckpointOptions | None,
        hooks: SaveHooks,
        reserve: Callable[[Save], tuple[int, str]],
        *,
        replace: bool,
        details: Any = (),
        give: Callable[[int], None] = lambda number: None,
        facts: SaveFacts = NO_FACTS,
    ) -> str:
        """Saves, on this thread or in the background, and returns the path of the checkpoint.

        Args:
          action: the call, for messages: "save" or "write".
          subject: the path or prefix that the caller passed, for messages.
          options: how to save; None for the defaults.
          hooks: called at the steps of the save.
          reserve: chooses and reserves number and path for the save.
          replace: whether to replace a checkpoint that exists at the path.
          details: names and values that must be the same on every process of the job, besides the options.
          give: called with the number of the save once that number is used up. It may be called more than once.
          facts: what the program says about this save.
        """
        self.refuse_tracing(action)
        options = _checked(options)
        translation = to_orbax(options)
        turn = self._saves.turn(action)
        times = SaveTimes(subject, asynchronous=translation.asynchronous, previous=self._previous)
        with self.lock, turn:
            save = Save(
                action,
                subject,
                options,
                translation.array_settings,
                hooks,
                replace=replace,
                details=details,
                facts=facts,
                times=times,
                # `count` does this too, but an interrupt may keep it from running.
                registered=lambda save: give(save.number),
            )

            def count() -> None:
                self.counter.number = save.number
                give(save.number)

            self._saves.start(
                save,
                turn,
                self._flats,
                reserve,
                count,
                asynchronous=translation.asynchronous,
                exit_timeout_secs=translation.exit_timeout_secs,
                step=facts.step,
            )
            self._previous = times
            times.returned()
        return save.path

    def restore(
        self, action: str, save_path: StrPath | None, options: CheckpointOptions | None, adaptation: Adaptation
    ) -> CheckpointLoadStatus:
        """Restores values. "restore" also restores the counter; "read" does not.

        Args:
          action: the call: "restore" or "read".
          save_path: path of the checkpoint, as the caller gave it; None restores nothing.
          options: how to restore; None for the defaults.
          adaptation: the differences between values and stored leaves that the caller allows.

        Returns:
          The status, which tells which names matched and which did not.

        Raises:
          BaseException: as `Checkpoint.restore`.
        """
        options = _checked(options)
        path = None if save_path is None else paths.checked_path(save_path, "save_path")
        self._saves.refuse_in_callback(action)
        self.refuse_tracing(action)
        with self.lock:
            if path is None:
                # A device that does not exist is an error all the same.
                to_orbax(options)
                self.sync()
                return CheckpointLoadStatus(None, (), (), ())
            loading = Loading(action, path, options, adaptation, self.values, self._checkpoint_id)
            loaded = loading.restore(self.sync, with_counter=action == "restore")
            self._saves.restored()
            if loaded.counter is not None:
                self.counter.number = int(loaded.counter)
            return CheckpointLoadStatus(
                path,
                loaded.matched,
                loaded.missing,
                loaded.unexpected,
                loaded.cast,
                loaded.near,
                mismatched=loaded.mismatched,
                renamed=loaded.renamed,
            )

    def diff(self, save_path: StrPath, options: CheckpointOptions | None, adaptation: Adaptation) -> CheckpointDiff:
        """Compares the values with a checkpoint, without reading data.

        Args:
          save_path: path of the checkpoint, as the caller gave it.
          options: how a restore would be done; None for the defaults.
          adaptation: gives the stored names of targets that have other names.

        Raises:
          BaseException: as `Checkpoint.diff`.
        """
        options = _checked(options)
        path = paths.checked_path(save_path, "save_path")
        self._saves.refuse_in_callback("diff")
        self.refuse_tracing("diff")
        with self.lock:
            loading = Loading("diff", path, options, adaptation, self.values, self._checkpoint_id)
            compared = loading.compare(self.sync)
        found, validated = compared.found, compared.validated
        return CheckpointDiff(
            path,
            [leaf.name for leaf, _ in validated.pairs] + found.skipped,
            found.missing,
            found.unexpected,
            validated.casts,
            mismatched={name: str(error) for name, error in validated.mismatched.items()},
            refused={name: str(error) for name, error in validated.refused.items()},
            near=found.near,
            renamed=compared.renamed,
        )

    @property
    def is_saving(self) -> bool:
        """Whether a save runs in the background."""
        return self._saves.is_saving

    def sync(self) -> None:
        """Waits for the save in flight and raises its error, once. Raises what `Checkpoint.sync` raises."""
        self._saves.sync()


def _checked(options: CheckpointOptions | None) -> CheckpointOptions:
    return checked_options(options) or CheckpointOptions()
