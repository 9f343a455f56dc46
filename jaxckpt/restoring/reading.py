"""Reads the leaves of one restore: validates all of them, and then reads, converts and places them in groups."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.leaf_kinds.conversion import Conversion, Rule
from jaxckpt.leaf_kinds.kind import OtherKindError, OtherShapeError, Terms
from jaxckpt.leaf_kinds.registry import kind_of, refusal, stored_kind
from jaxckpt.restoring import placement
from jaxckpt.restoring.alike import alike, divided
from jaxckpt.restoring.matching import Pair
from jaxckpt.storage.arrays.zarr_metadata import ArrayInfo
from jaxckpt.storage.source import Source

# By default, arrays are read and placed in groups of so many bytes, so that host memory does not hold a second copy of a large model.
GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class New:
    """New values of targets.

    Attributes:
      values: by name of the leaf; each has the kind, dtype and sharding of its target.
      cast: names of the leaves whose stored dtype differs from the target's.
      mismatched: names of the leaves whose stored shape differs from the target's. They have no new value.
    """

    values: dict[str, Any]
    cast: list[str]
    mismatched: list[str]


@dataclass
class Validated:
    """Pairs, by the result of the validation.

    Attributes:
      pairs: those that fit.
      infos: shapes and dtypes of the stored arrays, by Orbax's name.
      conversions: conversions of the arrays that need one, by name of the target.
      mismatched: by name of the target, the error about a stored shape that differs.
      refused: by name of the target, any other error.
    """

    pairs: list[Pair] = field(default_factory=list)
    infos: dict[str, ArrayInfo] = field(default_factory=dict)
    conversions: dict[str, Conversion] = field(default_factory=dict)
    mismatched: dict[str, ValueError] = field(default_factory=dict)
    refused: dict[str, ValueError | TypeError] = field(default_factory=dict)

    @property
    def cast(self) -> list[str]:
        """Names of the leaves whose dtype is converted because the caller asked for it."""
        return list(self.casts)

    @property
    def casts(self) -> dict[str, str]:
        """The stored and the new dtype of these leaves, as a text, by name."""
        return {each.name: each.change for each in self.conversions.values() if each.rule is Rule.CAST}


def validate(pairs: Sequence[Pair], stored: Source, *, cast: bool, tolerant: bool = False) -> Validated:
    """Validates pairs, without reading data.

    Args:
      pairs: targets and their stored leaves.
      stored: the checkpoint.
      cast: whether arrays of another dtype of the same kind may be converted.
      tolerant: whether to go on after an error other than that of a shape.

    Raises:
      ValueError: unless `tolerant`, a stored dtype or kind differs from the target's. The message names the leaf and both sides.
      TypeError: unless `tolerant`, a target cannot be restored.
    """
    found = Validated(infos=stored.infos([leaf for _, leaf in pairs if not leaf.is_string]))
    terms = Terms(stored.path, cast, jax.process_count() == 1)
    infos = found.infos
    # One pair of each group is looked at. What fits as it is needs no closer look.
    others = [group.pairs for group in alike(pairs, infos) if not _fits(group.pairs[0], group.info, terms)]
    if not others:
        found.pairs = list(pairs)
        return found
    # Errors and conversions tell the names of their leaves, and come in the order of the pairs.
    left = {id(pair) for group in others for pair in group}
    for pair in pairs:
        if id(pair) not in left:
            found.pairs.append(pair)
            continue
        target, leaf = pair
        try:
            conversion = _conversion(pair, infos.get(leaf.param_name), terms)
        except OtherShapeError as error:
            found.mismatched[target.name] = error
        except (ValueError, TypeError) as error:
            if not tolerant:
                raise
            found.refused[target.name] = error
        else:
            found.pairs.append(pair)
            if conversion is not None:
                # Not by the stored leaf: several targets may have one, under different names.
                found.conversions[target.name] = conversion
    return found


def _fits(pair: Pair, info: ArrayInfo | None, terms: Terms) -> bool:
    """Whether a stored leaf fits its target without a conversion."""
    target, leaf = pair
    try:
        return kind_of(target.value).validate(target, leaf, info, terms) is None
    except (OtherKindError, ValueError, TypeError):
        return False


def _conversion(pair: Pair, info: ArrayInfo | None, terms: Terms) -> Conversion | None:
    target, leaf = pair
    try:
        return kind_of(target.value).validate(target, leaf, info, terms)
    except (OtherKindError, ValueError) as error:
        if (reason := refusal(target.value, "restore")) is not None:
            raise TypeError(f"{target.name}: {reason}") from None
        found = _other_kind(pair, info, terms.path) if isinstance(error, OtherKindError) else error
        if leaf.name == target.name:
            raise found from None
        raise type(found)(f"{found} The leaf is stored as {leaf.name!r}.") from None


@quiet_gc()
def load(
    pairs: Sequence[Pair],
    stored: Source,
    *,
    cast: bool = False,
    skip_mismatched: bool = False,
    memory: int = GROUP_BYTES,
    transfer: Transfer | None = None,
) -> New:
    """Validates all pairs, then reads and places them.

    Args:
      pairs: targets and their stored leaves.
      stored: the checkpoint.
      cast: whether to convert arrays of another dtype of the same kind.
      skip_mismatched: whether to leave out leaves of another shape.
      memory: at most so many bytes of arrays are in memory on their way to devices. The part of one device is never divided, and parts
        that need the same chunks stay together, so that these are read once.
      transfer: counts the bytes of the new values; None if they are not counted.

    Raises:
      ValueError: a stored shape, dtype or kind differs from the target's, or a value does not fit. The message names the leaf and both
        sides.
      CorruptCheckpointError: stored data is damaged.
      Exception: JAX's error about a leaf. The message names the leaf.
    """
    found = validate(pairs, stored, cast=cast)
    if found.mismatched and not skip_mismatched:
        error = next(iter(found.mismatched.values()))
        raise ValueError(f"{error} To let it keep its value, pass skip_mismatched=True to restore() or read().")
    texts = [pair for pair in found.pairs if pair[1].is_string]
    arrays = [pair for pair in found.pairs if not pair[1].is_string] if texts else found.pairs
    values = {target.name: placement.load_text(target, leaf, stored.string(leaf)) for target, leaf in texts}
    transfer = transfer or Transfer()
    infos, conversions = found.infos, found.conversions
    # A leaf that is converted is a group by itself.
    parts = divided(arrays, infos, conversions.keys(), memory)
    transfer.expect(sum([group.nbytes for part in parts for group in part]))
    # There is always a first part, even an empty one: the data files are checked with it.
    for part in parts:
        values.update(placement.load_part(part, infos, stored, conversions, memory))
        transfer.add(sum([group.nbytes for group in part]))
    return New(values, found.cast, list(found.mismatched))


def _other_kind(pair: Pair, info: ArrayInfo | None, path: str) -> ValueError:
    target, leaf = pair
    value = target.value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        described = f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    else:
        described = f"a {type(value).__name__}"
    return ValueError(
        f"{target.name}: the target is {described}, but {path} holds {stored_kind(leaf).describe_stored(leaf, info)}. "
        "Use a target of the kind that was saved."
    )
