"""What may be the target of a conversion: not something else than what is written, nor the source itself."""

import difflib
import errno
import os

from jaxckpt import storage
from jaxckpt.directory import foreign_runs
from jaxckpt.storage import stores
from jaxckpt.storage.safetensors import writer
from jaxckpt.storage.safetensors.source import SUFFIX
from jaxckpt.storage.source import OpenCheckpoint

# How much an ending must be like ".safetensors" to be a mistyped one; 1.0 is the same.
_NEAR = 0.85


def refuse_near_miss(target: str) -> None:
    """Refuses a target whose ending is a mistyped ``.safetensors``: it would become a checkpoint. A slash at its end insists on that.

    Args:
      target: the target, as the user gave it.

    Raises:
      ValueError: the ending looks mistyped.
    """
    stem, ending = os.path.splitext(target)
    if ending != SUFFIX and difflib.get_close_matches(ending.lower(), [SUFFIX], cutoff=_NEAR):
        raise ValueError(
            f"{target}: the ending {ending!r} looks like a mistyped {SUFFIX!r}. Give {stem + SUFFIX!r} for a safetensors file, or "
            f"{target + '/'!r} for a checkpoint, which is a directory."
        )


def refuse_existing(target: str, overwrite: bool, *, is_file: bool) -> None:
    """Refuses a target that exists, unless it is to be replaced and is of the form that is written.

    Args:
      target: path of the target.
      overwrite: whether to replace it.
      is_file: whether it becomes a safetensors file.

    Raises:
      FileExistsError: something is there.
      ValueError: a safetensors file cannot be written there.
    """
    if is_file and not stores.is_local(target):
        raise ValueError(f"{target}: safetensors files are written to disks only. Write it there, and copy it.")
    foreign_runs.refuse_prefix(target)
    existing = (
        writer.files_of(target)
        if is_file
        else [target]
        if stores.exists(target) or storage.is_checkpoint(target)
        else []
    )
    if not existing:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, "The target exists already; --overwrite replaces it", existing[0])
    is_sound = not os.path.isdir(existing[0]) if is_file else storage.is_checkpoint(target)
    if not is_sound:
        form = "a safetensors file" if is_file else "a checkpoint"
        raise FileExistsError(
            errno.EEXIST, f"Something else than {form} is there, which is never replaced", existing[0]
        )


def refuse_itself(stored: OpenCheckpoint, target: str, *, is_file: bool) -> None:
    """Refuses a target whose files are the source, hold it or lie in it: the source would be replaced, changed or deleted.

    Args:
      stored: the source.
      target: path of the target.
      is_file: whether it becomes a safetensors file.

    Raises:
      ValueError: it is such a target.
    """
    written = _real(target)
    replaced = [written, *map(_real, writer.files_of(target) if is_file else ())]
    for place in map(_real, stored.places):
        if place in replaced:
            raise ValueError(f"{target} is the source itself, or a part of it. Give another target.")
        if any(_is_inside(place, each) for each in replaced):
            raise ValueError(f"{target} holds the source {place}, which would be deleted. Give another target.")
        if _is_inside(written, place):
            raise ValueError(f"{target} lies in the source {place}, which must not be changed. Give another target.")


def _real(path: str) -> str:
    path = stores.absolute(path)
    return os.path.realpath(path) if stores.is_local(path) else stores.identity(path)


def _is_inside(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
