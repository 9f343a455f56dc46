"""The names that a restore matched (`CheckpointLoadStatus`, with TensorFlow's assertions), or would match (`CheckpointDiff`)."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxckpt._lib import html_tree, user_code

# Names that a message lists. The attributes have all.
_LISTED = 20


class CheckpointLoadStatus:
    """The result of `Checkpoint.restore` and `Checkpoint.read` (TensorFlow: `tf.train.Checkpoint.restore`'s status object).

    If a restore left something out, the program should say that it knows: by one of the assertions, or by `expect_partial`. If it does
    not, this object issues a warning about the line of the restore, once, when it is garbage-collected.

    Attributes:
      missing: names of targets that the checkpoint does not have; they kept their values.
      unexpected: names of stored leaves for which there is no target.
      cast: names of leaves that were stored in another dtype of the same kind and converted, as ``cast=True`` allowed.
      mismatched: names of targets that kept their values because the stored leaf has another shape, as ``skip_mismatched=True`` allowed.
    """

    def __init__(
        self,
        path: str | None,
        matched: Sequence[str],
        missing: Sequence[str],
        unexpected: Sequence[str],
        cast: Sequence[str] = (),
        near: Mapping[str, str] | None = None,
        *,
        mismatched: Sequence[str] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Creates the status; `Checkpoint.restore` does this.

        Args:
          path: path of the checkpoint; None if the caller passed None, so that nothing was restored.
          matched: names of the targets that were found.
          missing: names of targets that the checkpoint does not have.
          unexpected: names of stored leaves for which there is no target.
          cast: names of leaves that were converted.
          near: for some of the missing names, a stored name that is much like it.
          mismatched: names of the targets that kept their values because the stored leaf has another shape.
          renamed: the stored names of targets that have another name there.
        """
        self._path = path
        self._matched = tuple(matched)
        self._hints = _hints(missing, near or {}, renamed or {})
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.cast: tuple[str, ...] = tuple(cast)
        self.mismatched: tuple[str, ...] = tuple(mismatched)
        self._warning: Any = None
        if path is not None and (missing or unexpected or mismatched):
            self._warning = weakref.finalize(self, _warn, self._describe(), user_code.line())

    def assert_consumed(self) -> Self:
        """Asserts that every target was restored, and that every stored leaf has a target.

        Returns:
          This object.

        Raises:
          AssertionError: the message names the targets and leaves that did not match.
        """
        self._acknowledge()
        if self.missing or self.unexpected or self.mismatched:
            raise AssertionError(self._describe())
        return self

    def assert_existing_objects_matched(self) -> Self:
        """Asserts that every target was restored. Stored leaves without a target are fine.

        Returns:
          This object.

        Raises:
          AssertionError: the message names the targets that were not in the checkpoint, or have another shape there.
        """
        self._acknowledge()
        if self.missing or self.mismatched:
            raise AssertionError(f"{self._path}: {'; '.join(self._kept())}")
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
        parts = self._kept()
        if self.unexpected:
            parts.append(f"in the checkpoint, but not asked for: {_listing(self.unexpected)}")
        return f"{self._path}: " + "; ".join(parts)

    def _kept(self) -> list[str]:
        """Returns what is to be said of the targets that kept their values."""
        parts = []
        if self.missing:
            parts.append(f"not in the checkpoint (they kept their values): {_listing(self.missing, self._hints)}")
        if self.mismatched:
            parts.append(f"of another shape in the checkpoint (they kept their values): {_listing(self.mismatched)}")
        return parts

    def __repr__(self) -> str:
        counts = f"{len(self._matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        if self.cast:
            counts += f", {len(self.cast)} cast"
        if self.mismatched:
            counts += f", {len(self.mismatched)} mismatched"
        return f"<CheckpointLoadStatus {self._path}: {counts}>"

    def _repr_html_(self) -> str:
        """Returns a folded tree of the names, for notebooks."""
        rows = _rows(self._matched, self.missing, self.unexpected, self.cast, self.mismatched)
        return html_tree.of(repr(self)[1:-1], rows)


class CheckpointDiff:
    """The result of `Checkpoint.diff`: what a restore would do. ``str()`` of it is a readable text.

    Attributes:
      path: path of the checkpoint.
      matched: names of the targets that a restore would give a new value; those in `cast` are among them.
      missing: names of targets that the checkpoint does not have; they would keep their values.
      unexpected: names of stored leaves for which there is no target.
      cast: names of leaves that are stored in another dtype of the same kind. A restore needs ``cast=True`` for them.
      mismatched: names of targets whose stored leaf has another shape. A restore needs ``skip_mismatched=True``, and they would keep their
        values.
      refused: names of targets whose stored leaf is of another kind. A restore would fail; leave them out, or give them other names.
      reasons: for each name in `cast`, the stored dtype and the target's; for each one in `mismatched` and `refused`, both sides in words.
    """

    def __init__(
        self,
        path: str,
        matched: Sequence[str],
        missing: Sequence[str],
        unexpected: Sequence[str],
        cast: Mapping[str, str],
        *,
        mismatched: Mapping[str, str],
        refused: Mapping[str, str],
        near: Mapping[str, str],
        renamed: Mapping[str, str],
    ) -> None:
        """Creates the result; `Checkpoint.diff` does this.

        Args:
          path: path of the checkpoint.
          matched: names of the targets that fit.
          missing: names of targets that the checkpoint does not have.
          unexpected: names of stored leaves for which there is no target.
          cast: names of leaves that are stored in another dtype of the same kind, each with both dtypes.
          mismatched: names of targets whose stored leaf has another shape, each with both sides in words.
          refused: names of targets whose stored leaf is of another kind, each with both sides in words.
          near: for some of the missing names, a stored name that is much like it.
          renamed: the stored names of targets that have another name there.
        """
        self.path = path
        self.matched: tuple[str, ...] = tuple(matched)
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.cast: tuple[str, ...] = tuple(cast)
        self.mismatched: tuple[str, ...] = tuple(mismatched)
        self.refused: tuple[str, ...] = tuple(refused)
        self.reasons: dict[str, str] = {**cast, **mismatched, **refused}
        self._hints = _hints(missing, near, renamed)

    def __str__(self) -> str:
        parts = [
            (
                "not in the checkpoint; they would keep their values",
                [_hinted(name, self._hints) for name in self.missing],
            ),
            ("in the checkpoint, without a target", self.unexpected),
            (
                "of another dtype; restore() and read() with cast=True convert them",
                [f"{name}: {self.reasons[name]}" for name in self.cast],
            ),
            (
                "of another shape; restore() and read() with skip_mismatched=True let them keep their values",
                [self.reasons[name] for name in self.mismatched],
            ),
            ("of another kind; restore() and read() would fail", [self.reasons[name] for name in self.refused]),
        ]
        lines = [f"{self.path}: {self._counts()}"]
        for what, names in parts:
            if names:
                lines += [f"{len(names)} {what}:", *(f"  {name}" for name in names[:_LISTED])]
                lines += [f"  and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<CheckpointDiff {self.path}: {self._counts()}>"

    def _repr_html_(self) -> str:
        """Returns a folded tree of the names, for notebooks."""
        rows = _rows(self.matched, self.missing, self.unexpected, self.cast, (*self.mismatched, *self.refused))
        words = {name: (f"cast {self.reasons[name]}",) for name in self.cast}
        return html_tree.of(repr(self)[1:-1], [(name, words.get(name, word)) for name, word in rows])

    def _counts(self) -> str:
        words = ("matched", "missing", "unexpected", "cast", "mismatched", "refused")
        counts = {word: len(getattr(self, word)) for word in words}
        return ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "nothing to compare"


def _hints(missing: Sequence[str], near: Mapping[str, str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Returns what helps to find a missing leaf, by the name of the target.

    Args:
      missing: names of the targets.
      near: for some of them, a stored name that is much like it.
      renamed: the stored names of targets that have another name there.
    """
    found: dict[str, str] = {}
    for name in missing:
        hints = [f"looked for as {renamed[name]}"] if name in renamed else []
        hints += [f"did you mean {near[name]}?"] if name in near else []
        if hints:
            found[name] = "; ".join(hints)
    return found


def _hinted(name: str, hints: Mapping[str, str]) -> str:
    return f"{name} ({hints[name]})" if name in hints else name


def _rows(
    matched: Sequence[str],
    missing: Sequence[str],
    unexpected: Sequence[str],
    cast: Sequence[str],
    mismatched: Sequence[str],
) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the leaves of a tree for a notebook: names, and what happened to each."""
    words = dict.fromkeys(matched, "matched") | dict.fromkeys(cast, "cast")
    words |= dict.fromkeys(missing, "missing") | dict.fromkeys(mismatched, "mismatched")
    # With a rename, a stored leaf may have the name of a target that is restored from another one.
    rows = [*words.items(), *((name, "unexpected") for name in unexpected)]
    return [(name, (word,)) for name, word in rows]


def _listing(names: Sequence[str], hints: Mapping[str, str] | None = None) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(_hinted(name, hints or {}) for name in names[:_LISTED]) + rest


def _warn(description: str, restored: user_code.Line | None) -> None:
    user_code.warn(
        f"Partial restore of {description}. Call expect_partial() on the status that restore() or read() returns to accept this, or "
        "assert_consumed() to be sure. (A manager's restore_or_initialize() returns no status: use "
        "checkpoint.restore(manager.latest_checkpoint) instead.)",
        UserWarning,
        restored,
    )
