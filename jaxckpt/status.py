"""`CheckpointLoadStatus`: the names that a restore matched, and the assertions that TensorFlow's load status offers."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self


class CheckpointLoadStatus:
    """The result of `Checkpoint.restore` and `Checkpoint.read` (TensorFlow: `tf.train.Checkpoint.restore`'s status object).

    If a restore left something out, the program should say that it knows: by one of the assertions, or by `expect_partial`. If it does
    not, this object issues a warning, once, when it is garbage-collected.

    Attributes:
      missing: names of targets that the checkpoint does not have; they kept their values.
      unexpected: names of stored leaves for which there is no target.
      cast: names of leaves that were stored in another dtype of the same kind and converted, as ``cast=True`` allowed.
    """

    def __init__(
        self,
        path: str | None,
        matched: Sequence[str],
        missing: Sequence[str],
        unexpected: Sequence[str],
        cast: Sequence[str] = (),
        near: Mapping[str, str] | None = None,
    ) -> None:
        """Creates the status; `Checkpoint.restore` does this.

        Args:
          path: path of the checkpoint; None if the caller passed None, so that nothing was restored.
          matched: names of the targets that were found.
          missing: names of targets that the checkpoint does not have.
          unexpected: names of stored leaves for which there is no target.
          cast: names of leaves that were converted.
          near: for some of the missing names, a stored name that is much like it.
        """
        self._path = path
        self._matched = len(matched)
        self._near = dict(near or {})
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.cast: tuple[str, ...] = tuple(cast)
        self._warning: Any = None
        if path is not None and (missing or unexpected):
            self._warning = weakref.finalize(self, _warn, self._describe())

    def assert_consumed(self) -> Self:
        """Asserts that every target was in the checkpoint, and that every stored leaf has a target.

        Returns:
          This object.

        Raises:
          AssertionError: the message names the targets and leaves that did not match.
        """
        self._acknowledge()
        if self.missing or self.unexpected:
            raise AssertionError(self._describe())
        return self

    def assert_existing_objects_matched(self) -> Self:
        """Asserts that every target was in the checkpoint. Stored leaves without a target are fine.

        Returns:
          This object.

        Raises:
          AssertionError: the message names the targets that were not in the checkpoint.
        """
        self._acknowledge()
        if self.missing:
            raise AssertionError(f"{self._path}: not in the checkpoint: {self._missing()}")
        return self

    def assert_nontrivial_match(self) -> Self:
        """Asserts that at least one leaf matched, besides `save_counter`.

        Returns:
          This object.

        Raises:
          AssertionError: the message names the targets and the stored leaves.
        """
        self._acknowledge()
        if not self._matched:
            raise AssertionError(f"{self._path}: nothing in the checkpoint matched. {self._describe()}")
        return self

    def expect_partial(self) -> Self:
        """Declares that a partial match is intended, so that no warning is issued.

        Returns:
          This object.
        """
        if self._warning is not None:
            self._warning.detach()
        return self

    def initialize_or_restore(self, session: None = None) -> None:
        """Does nothing: the values exist and are restored already (TensorFlow needs it for graphs and sessions).

        Args:
          session: ignored.
        """

    def run_restore_ops(self, session: None = None) -> None:
        """Does nothing: the values are restored already (TensorFlow needs it for graphs and sessions).

        Args:
          session: ignored.
        """

    def _acknowledge(self) -> None:
        if self._path is None:
            raise AssertionError("No checkpoint specified (the path was None); nothing is being restored.")
        self.expect_partial()

    def _describe(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"not in the checkpoint (they kept their values): {self._missing()}")
        if self.unexpected:
            parts.append(f"in the checkpoint, but not asked for: {_listing(self.unexpected)}")
        return f"{self._path}: " + "; ".join(parts)

    def _missing(self) -> str:
        """Returns the missing names, with similar stored names."""
        near = self._near
        return _listing([f"{name} (did you mean {near[name]}?)" if name in near else name for name in self.missing])

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
