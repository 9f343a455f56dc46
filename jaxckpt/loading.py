"""One restore of the values of a Checkpoint, or one comparison with a checkpoint: who the targets are, and what happens to them."""

from collections.abc import Callable
from typing import Any

from jaxckpt import telemetry
from jaxckpt.leaf_kinds.registry import is_same
from jaxckpt.options import CheckpointOptions
from jaxckpt.restoring.adapting import Adaptation
from jaxckpt.restoring.carrying_out import carry_out
from jaxckpt.restoring.restore import Compared, Loaded, Restore
from jaxckpt.saving.save import call_of
from jaxckpt.translate import to_orbax
from jaxckpt.tree import flatten, optimizers
from jaxckpt.tree.named_values import NamedValues


class Loading:
    """The values of a Checkpoint as the targets of one restore. The caller holds the lock of the Checkpoint."""

    def __init__(
        self,
        action: str,
        path: str,
        options: CheckpointOptions,
        adaptation: Adaptation,
        named: NamedValues,
        checkpoint_id: int,
    ) -> None:
        """Checks the options. `restore` or `compare` comes next.

        Args:
          action: the call: "restore", "read" or "diff".
          path: path of the checkpoint.
          options: how to restore.
          adaptation: the differences between values and stored leaves that the caller allows.
          named: the values.
          checkpoint_id: `id` of the Checkpoint; see `Saver`.

        Raises:
          ValueError: the device does not exist.
        """
        translation = to_orbax(options)
        self._call = call_of(action, path, options, translation.array_settings, adaptation.details())
        self._path = path
        self._io_process, self._read_once = translation.io_process, translation.read_once_per_job
        self._memory = translation.array_settings.memory_limit_bytes
        self._skips_slots = options.experimental_skip_slot_variables
        self._adaptation = adaptation
        self._named = named
        self._checkpoint_id = checkpoint_id
        self._values: dict[str, Any] = {}
        self._flats: dict[str, flatten.Flat] = {}

    def restore(self, sync: Callable[[], None], *, with_counter: bool) -> Loaded:
        """Restores the values, on every process of the job or on none.

        Args:
          sync: waits for the save in flight.
          with_counter: whether to read the save counter too. It is not set.

        Raises:
          BaseException: as `Checkpoint.restore`.
        """
        with telemetry.restore(self._call.action, self._path) as transfer, self._begin() as restore:
            targets = self._meet(restore, sync)
            loaded = restore.load(
                targets,
                self._slots(),
                with_counter=with_counter,
                adaptation=self._adaptation,
                memory=self._memory,
                transfer=transfer,
            )
            carry_out(self._named.changes(self._values, self._flats, loaded.new, is_same), restore.agree)
        return loaded

    def compare(self, sync: Callable[[], None]) -> Compared:
        """Compares the values with the checkpoint, without reading data.

        Args:
          sync: waits for the save in flight.

        Raises:
          BaseException: as `Checkpoint.diff`.
        """
        with self._begin() as restore:
            return restore.compare(self._meet(restore, sync), self._slots())

    def _begin(self) -> Restore:
        return Restore(self._call, self._path, self._io_process, self._read_once)

    def _meet(self, restore: Restore, sync: Callable[[], None]) -> list[flatten.Leaf]:
        def targets() -> list[flatten.Leaf]:
            sync()
            self._values.update(self._named.current())
            self._flats.update(self._named.flats(self._checkpoint_id, self._values))
            return [leaf for flat in self._flats.values() for leaf in flat.leaves]

        return restore.meet(targets, self._adaptation.rename)

    def _slots(self) -> set[str]:
        """Returns the names of the slot variables that keep their values."""
        return optimizers.slot_names(self._values, self._flats.values()) if self._skips_slots else set()
