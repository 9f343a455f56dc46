"""Process 0 compares the calls and the leaves of all processes."""

from collections.abc import Callable, Mapping, Sequence

from jaxckpt.errors import ProcessError
from jaxckpt.job.agree.call import Call, Contribution, named
from jaxckpt.job.protocol.meeting_messages import Card

# Asks a process for the descriptions of its leaves or, if the second argument is true, for the contents of its host leaves.
Ask = Callable[[int, bool], Sequence[tuple[str, str]]]


def compare_calls(call: Call, cards: Mapping[int, Card], me: int) -> None:
    """Compares the calls of all processes.

    Args:
      call: the call of this process.
      cards: the card of every process.
      me: index of this process.

    Raises:
      ProcessError: the processes do not all make the same call with the same options.
    """
    mine = cards[me].call
    different = {process: card.call for process, card in cards.items() if card.call != mine}
    if not different:
        return
    process = min(different)
    theirs = different[process]
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if "call" in names:
        found = f"process {me} calls {mine['call']}, process {process} calls {theirs['call']}"
    else:
        found = "; ".join(
            f"{name} is {mine.get(name)} on process {me} and {theirs.get(name)} on process {process}" for name in names
        )
    raise ProcessError(
        f"{call}: the processes disagree: {found}. Every process has to make the same call with the same options.",
        {me, *different},
    )


def compare_trees(call: Call, contribution: Contribution, cards: Mapping[int, Card], me: int, ask: Ask) -> None:
    """Compares the leaves of all processes.

    Args:
      call: the call of this process.
      contribution: the contribution of this process.
      cards: the card of every process.
      me: index of this process.
      ask: asks a process for its leaves.

    Raises:
      ProcessError: the processes do not all have the same leaves. The message names the first difference.
    """
    mine = cards[me].digest
    different = sorted(process for process, card in cards.items() if card.digest != mine)
    if not different:
        return
    process = different[0]
    theirs = ask(process, False)
    found = _first_difference(contribution.leaves(), theirs, me, process)
    raise ProcessError(
        f"{call}: the trees differ: {found}. Every process has to pass the same leaves, with the same shapes, dtypes and "
        "shardings.",
        {me, *different},
    )


def compare_host_leaves(
    call: Call, contribution: Contribution, cards: Mapping[int, Card], me: int, ask: Ask
) -> list[str]:
    """Returns a warning for every host leaf whose value differs between processes.

    Args:
      call: the call of this process.
      contribution: the contribution of this process.
      cards: the card of every process.
      me: index of this process.
      ask: asks a process for the contents of its host leaves.
    """
    mine = cards[me].hosts
    different = sorted(process for process, card in cards.items() if card.hosts != mine)
    leaves: dict[str, list[int]] = {}
    # Eight processes are enough for a warning; the job may have a thousand.
    for process in different[:8]:
        for (name, here), (_, there) in zip(contribution.host_contents(), ask(process, True), strict=False):
            if here != there:
                leaves.setdefault(name, []).append(process)
    return [
        f"{call}: {name} has another value on {named(processes).lower()} than on process {me}. The value of process {me} is stored. "
        "Values in host memory (numpy arrays, Python scalars, strings, arrays of local devices) should be the same on every process."
        for name, processes in leaves.items()
    ]


def _first_difference(mine: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]], me: int, them: int) -> str:
    here, there = dict(mine), dict(theirs)
    for name, text in mine:
        if name not in there:
            return f"{name} is on process {me} only, not on process {them}"
        if there[name] != text:
            return f"{name} is {text} on process {me}, and {there[name]} on process {them}"
    for name, _ in theirs:
        if name not in here:
            return f"{name} is on process {them} only, not on process {me}"
    return f"the order of the leaves is not the same on processes {me} and {them}"
