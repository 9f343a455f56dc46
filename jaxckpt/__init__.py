"""TensorFlow's checkpoint options for JAX, on Orbax: who touches the file system, whether training waits, what runs afterwards.

>>> import jaxckpt
>>> checkpoint = jaxckpt.Checkpoint(model=params, step=0)
>>> path = checkpoint.save("/checkpoints/ckpt", jaxckpt.CheckpointOptions(enable_async=True))
"""

import importlib as _importlib
import threading as _threading
import typing as _typing

if _typing.TYPE_CHECKING:
    # Type checkers cannot read `_HOME_OF`. A test compares the two.
    from jaxckpt import orbax as orbax
    from jaxckpt import testing as testing
    from jaxckpt.checkpoint import Checkpoint as Checkpoint
    from jaxckpt.config import CheckpointConfig as CheckpointConfig
    from jaxckpt.config import load_config as load_config
    from jaxckpt.directory.following import checkpoints_iterator as checkpoints_iterator
    from jaxckpt.directory.latest import CheckpointState as CheckpointState
    from jaxckpt.directory.latest import get_checkpoint_state as get_checkpoint_state
    from jaxckpt.directory.latest import latest_checkpoint as latest_checkpoint
    from jaxckpt.directory.policies import PreservationPolicy as PreservationPolicy
    from jaxckpt.directory.policies import SaveDecisionPolicy as SaveDecisionPolicy
    from jaxckpt.errors import CheckpointError as CheckpointError
    from jaxckpt.errors import ConfigError as ConfigError
    from jaxckpt.errors import CorruptCheckpointError as CorruptCheckpointError
    from jaxckpt.errors import ProcessError as ProcessError
    from jaxckpt.leaf_kinds.described import LeafMetadata as LeafMetadata
    from jaxckpt.manager import CheckpointManager as CheckpointManager
    from jaxckpt.options import CheckpointOptions as CheckpointOptions
    from jaxckpt.options import MaxShardSizePolicy as MaxShardSizePolicy
    from jaxckpt.options import OrbaxSettings as OrbaxSettings
    from jaxckpt.options import ShardByTaskPolicy as ShardByTaskPolicy
    from jaxckpt.options.sharding import ShardableTensor as ShardableTensor
    from jaxckpt.options.sharding import ShardingCallback as ShardingCallback
    from jaxckpt.preemption import PreemptionCheckpointHandler as PreemptionCheckpointHandler
    from jaxckpt.preemption import TerminationConfig as TerminationConfig
    from jaxckpt.reader import Reader as Reader
    from jaxckpt.status import CheckpointDiff as CheckpointDiff
    from jaxckpt.status import CheckpointLoadStatus as CheckpointLoadStatus
    from jaxckpt.storage import Problem as Problem
    from jaxckpt.storage import VerifyReport as VerifyReport
    from jaxckpt.storage import verify as verify
    from jaxckpt.storage.settings import WriteSettings as WriteSettings
    from jaxckpt.translate import OrbaxTranslation as OrbaxTranslation
    from jaxckpt.translate import to_orbax as to_orbax
    from jaxckpt.variables import list_variables as list_variables
    from jaxckpt.variables import load_checkpoint as load_checkpoint
    from jaxckpt.variables import load_variable as load_variable

__version__ = "0.1.0"

# The public names, by the module that defines them. A module is imported when its first name is used, so that a program
# which imports jaxckpt starts as fast as one which does not.
_HOME_OF = {
    name: f"jaxckpt.{module}"
    for module, names in {
        "checkpoint": ("Checkpoint",),
        "config": ("CheckpointConfig", "load_config"),
        "directory.following": ("checkpoints_iterator",),
        "directory.latest": ("CheckpointState", "get_checkpoint_state", "latest_checkpoint"),
        "directory.policies": ("PreservationPolicy", "SaveDecisionPolicy"),
        "errors": ("CheckpointError", "ConfigError", "CorruptCheckpointError", "ProcessError"),
        "leaf_kinds.described": ("LeafMetadata",),
        "manager": ("CheckpointManager",),
        "options": ("CheckpointOptions", "MaxShardSizePolicy", "OrbaxSettings", "ShardByTaskPolicy"),
        "options.sharding": ("ShardableTensor", "ShardingCallback"),
        "orbax": ("orbax",),
        "preemption": ("PreemptionCheckpointHandler", "TerminationConfig"),
        "reader": ("Reader",),
        "status": ("CheckpointDiff", "CheckpointLoadStatus"),
        "storage": ("Problem", "VerifyReport", "verify"),
        "storage.settings": ("WriteSettings",),
        "testing": ("testing",),
        "translate": ("OrbaxTranslation", "to_orbax"),
        "variables": ("list_variables", "load_checkpoint", "load_variable"),
    }.items()
    for name in names
}

__all__ = ["__version__", *sorted(_HOME_OF)]

# If two threads import different modules at the same time, each may see the other's half-finished ones.
_import_lock = _threading.RLock()


# Type checkers would take every name for a public one: a misspelt name, too.
if not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'jaxckpt' has no attribute {name!r}")
        with _import_lock:
            module = _importlib.import_module(home)
            value = module if home == f"jaxckpt.{name}" else getattr(module, name)
            globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
