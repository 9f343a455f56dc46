"""Opens whatever can be restored from: an Orbax checkpoint, a TensorFlow checkpoint, or a safetensors file."""

from collections.abc import Collection

from jaxckpt.storage import foreign, stores
from jaxckpt.storage.opened import StoredCheckpoint
from jaxckpt.storage.safetensors.source import INDEX_SUFFIX, SUFFIX, SafetensorsFile
from jaxckpt.storage.source import OpenCheckpoint
from jaxckpt.storage.tensorflow.source import TensorFlowCheckpoint


def open_checkpoint(
    path: str,
    timeout_secs: float = 1200.0,
    *,
    check_data: bool = True,
    has_targets: bool = False,
    names: Collection[str] | None = None,
) -> OpenCheckpoint:
    """Opens what is at a path.

    Args:
      path: path of a checkpoint, such as ``ckpt-3``, which may be TensorFlow's; or of a safetensors file, or of its index. If
        ``x.safetensors`` does not exist, but ``x.safetensors.index.json`` does, that is opened.
      timeout_secs: time limit of every call, in seconds.
      check_data: see `StoredCheckpoint`.
      has_targets: see `StoredCheckpoint`.
      names: see `StoredCheckpoint`.

    Raises:
      ValueError: the checkpoint has several items, and `names` do not say which one is meant.
      FileNotFoundError: nothing is at the path, or the checkpoint was deleted meanwhile.
      CheckpointError: something else than a checkpoint is at the path.
      CorruptCheckpointError: the checkpoint is damaged.
      OSError: the checkpoint cannot be read.
    """
    path = stores.spelled(path)
    if path.endswith((SUFFIX, INDEX_SUFFIX)):
        for found in (path, path.removesuffix(SUFFIX) + INDEX_SUFFIX):
            if stores.is_file(found) and not stores.is_directory(found):
                return SafetensorsFile(found)
    try:
        return StoredCheckpoint(path, timeout_secs, check_data=check_data, has_targets=has_targets, names=names)
    except FileNotFoundError:
        if not foreign.is_tensorflow_prefix(path):
            raise
    return TensorFlowCheckpoint(path)
