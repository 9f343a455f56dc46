"""What jaxckpt tells about its own work: lines of the logger ``jaxckpt``, and events of `jax.monitoring`.

Nothing here may keep a save or a restore from succeeding. docs/observability.md lists all lines and events for users.
"""

from jaxckpt.telemetry.events import within
from jaxckpt.telemetry.operations import deletion, restore
from jaxckpt.telemetry.progress import GoingOn
from jaxckpt.telemetry.save_times import SaveTimes

__all__ = ["GoingOn", "SaveTimes", "deletion", "restore", "within"]
