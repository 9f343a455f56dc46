"""Policies that divide data into files: jaxckpt's own, TensorFlow's of the same names, or a callback in TensorFlow's form."""

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from jaxckpt._lib.arguments import byte_count
from jaxckpt.options import sharding
from jaxckpt.options.sharding import ShardingCallback


@dataclass(frozen=True)
class ShardByTaskPolicy:
    """One set of data files per process, the default (TensorFlow: `tf.train.experimental.ShardByTaskPolicy`)."""


@dataclass(frozen=True)
class MaxShardSizePolicy:
    """Limits the size of each data file (TensorFlow: `tf.train.experimental.MaxShardSizePolicy`).

    A restore does not need the policy. A save refuses an array if one element of it is larger than the limit.

    Attributes:
      max_shard_size: largest size of a data file, in bytes; positive.

    Raises:
      TypeError: the size is not an int.
      ValueError: the size is not positive.
    """

    max_shard_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_shard_size", byte_count("max_shard_size", self.max_shard_size, 1))


ShardingPolicy: TypeAlias = ShardByTaskPolicy | MaxShardSizePolicy | ShardingCallback


def policy_of(given: Any) -> ShardingPolicy | None:
    """Returns the policy or callback of an `experimental_sharding_callback`.

    Args:
      given: the option's value.

    Returns:
      jaxckpt's policy of the same name if `given` is one of TensorFlow's policies; otherwise `given`.

    Raises:
      TypeError: the size of a TensorFlow policy is not an int.
      ValueError: the size of a TensorFlow policy is not positive.
    """
    match sharding.tensorflows(given):
        case "ShardByTaskPolicy":
            return ShardByTaskPolicy()
        case "MaxShardSizePolicy":
            return MaxShardSizePolicy(given.max_shard_size)
    return cast(ShardingPolicy | None, given)
