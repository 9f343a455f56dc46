"""What a restore matched, and the assertions that TensorFlow's load status offers."""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Self


class CheckpointLoadStatus:
    """The result of `Checkpoint.restore` and `Checkpoint.read` (TensorFlow: `tf.train.Checkpoint.restore`'s status object).

    A restore that left something out and was not acknowledged, by an assertion or by `expect_partial`, warns once when this object
    is dropped.

    Attributes:
      missing: names of targets that the checkpoint does not have; they kept their values.
      unexpected: names of stored leaves that nothing asked for.
      cast: names of leaves that were stored in another dtype of the same kind and converted, as ``cast=True`` allowed.
    """

    def __init__(
        self,
        path: str | None,
        matched: Sequence[str],
        missing: Sequence[str],
        unexpected: Sequence[str],
        cast: Sequence[str] = (),
    ) -> None:
        """Made by restore; `path` is None when there was nothing to restore."""
        self._path = path
        self._matched = len(matched)
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.cast: tuple[str, ...] = tuple(cast)
        self._warning: Any = None
        if path is not None and (missing or unexpected):
            self._warning = weakref.finalize(self, _warn, self._describe())

    def assert_consumed(self) -> Self:
        """Asserts that every target was in the checkpoint and every stored leaf was asked for.

        Returns:
          This object.

        Raises:
          AssertionError: naming the leaves that were not.
        """
        self._acknowledge()
        if self.missing or self.unexpected:
            raise AssertionError(self._describe())
        return self

    def assert_existing_objects_matched(self) -> Self:
        """Asserts that every target was in the checkpoint; stored leaves that nothing asked for do not matter.

        Returns:
          This object.

        Raises:
          AssertionError: naming the targets that were not.
        """
        self._acknowledge()
        if self.missing:
            raise AssertionError(f"{self._path}: not in the checkpoint: {_listing(self.missing)}")
        return self

    def assert_nontrivial_match(self) -> Self:
        """Asserts that anything but `save_counter` was matched.

        Returns:
          This object.

        Raises:
          AssertionError: naming targets and stored leaves.
        """
        self._acknowledge()
        if not self._matched:
            raise AssertionError(f"{self._path}: nothing in the checkpoint matched. {self._describe()}")
        return self

    def expect_partial(self) -> Self:
        """Declares that not everything has to match, which silences the warning. Returns this object."""
        if self._warning is not None:
            self._warning.detach()
        return self

    def initialize_or_restore(self, session: None = None) -> None:
        """Does nothing: values exist, and are restored, already (TensorFlow needs it for graphs and sessions)."""

    def run_restore_ops(self, session: None = None) -> None:
        """Does nothing: values are restored already (TensorFlow needs it for graphs and sessions)."""

    def _acknowledge(self) -> None:
        if self._path is None:
            raise AssertionError("No checkpoint specified (the path was None); nothing is being restored.")
        self.expect_partial()

    def _describe(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"not in the checkpoint (they kept their values): {_listing(self.missing)}")
        if self.unexpected:
            parts.append(f"in the checkpoint, but not asked for: {_listing(self.unexpected)}")
        return f"{self._path}: " + "; ".join(parts)

    def __repr__(self) -> str:
        counts = f"{self._matched} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        if self.cast:
            counts += f", {len(self.cast)} cast"
        return f"<CheckpointLoadStatus {self._path}: {counts}>"


def _listing(names: Sequence[str], limit: int = 20) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _warn(description: str) -> None:
    warnings.warn(
        f"Partial restore of {description}. Call expect_partial() on the status that restore() returns to accept this, or "
        "assert_consumed() to be sure. (A manager's restore_or_initialize() returns no status: use "
        "checkpoint.restore(manager.latest_checkpoint) instead.)",
        UserWarning,
        stacklevel=3,
    )
