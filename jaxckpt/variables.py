"""The functions that open a checkpoint for reading (TensorFlow: `tf.train.load_checkpoint`, `list_variables`, `load_variable`)."""

from typing import overload

import numpy as np

from jaxckpt import storage
from jaxckpt._lib.arguments import StrPath, also_named
from jaxckpt.directory import latest, paths
from jaxckpt.reader import Reader


@overload
def load_checkpoint(path: StrPath) -> Reader: ...
@overload
def load_checkpoint(*, ckpt_dir_or_file: StrPath) -> Reader: ...
@also_named("path", "ckpt_dir_or_file")
def load_checkpoint(path: StrPath) -> Reader:
    """Opens a checkpoint for reading without targets (TensorFlow: `tf.train.load_checkpoint`).

    Args:
      path: path of a checkpoint, or of a directory with a state file; then its latest checkpoint is opened. TensorFlow's keyword
        `ckpt_dir_or_file` is accepted too.

    Returns:
      The reader of the checkpoint.

    Raises:
      FileNotFoundError: nothing exists at `path`.
      CheckpointError: `path` is not a checkpoint.
      CorruptCheckpointError: the checkpoint is damaged.
    """
    text = paths.spelled(paths.checked_path(path, "path"))
    if not storage.is_checkpoint(text) and (found := latest.latest_checkpoint(text)) is not None:
        text = found
    return Reader(text)


@overload
def list_variables(path: StrPath) -> list[tuple[str, tuple[int, ...]]]: ...
@overload
def list_variables(*, ckpt_dir_or_file: StrPath) -> list[tuple[str, tuple[int, ...]]]: ...
@also_named("path", "ckpt_dir_or_file")
def list_variables(path: StrPath) -> list[tuple[str, tuple[int, ...]]]:
    """Returns name and shape of every leaf, sorted by name (TensorFlow: `tf.train.list_variables`).

    Args:
      path: path of a checkpoint, or of a directory with a state file; see `load_checkpoint`.

    Raises:
      CheckpointError: as `load_checkpoint`.
      OSError: as `load_checkpoint`.
    """
    reader = load_checkpoint(path)
    return [(name, tuple(shape)) for name, shape in reader.get_variable_to_shape_map().items()]


@overload
def load_variable(path: StrPath, name: str) -> np.ndarray: ...
@overload
def load_variable(*, ckpt_dir_or_file: StrPath, name: str) -> np.ndarray: ...
@also_named("path", "ckpt_dir_or_file")
def load_variable(path: StrPath, name: str) -> np.ndarray:
    """Returns one leaf as a numpy array (TensorFlow: `tf.train.load_variable`).

    Args:
      path: path of a checkpoint, or of a directory with a state file; see `load_checkpoint`.
      name: name of the leaf.

    Raises:
      KeyError: the checkpoint has no leaf of this name.
      CheckpointError: as `load_checkpoint` and `Reader.get_tensor`.
      OSError: as `load_checkpoint` and `Reader.get_tensor`.
    """
    return load_checkpoint(path).get_tensor(name)
