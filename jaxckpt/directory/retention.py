"""The rules for which checkpoints a manager lists, deletes and keeps for ever. Pure functions on the records of a state file.

A checkpoint on disk is in one of four states:

* **listed** (`Records.entries`): it is deleted once `max_to_keep` newer ones of its manager are listed, unless the manager's
  preservation policy keeps it;
* **kept** (`Records.kept`, one line of the state file each): it is never deleted. It may be listed too, until newer ones
  push it out of the list. These are the checkpoints that `keep_checkpoint_every_n_hours` preserved, and those that it may have
  preserved;
* neither, and committed after all listed ones: a crash left it unregistered. It is **adopted**: it is inserted into the list
  by the time of its commit. If it would be deleted at once, a crash cannot be the reason, so it is kept too. If all listed
  checkpoints are gone (or the state file is lost), all unlisted ones are adopted;
* neither, and older: a user removed it from the list. It is **left alone**: neither restored nor deleted.

So retention deletes only checkpoints that a state file listed, and a preserved checkpoint stays even if it is not listed.
A state file that the user or another program wrote is obeyed: checkpoints committed before it was written are not adopted.
Later writers record this in the file (`Records.borders`).
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
    """Adopts the checkpoints of a manager that a crash left on disk without registering them.

    Args:
      records: the records; changed in place.
      on_disk: names of the manager's committed checkpoints, ascending by number.
      max_to_keep: how many checkpoints the manager keeps; None for all.
      commit_time: returns when the checkpoint of a name was committed, in seconds since the epoch; 0.0 if unknown.
      own: the manager's listed names, oldest first.
      gone: listed names whose checkpoints no longer exist.
      after: checkpoints committed up to this time (seconds since the epoch) are not adopted, because the user knew them when the state
        file was written.

    Returns:
      The names of the adopted checkpoints.
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
    """Raises the borders (`Records.borders`), so that checkpoints which the user removed from the list are not adopted later.

    This must happen before the state file is replaced, because the new file no longer shows that the user changed the old one. If all
    listed checkpoints are gone, all checkpoints on disk may be adopted, and the borders stay.

    Args:
      records: the records as they were read; changed in place.
      gone: listed names whose checkpoints no longer exist.
      written: returns when the state file was written, in seconds since the epoch.
      on_disk: returns the names of the committed checkpoints in the directory, by the part of the name before the number.
      commit_time: returns when the checkpoint of a name was committed, in seconds since the epoch; 0.0 if unknown.
    """
    if not records.entries.keys() - gone:
        return
    if records.edited:
        records.raise_border("", written())
    elif records.unsealed:
        # jaxckpt 0.1 wrote files without a seal. A crash leaves at most one unlisted checkpoint per prefix. If there are
        # more, the user removed them from the list.
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
    """Returns the newest listed names, which retention does not delete.

    Args:
      listed: the manager's listed names, oldest first.
      max_to_keep: how many to return; None for all.
    """
    return listed if max_to_keep is None else listed[-max_to_keep:]


def behind(records: Records, now: float) -> float:
    """Returns how many seconds, at least, the clock was set back since a checkpoint was preserved; 0.0 if it was not.

    Args:
      records: the records with the time of the last preservation.
      now: the current time, in seconds since the epoch.
    """
    return max(0.0, records.last_preserved - now)


def set_clock_back(records: Records, listed: Collection[str], now: float) -> float:
    """Adapts the records if the clock was set back since a checkpoint was preserved.

    Then the ages of the checkpoints are unknown, so all listed ones are kept for ever, and a new period of
    `keep_checkpoint_every_n_hours` starts.

    Args:
      records: the records; changed in place if the clock was set back.
      listed: the manager's listed names.
      now: the current time, in seconds since the epoch.

    Returns:
      How many seconds, at least, the clock was set back; 0.0 if it was not.
    """
    seconds = behind(records, now)
    if not seconds:
        return 0.0
    records.last_preserved = now
    records.kept.update(listed)
    records.borders = {prefix: min(at, now) for prefix, at in records.borders.items()}
    records.entries = {name: min(timestamp, now) for name, timestamp in records.entries.items()}
    return seconds


def evict(records: Records, listed: Sequence[str], due: Set[str], every_n_hours: float | None) -> list[str]:
    """Returns the names of the checkpoints to delete, and removes preserved ones from the list.

    The returned names stay listed until their checkpoints have been deleted.

    Args:
      records: the records; changed in place.
      listed: the manager's listed names, oldest first.
      due: the names that are due for deletion.
      every_n_hours: a checkpoint is preserved if it was saved at least this many hours after the last preserved one; None to preserve
        none.
    """
    doomed = []
    for name in listed:
        if name not in due:
            continue
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
