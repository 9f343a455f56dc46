"""Answers what a manager's schedule asks: what is saved, and whether a policy wants to save. The same on every process of a job."""

import functools
from collections.abc import Callable

from jaxckpt.directory import policies
from jaxckpt.directory.ask import ask, file_process
from jaxckpt.directory.listing import Listing
from jaxckpt.directory.policies import CheckpointInfo, SaveDecisionPolicy
from jaxckpt.job.agree import meeting
from jaxckpt.job.preemption import NOTICE
from jaxckpt.options import CheckpointOptions
from jaxckpt.storage.policies import alternatives, decision_context, is_orbax


class ManagerAnswers:
    """The answers for one call of `CheckpointManager.save`. See `Answers` for the methods."""

    def __init__(
        self, listing: Listing, directory: str, options: CheckpointOptions | None, is_saving: Callable[[], bool]
    ) -> None:
        """Notes whom to ask.

        Args:
          listing: the manager's checkpoints.
          directory: their directory, for messages.
          options: they name the process that does the file access.
          is_saving: tells whether a save runs in the background.
        """
        self._listing = listing
        self._directory = directory
        self._options = options
        self._is_saving = is_saving

    def saved(self) -> tuple[list[CheckpointInfo], list[int]]:
        """See `Answers`. One process looks."""
        return self._listing.saved(self._options)

    def wants_save(self, policy: SaveDecisionPolicy, now: CheckpointInfo, previous: list[CheckpointInfo]) -> bool:
        """See `Answers`.

        Orbax's own policies are asked on every process, as Orbax does it: they look at the same data, or agree among themselves. That
        needs no messages in most steps. Any other policy could answer differently, so one process asks it and tells the others. An
        ``AnySavePolicy`` may combine both. Orbax counts how often some of its policies are asked, and makes names of signals from the
        count, so such a policy must never be asked on one process only.
        """
        context = decision_context(
            is_saving_in_progress=self._is_saving(),
            reached_preemption=NOTICE.poll(),
            process=file_process(self._options) or 0,
        )

        def wants(one: SaveDecisionPolicy) -> bool:
            return policies.wants_save(one, now, previous, context)

        if not meeting.several() or is_orbax(policy):
            return wants(policy)
        return any(
            wants(one)
            if is_orbax(one)
            else ask(
                "CheckpointManager.save", self._directory, self._options, functools.partial(wants, one), always=True
            )
            for one in alternatives(policy)
        )
