"""TensorFlow's checkpoint options for JAX, on Orbax: who touches the file system, whether training waits, what runs afterwards.

>>> import jaxckpt
>>> checkpoint = jaxckpt.Checkpoint(model=params, step=0)
>>> path = checkpoint.save("/checkpoints/ckpt", jaxckpt.CheckpointOptions(enable_async=True))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxckpt import testing
    from jaxckpt.checkpoint import Checkpoint
    from jaxckpt.config import CheckpointConfig, load_config
    from jaxckpt.errors import CheckpointError, ConfigError, CorruptCheckpointError, ProcessError
    from jaxckpt.manager import CheckpointManager
    from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy
    from jaxckpt.reader import Reader, list_variables, load_checkpoint, load_variable
    from jaxckpt.state_file import checkpoints_iterator, get_checkpoint_state, latest_checkpoint
    from jaxckpt.status import CheckpointLoadStatus
    from jaxckpt.storage import verify
    from jaxckpt.translate import to_orbax

__version__ = "0.1.0"

# A module is imported when its first name is used, so that a program which imports jaxckpt starts as fast as one which does not.
_HOMES = {
    "checkpoint": ("Checkpoint",),
    "config": ("CheckpointConfig", "load_config"),
    "errors": ("CheckpointError", "ConfigError", "CorruptCheckpointError", "ProcessError"),
    "manager": ("CheckpointManager",),
    "options": ("CheckpointOptions", "MaxShardSizePolicy", "OrbaxSettings", "ShardByTaskPolicy"),
    "reader": ("Reader", "list_variables", "load_checkpoint", "load_variable"),
    "state_file": ("checkpoints_iterator", "get_checkpoint_state", "latest_checkpoint"),
    "status": ("CheckpointLoadStatus",),
    "storage": ("verify",),
    "translate": ("to_orbax",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointLoadStatus",
    "CheckpointManager",
    "CheckpointOptions",
    "ConfigError",
    "CorruptCheckpointError",
    "MaxShardSizePolicy",
    "OrbaxSettings",
    "ProcessError",
    "Reader",
    "ShardByTaskPolicy",
    "__version__",
    "checkpoints_iterator",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_config",
    "load_variable",
    "testing",
    "to_orbax",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "testing":  # A package, not a name in one.
        return importlib.import_module("jaxckpt.testing")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'jaxckpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxckpt.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
