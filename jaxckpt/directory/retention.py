"""Which checkpoints a manager lists, deletes and keeps for ever: the rules, on the records of a state file. Pure.

A checkpoint on disk is in one of four states:

* **listed** (`Records.entries`): a manager's; deleted once `max_to_keep` newer ones are listed;
* **kept** (`Records.kept`, a line of the state file each): never deleted; it may be listed as well, until newer ones
  push it out. These are the checkpoints that `keep_checkpoint_every_n_hours` preserved, and those of which it is not
  certain that nothing preserved them;
* neither, and committed after everything that is listed: a crash left it unregistered. It is **adopted**: listed at the
  place where it was committed. If it would be due for deletion at once it is not what a crash leaves, so it is kept as
  well. Where nothing that is listed exists any more (a lost state file), all are adopted;
* neither, and older: a user took it out of the list. It is **left alone**: neither restored nor deleted.

So retention deletes only what a state file listed, and what was preserved stays preserved although it is not listed.
A state file that the user (or another program) wrote is obeyed: what was committed before it was written is not adopted.
Each later writer carries that on (`Records.borders`), whatever it saves.
"""

import math
from collections.abc import Callable, Collection, Sequence, Set

from jaxckpt._lib.numbering import prefix_of
from jaxckpt.directory.state_file.records import Records

_HOUR = 3600.0


def adopt(
    records: Records,
    on_disk: Collection[str],
    max_to_keep: int | None,
    commit_time: Callable[[str], float],
    *,
    own: Sequence[str],
    gone: Collection[str] = (),
    after: float = -math.inf,
) -> list[str]:
    """Lists the checkpoints of a manager that are on disk but in no list, if a crash left them so.

    Args:
      records: changed in place.
      on_disk: names of the manager's committed checkpoints, ascending by number.
      max_to_keep: as of the manager.
      commit_time: name → when that checkpoint was committed, in seconds; 0.0 for not known.
      own: the names of the manager that are listed, oldest first.
      gone: listed names of which nothing exists any more.
      after: those committed until then are not adopted: the user knew of them when writing the state file.

    Returns:
      The names of those that are listed now.
    """
    unlisted = [name for name in on_disk if name not in records.entries and name not in records.kept]
    if not unlisted:
        return []
    times = {name: (name not in gone and commit_time(name)) or at for name, at in records.entries.items()}
    times |= {name: commit_time(name) for name in unlisted}
    if records.entries.keys() - set(gone):
        after = max([after, *(times[name] for name in own[-1:])])
        unlisted = [name for name in unlisted if times[name] > after]
    order = list(records.entries)
    for name in sorted(unlisted, key=times.__getitem__):
        place = len(order)
        while place and times[order[place - 1]] > times[name]:
            place -= 1
        order.insert(place, name)
    records.entries = {name: records.entries.get(name, times[name]) for name in order}
    listed = [name for name in order if name in set(on_disk)]
    records.kept.update(set(unlisted) - set(newest(listed, max_to_keep)))
    return unlisted


def bound(
    records: Records,
    gone: Set[str],
    written: Callable[[], float],
    on_disk: Callable[[], dict[str, list[str]]],
    commit_time: Callable[[str], float],
) -> None:
    """Notes in the records what must not be adopted, before something is saved that makes the state file say less.

    Where nothing that is listed exists any more, the disk decides, and nothing is noted.

    Args:
      records: as they were read; changed in place.
      gone: listed names of which nothing exists any more.
      written: returns when the state file was written, in seconds.
      on_disk: returns name before the number → names of the committed checkpoints in the directory.
      commit_time: as for `adopt`.
    """
    if not records.entries.keys() - gone:
        return
    if records.edited:
        records.raise_border("", written())
    elif records.unsealed:
        # jaxckpt 0.1 wrote such files. A crash leaves one checkpoint of a name; where there are more, the user took
        # them out of the list.
        for prefix, names in on_disk().items():
            listed = [name for name in records.entries if prefix_of(name) == prefix]
            times = [(name not in gone and commit_time(name)) or records.entries[name] for name in listed]
            newest_time = times[-1] if times else max(records.entries.values())
            unknown = [name for name in names if name not in records.entries and name not in records.kept]
            if sum(commit_time(name) > newest_time for name in unknown) > 1:
                records.raise_border(prefix, written())
            elif not listed:
                records.raise_border(prefix, newest_time)
    last = {prefix_of(name): at for name, at in records.entries.items() if name not in gone}
    for name in gone & records.entries.keys():
        owner, at = prefix_of(name), records.entries[name]
        if owner is not None and at > last.get(owner, -math.inf):
            records.raise_border(owner, at)


def newest(listed: Sequence[str], max_to_keep: int | None) -> Sequence[str]:
    """Returns the names that stay if nothing new is saved.

    Args:
      listed: names of the manager's listed checkpoints, oldest first.
      max_to_keep: how many stay; None for all.
    """
    return listed if max_to_keep is None else listed[-max_to_keep:]


def behind(records: Records, now: float) -> float:
    """Returns how many seconds the clock is behind what it showed when a checkpoint was preserved, at least; 0.0 if it is not."""
    return max(0.0, records.last_preserved - now)


def set_clock_back(records: Records, listed: Collection[str], now: float) -> float:
    """Makes the records right for a clock that shows an earlier time than it did when a checkpoint was preserved.

    How long ago anything was saved is not known then, so what is listed is kept, and the periods start again.

    Args:
      records: changed in place if need be.
      listed: names of the manager's listed checkpoints.
      now: what the clock shows.

    Returns:
      How many seconds the clock is behind, at least; 0.0 if it is not.
    """
    seconds = behind(records, now)
    if not seconds:
        return 0.0
    records.last_preserved = now
    records.kept.update(listed)
    records.borders = {prefix: min(at, now) for prefix, at in records.borders.items()}
    records.entries = {name: min(timestamp, now) for name, timestamp in records.entries.items()}
    return seconds


def evict(records: Records, listed: Sequence[str], max_to_keep: int | None, every_n_hours: float | None) -> list[str]:
    """Unlists what is preserved and returns what is to be deleted, which stays listed until it has been.

    Args:
      records: changed in place.
      listed: names of the manager's listed checkpoints, oldest first.
      max_to_keep: how many stay; None for all.
      every_n_hours: one is preserved if it was saved at least that long after the last preserved one; None for none.
    """
    doomed = []
    for name in listed[: len(listed) - len(newest(listed, max_to_keep))]:
        timestamp = records.entries[name]
        if name in records.kept:
            del records.entries[name]
        elif every_n_hours is not None and timestamp - every_n_hours * _HOUR >= records.last_preserved:
            del records.entries[name]
            records.kept.add(name)
            records.last_preserved = timestamp
        else:
            doomed.append(name)
    return doomed
