"""What Orbax's policies (``ocp.checkpoint_managers``) are called with, and what they are made of."""

from collections.abc import Sequence
from typing import Any

# Where Orbax defines its policies. They decide alike on all processes that give them the same arguments, or agree among themselves.
_ORBAX = "orbax."


def preservation_context() -> Any:
    """Returns the context for ``PreservationPolicy.should_preserve``."""
    import orbax.checkpoint as ocp

    return ocp.checkpoint_managers.PreservationContext()


def decision_context(*, is_saving_in_progress: bool, reached_preemption: bool, process: int | None) -> Any:
    """Returns the context for ``SaveDecisionPolicy.should_save``.

    Args:
      is_saving_in_progress: whether a save runs in the background.
      reached_preemption: whether the job is about to be ended.
      process: the process whose view counts where processes see different things, such as the time. None if each process is asked.
    """
    import orbax.checkpoint as ocp

    return ocp.checkpoint_managers.DecisionContext(
        is_saving_in_progress=is_saving_in_progress,
        reached_preemption=reached_preemption,
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=process),
    )


def alternatives(policy: Any) -> Sequence[Any]:
    """Returns the save decision policies of which Orbax's ``AnySavePolicy`` asks one after the other until one wants to save.

    Returns the policy itself if it is another one.
    """
    import orbax.checkpoint as ocp

    if type(policy) is not ocp.checkpoint_managers.AnySavePolicy:
        return (policy,)
    return [part for each in policy.policies for part in alternatives(each)]


def is_orbax(policy: Any) -> bool:
    """Whether a policy, and every policy that it combines, is one of Orbax's own."""
    if not type(policy).__module__.startswith(_ORBAX):
        return False
    return all(map(is_orbax, getattr(policy, "policies", ())))
