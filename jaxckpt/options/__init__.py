"""The options that a user gives: `CheckpointOptions`, and the classes of its arguments."""

from jaxckpt.options.checkpoint_options import CheckpointOptions, checked_options, sharding_callback_of
from jaxckpt.options.orbax_settings import OrbaxSettings
from jaxckpt.options.policies import MaxShardSizePolicy, ShardByTaskPolicy, ShardingPolicy, policy_of

__all__ = [
    "CheckpointOptions",
    "MaxShardSizePolicy",
    "OrbaxSettings",
    "ShardByTaskPolicy",
    "ShardingPolicy",
    "checked_options",
    "policy_of",
    "sharding_callback_of",
]
