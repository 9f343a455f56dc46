"""What dead processes left, in directories and in buckets."""

from jaxckpt.storage import stores
from jaxckpt.storage.commit import by_marker, temporary


def leftovers(directory: str, name: str | None = None) -> list[temporary.Leftover]:
    """Lists what running or dead processes have in `directory` that is not committed, oldest first.

    Args:
      directory: where to look (not below).
      name: only what was made for checkpoints called `name` or ``<name>-<number>``.

    Raises:
      OSError: with errno.
    """
    find = by_marker.leftovers if stores.is_bucket(directory) else temporary.leftovers
    return find(directory, name)


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes what dead processes left, after putting right a checkpoint that one was replacing when it died.

    Args, as for `leftovers`.

    Returns:
      The paths that were removed.
    """
    remove = by_marker.sweep if stores.is_bucket(directory) else temporary.sweep
    return remove(directory, name)
