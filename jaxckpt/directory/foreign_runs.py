"""Recognises checkpoints of other programs (TensorFlow, Orbax's CheckpointManager, Flax) by the names of their files."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxckpt.errors import CheckpointError
from jaxckpt.storage import orbax_runs, stores
from jaxckpt.storage.item import digests, tree_metadata

_INDEX = ".index"
_TENSORFLOW_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}", re.DOTALL)
_FLAX = "checkpoint"
# How many of the newest steps are looked into before a directory counts as one without foreign checkpoints.
_LOOKS = 3


@dataclass(frozen=True)
class ForeignRun:
    """The checkpoints of another program.

    Attributes:
      program: name of the program.
      directory: directory of the checkpoints.
      names: names of the checkpoints, oldest first.
      advice: a sentence that tells how to go on from the newest one.
    """

    program: str
    directory: str
    names: Sequence[str]
    advice: str

    @property
    def is_tensorflow(self) -> bool:
        """Whether the checkpoints are TensorFlow's. jaxckpt never saves into a directory with such checkpoints."""
        return self.program == "TensorFlow"

    def __str__(self) -> str:
        shown = self.names[-3:]
        more = f"{len(self.names) - len(shown)} more, " if len(shown) < len(self.names) else ""
        return (
            f"{self.directory} holds {self.program} checkpoints ({more}{', '.join(map(repr, shown))}), "
            f"but not one of this manager. {self.advice}"
        )


def is_tensorflow(path: str) -> bool:
    """Whether `path` is the prefix of a TensorFlow checkpoint."""
    return stores.is_file(index_of(path))


def index_of(prefix: str) -> str:
    """Returns the path of the index file of the TensorFlow checkpoint with this prefix."""
    return prefix + _INDEX


def tensorflow_prefixes(names: Iterable[str]) -> list[str]:
    """Returns the prefixes of the TensorFlow checkpoints among the names in a directory, oldest first."""
    names = set(names)
    data = {match[1] for name in names if (match := _TENSORFLOW_DATA.fullmatch(name))}
    return sorted((prefix for prefix in data if index_of(prefix) in names), key=_number)


def _number(name: str) -> tuple[int, str]:
    found = re.search(r"(\d{1,18})$", name, re.ASCII)
    return int(found[1]) if found else -1, name


def tensorflow_error(directory: str, prefixes: Sequence[str]) -> CheckpointError:
    """Returns the error for an operation that would change a directory of TensorFlow's checkpoints.

    Args:
      directory: the directory.
      prefixes: names of TensorFlow's checkpoints there, oldest first.
    """
    newest = stores.join(directory, prefixes[-1])
    return CheckpointError(
        f"{directory} holds TensorFlow checkpoints (the newest is {newest}). Nothing was changed: jaxckpt neither replaces "
        f"TensorFlow's state file nor uses the numbers of its checkpoints. {_tensorflow_advice(newest)}"
    )


def refuse_prefix(path: str) -> None:
    """Raises CheckpointError if `path` is the prefix of a TensorFlow checkpoint."""
    if is_tensorflow(path):
        raise tensorflow_error(os.path.dirname(stores.absolute(path)), [os.path.basename(path)])


def _tensorflow_advice(newest: str) -> str:
    return (
        f"To continue from them, choose another directory: restore with checkpoint.restore({newest!r}), and save, or make the manager, "
        "in the other directory."
    )


def find(directory: str, names: Iterable[str]) -> ForeignRun | None:
    """Returns the checkpoints of another program in a directory; None if there are none.

    Args:
      directory: the directory.
      names: the names in the directory.

    Raises:
      OSError: an entry of the directory cannot be read.
    """
    names = list(names)
    if prefixes := tensorflow_prefixes(names):
        advice = _tensorflow_advice(stores.join(directory, prefixes[-1]))
        return ForeignRun("TensorFlow", directory, prefixes, f"jaxckpt does not save there. {advice}")
    for prefix, group in sorted(orbax_runs.steps(names).items(), key=lambda item: -len(item[1])):
        recognise = _flax if prefix == _FLAX else _orbax
        for name in reversed(group[-_LOOKS:]):
            if (found := recognise(directory, name, group)) is not None:
                return found
    return None


def _flax(directory: str, name: str, group: Sequence[str]) -> ForeignRun | None:
    path = stores.join(directory, name)
    if stores.is_directory(path):
        return _orbax(directory, name, group, "Flax")
    advice = (
        f"To go on from the newest, load it with flax.training.checkpoints.restore_checkpoint({directory!r}, target), "
        "put the values into the Checkpoint, and save."
    )
    return ForeignRun("Flax", directory, group, advice)


def _orbax(directory: str, name: str, group: Sequence[str], program: str = "Orbax") -> ForeignRun | None:
    path = stores.join(directory, name)
    try:
        inside = set(stores.names(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if digests.FILE in inside:
        # This is a checkpoint of jaxckpt under another name.
        return None
    if tree_metadata.FILE in inside:
        return ForeignRun(program, directory, group, _restore(path))
    items = [os.path.join(path, item) for item in sorted(inside) if not item.startswith("_")]
    trees = [item for item in items if stores.is_file(os.path.join(item, tree_metadata.FILE))]
    return ForeignRun(program, directory, group, _restore(*trees)) if trees else None


def _restore(*paths: str) -> str:
    calls = " or ".join(f"checkpoint.restore({path!r})" for path in paths)
    return f"This manager starts anew and saves beside them. To go on from the newest: {calls}."
