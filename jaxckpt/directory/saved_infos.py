"""Reads what policies are told about the checkpoints of a directory: step, time and metrics of each."""

import datetime
import json
import logging
from collections.abc import Mapping
from typing import Any

from jaxckpt import storage
from jaxckpt._lib import numbering
from jaxckpt.directory.policies import CheckpointInfo
from jaxckpt.errors import CheckpointError
from jaxckpt.storage import SaveFacts, stores

_logger = logging.getLogger("jaxckpt")


class SavedInfos:
    """Reads each checkpoint once."""

    def __init__(self) -> None:
        # Path → the identity of the checkpoint there, and what it says.
        self._known: dict[str, tuple[object, SaveFacts]] = {}

    def of(self, root: str, times: Mapping[str, float]) -> dict[str, CheckpointInfo]:
        """Returns what policies are told about checkpoints, by name. Damaged ones and those that are gone are left out.

        Args:
          root: the directory, as an absolute path.
          times: when each was saved, in seconds since the epoch, by name. The result has the same order.
        """
        known, self._known = self._known, {}
        infos = {}
        for name, saved in times.items():
            path = stores.join(root, name)
            try:
                identity = storage.identity(path)
                found = known.get(path)
                facts = found[1] if found is not None and found[0] == identity else storage.read_facts(path)
            except (OSError, CheckpointError) as error:
                # Of a damaged checkpoint nothing is known, so no policy decides about it. Only the user may go back to an older one.
                _logger.warning("Step and metrics of %s are unknown, so no policy can decide about it: %s", path, error)
                continue
            self._known[path] = identity, facts
            number = numbering.number_of(name)
            step = number if facts.step is None else facts.step
            infos[name] = CheckpointInfo(step, time_of(saved), facts.metrics, number)
        return infos


def time_of(seconds: float) -> datetime.datetime:
    """Returns a moment in UTC.

    Args:
      seconds: seconds since the epoch.
    """
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def as_json(info: CheckpointInfo) -> list[Any]:
    """Returns a JSON value for another process of the job."""
    # The messages of a job have no NaN, but texts.
    metrics = None if info.metrics is None else json.dumps(dict(info.metrics))
    return [info.step, info.time.timestamp(), metrics, info.number]


def from_json(value: list[Any]) -> CheckpointInfo:
    """Returns what `as_json` was given."""
    step, saved, metrics, number = value
    return CheckpointInfo(step, time_of(saved), None if metrics is None else json.loads(metrics), number)
