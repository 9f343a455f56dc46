"""Checks the files of an Orbax checkpoint against its digests, for `verify`."""

import os
from collections.abc import Callable

from jaxckpt.errors import CheckpointError, CorruptCheckpointError
from jaxckpt.storage import stores
from jaxckpt.storage.item import digests
from jaxckpt.storage.stores.inside import Inside

# Path of a file, and what is wrong with it.
Damage = tuple[str, str]


def files(inside: Inside, noted: digests.Digests | None, read: Callable[[str], bytes]) -> tuple[int, list[Damage]]:
    """Checks sizes of all files, and the content of metadata files.

    Args:
      inside: the files.
      noted: their digests; None if plain Orbax wrote them.
      read: returns the content of a metadata file, by its name.

    Returns:
      Number of the files, and what is damaged.
    """
    if noted is None:
        return len(stores.tree(inside.directory)), []
    found = [(os.path.join(inside.directory, name), what) for name, what in digests.check_sizes(inside, noted)]
    damaged = {where for where, _ in found}
    for name, expected in noted.items():
        path = os.path.join(inside.directory, name)
        if path not in damaged and not expected.is_of_data:
            try:
                digests.check(inside.directory, name, read(name), noted)
            except CheckpointError as error:
                found.append(_damage(error, path))
    return len(noted) + 1, found


def exchanged(inside: Inside, noted: digests.Digests | None) -> list[Damage]:
    """Looks for data files that were exchanged for others.

    Args:
      inside: the files.
      noted: their digests; None if plain Orbax wrote them.
    """
    found = []
    for name, expected in (noted or {}).items():
        if expected.is_of_data:
            try:
                digests.check_data(inside, name, noted or {})
            except CheckpointError as error:
                found.append(_damage(error, os.path.join(inside.directory, name)))
    return found


def _damage(error: CheckpointError, path: str) -> Damage:
    if isinstance(error, CorruptCheckpointError) and error.where is not None and error.what is not None:
        return error.where, error.what
    return path, str(error)
