"""The part that all modes of a job of several processes share: the processes compare their values before anything is done."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxckpt.job import structures
from jaxckpt.job.agree import leaves as agreed
from jaxckpt.job.agree.call import Contribution
from jaxckpt.job.plan import Plan
from jaxckpt.storage.item.content import Snapshot
from jaxckpt.tree.flatten import Leaf


class Several:
    """The base class of such modes. See `Mode` for the methods."""

    # Index of the process that does the file access for all; None if each process writes its own share.
    _io_process: int | None = None

    def plan(self, leaves: Sequence[Leaf]) -> Plan:
        """Returns a plan: the IO process owns every piece that it has, or every process owns its share; see `Mode`."""
        return structures.plan_for(leaves, jax.process_index(), self._io_process)

    def agree_to_save(
        self, leaves: Sequence[Leaf], taken: Snapshot, plan: Plan | None, facts: Mapping[str, Any]
    ) -> Contribution:
        """Describes the values; see `Mode`."""
        assert plan is not None
        # The empty nodes of a snapshot, such as an empty list, come after the leaves.
        empty = ((entry.name, "empty") for entry in taken.entries[len(leaves) :])
        return agreed.stored_values(leaves, plan, empty, facts)

    def agree_to_restore(self, targets: Sequence[Leaf]) -> Contribution:
        """Describes the targets; see `Mode`."""
        return agreed.targets(targets, self.plan(targets))
