"""One restore's reading: everything is validated, then read, converted and placed in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxckpt._lib.groups import groups
from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.restoring import placement
from jaxckpt.restoring.conversion import Conversion, Rule
from jaxckpt.restoring.matching import Pair, Source
from jaxckpt.restoring.validation import Validator
from jaxckpt.tree.kinds import refusal

# Arrays are read and placed in groups, so that the host holds no second copy of a large model.
_GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class New:
    """New values of targets.

    Attributes:
      values: by name of the leaf, each of the kind, dtype and sharding of its target.
      cast: names of the leaves whose stored dtype was another one.
    """

    values: dict[str, Any]
    cast: list[str]


@quiet_gc()
def load(pairs: Sequence[Pair], stored: Source, *, cast: bool = False) -> New:
    """Validates all pairs, then reads and places them.

    Args:
      pairs: targets and their stored leaves.
      stored: the checkpoint.
      cast: convert arrays of another dtype of the same kind.

    Raises:
      ValueError: a stored shape, dtype or kind is not the target's, or a value does not fit; names the leaf and both sides.
      CorruptCheckpointError: stored data is damaged.
      Exception: what JAX raised about a leaf, with the name of the leaf.
    """
    arrays = [pair for pair in pairs if not pair[1].is_string]
    infos = stored.infos([leaf for _, leaf in arrays])
    validator = Validator(stored.path, cast=cast)
    conversions: dict[str, Conversion] = {}
    for target, leaf in pairs:
        try:
            conversion = validator.check(target, leaf, infos.get(leaf.param_name))
        except ValueError:
            if (reason := refusal(target.value, "restore")) is not None:
                raise TypeError(f"{target.name}: {reason}") from None
            raise
        if conversion is not None:
            conversions[leaf.param_name] = conversion
    values = {target.name: stored.string(leaf) for target, leaf in pairs if leaf.is_string}
    # Without any array as well: the data files are checked with the first group.
    for group in list(groups(arrays, lambda pair: stored.nbytes(pair[1]), _GROUP_BYTES)) or [[]]:
        values.update(placement.load_group(group, infos, stored, conversions))
    return New(values, [each.name for each in conversions.values() if each.rule is Rule.CAST])
