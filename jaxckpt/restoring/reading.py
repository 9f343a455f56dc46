"""Reads the leaves of one restore: validates all of them, and then reads, converts and places them in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxckpt._lib.groups import groups
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt._lib.transfer import Transfer
from jaxckpt.leaf_kinds.conversion import Conversion, Rule
from jaxckpt.leaf_kinds.kind import OtherKindError, Terms
from jaxckpt.leaf_kinds.registry import kind_of, refusal, stored_kind
from jaxckpt.restoring import placement
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
    """

    values: dict[str, Any]
    cast: list[str]


@quiet_gc()
def load(
    pairs: Sequence[Pair],
    stored: Source,
    *,
    cast: bool = False,
    memory: int = GROUP_BYTES,
    transfer: Transfer | None = None,
) -> New:
    """Validates all pairs, then reads and places them.

    Args:
      pairs: targets and their stored leaves.
      stored: the checkpoint.
      cast: whether to convert arrays of another dtype of the same kind.
      memory: at most so many bytes of arrays are in memory on their way to devices. The part of one device is never divided, and parts
        that need the same chunks stay together, so that these are read once.
      transfer: counts the bytes of the new values; None if nobody asks for them.

    Raises:
      ValueError: a stored shape, dtype or kind differs from the target's, or a value does not fit. The message names the leaf and both
        sides.
      CorruptCheckpointError: stored data is damaged.
      Exception: JAX's error about a leaf. The message names the leaf.
    """
    arrays = [pair for pair in pairs if not pair[1].is_string]
    infos = stored.infos([leaf for _, leaf in arrays])
    terms = Terms(stored.path, cast, jax.process_count() == 1)
    conversions: dict[str, Conversion] = {}
    for target, leaf in pairs:
        info = infos.get(leaf.param_name)
        try:
            conversion = kind_of(target.value).validate(target, leaf, info, terms)
        except (OtherKindError, ValueError) as error:
            if (reason := refusal(target.value, "restore")) is not None:
                raise TypeError(f"{target.name}: {reason}") from None
            if isinstance(error, OtherKindError):
                raise _other_kind((target, leaf), info, stored.path) from None
            raise
        if conversion is not None:
            # Not by the stored leaf: several targets may have one, under different names.
            conversions[target.name] = conversion
    values = {
        target.name: placement.load_text(target, leaf, stored.string(leaf)) for target, leaf in pairs if leaf.is_string
    }
    transfer = transfer or Transfer()
    transfer.expect(sum(stored.nbytes(leaf) for _, leaf in arrays))
    # There is always a first group, even an empty one: the data files are checked with it.
    for group in list(groups(arrays, lambda pair: stored.nbytes(pair[1]), memory)) or [[]]:
        values.update(placement.load_group(group, infos, stored, conversions, memory))
        transfer.add(sum(stored.nbytes(leaf) for _, leaf in group))
    return New(values, [each.name for each in conversions.values() if each.rule is Rule.CAST])


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
