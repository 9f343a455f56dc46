"""Recognizes paths that are not an Orbax checkpoint of a tree: files of other libraries, directories of checkpoints, broken links.

This only makes error messages better. So it looks only at names and at the first bytes of regular files.
"""

import itertools
import os
import re
import shlex
import stat

from jaxckpt._lib import numbering
from jaxckpt._lib.protobuf_text import TextFormatError, fields, unquoted
from jaxckpt.storage import owner, stores
from jaxckpt.storage.commit import checkpoints, recognition
from jaxckpt.storage.item import description, digests, tree_metadata

# Bounds: the number of names that are looked at in a directory, and the number of bytes that are read of a file.
_MAX_NAMES = 10_000
_FIRST_BYTES = 512
_STATE_BYTES = 1 << 20

_SHOWN = 5
_UNKNOWN_FILE = "it is a file; a checkpoint is a directory."
_SAVE_AGAIN = "Then put the values into a jaxckpt.Checkpoint, and save that."
_TENSORFLOW_PART = re.compile(r"(.+)\.(index|data-\d{5}-of-\d{5})", re.DOTALL)
# The end of every table of LevelDB. In the format V1, a checkpoint is one.
_TABLE_END = bytes.fromhex("57fb808b247547db")
_FLAX_NAME = re.compile(r"checkpoint_(\d+)")


def describe(path: str) -> str | None:
    """Says what is at a path, and how to read it.

    Args:
      path: path at which a checkpoint was expected.

    Returns:
      A sentence that continues "not an Orbax checkpoint: "; None if the file or directory is not recognized, or is in a bucket.
    """
    if not stores.is_local(path):
        return None
    try:
        return _describe(path)
    except OSError:
        return None


def describe_directory(path: str) -> str | None:
    """Says what a directory without checkpoints contains instead. Returns None if it is not recognized, or is in a bucket."""
    return describe(path) if stores.is_local(path) and os.path.isdir(path) else None


def broken_link(path: str) -> str | None:
    """Returns the target of the link at `path`, if the link is broken; otherwise None."""
    if not stores.is_local(path) or not os.path.islink(path) or os.path.exists(path):
        return None
    return os.readlink(path)


def is_tensorflow_prefix(path: str) -> bool:
    """Whether `path` is that of a TensorFlow checkpoint, such as ``ckpt-3``: then there is a file ``ckpt-3.index``."""
    return os.path.isfile(f"{path}.index") if stores.is_local(path) else stores.is_file(f"{path}.index")


def _describe(path: str) -> str | None:
    if is_tensorflow_prefix(path):
        return f"it is a TensorFlow checkpoint ({os.path.basename(path)}.index)."
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return _directory(path)
    return _file(path) if stat.S_ISREG(mode) else "it is neither a file nor a directory."


def _file(path: str) -> str | None:
    name = os.path.basename(path)
    if (part := _TENSORFLOW_PART.fullmatch(name)) and is_tensorflow_prefix(
        prefix := os.path.join(os.path.dirname(path), part[1])
    ):
        return f"it is a part of the TensorFlow checkpoint {prefix}. Pass that: {prefix!r}."
    if _last_bytes(path, len(_TABLE_END)) == _TABLE_END:
        return (
            "it is a TensorFlow checkpoint in the format V1, from before TensorFlow 1.0, which jaxckpt does not read. TensorFlow does "
            f"(tf.train.load_checkpoint({path!r})), and saves in the format V2."
        )
    return _format(name, _first_bytes(path))


def _format(name: str, start: bytes) -> str | None:
    """Says what a file is, by its first bytes and its name."""
    if name.endswith(".eqx"):
        return "it is a file of Equinox. Read it with equinox.tree_deserialise_leaves."
    if start.startswith(b"PK\x03\x04"):
        return _zip(start[30 : 30 + int.from_bytes(start[26:28], "little")])
    if start.startswith(b"\x93NUMPY"):
        return "it is an array of numpy. Read it with numpy.load."
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "it is an HDF5 file, such as Keras writes. Read it with h5py, or keras.models.load_model."
    if len(start) > 9 and start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 1 << 32:
        how = (
            "Pass its path"
            if name.endswith(".safetensors")
            else "Give it a name that ends in .safetensors, and pass that"
        )
        return f"it is a safetensors file. {how}."
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "it is a pickle, such as torch.save writes. Read it with torch.load or pickle.load, if you trust it as code."
    if _is_msgpack_mapping(start):
        if _FLAX_NAME.fullmatch(name):
            return f"it is a checkpoint of flax.training.checkpoints (msgpack). {_convert_flax('its path')}"
        return (
            f"it is a msgpack file, such as Flax writes. Read it with flax.serialization.msgpack_restore. {_SAVE_AGAIN}"
        )
    if re.match(rb"\s*(#[^\n]*\n\s*)*model_checkpoint_path\s*:", start):
        return "it is a state file, which names the checkpoints of its directory. Give the directory, or one of them."
    return _UNKNOWN_FILE if start else "it is an empty file."


def _zip(first_entry: bytes) -> str:
    if first_entry.endswith(b".npy"):
        return "it is an .npz file of numpy. Read it with numpy.load."
    if first_entry in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return "it is a model of Keras. Read it with keras.models.load_model."
    if first_entry.endswith((b"/data.pkl", b"/.format_version")):
        return "it is a file of PyTorch. Read it with torch.load."
    return "it is a zip file; a checkpoint is a directory."


def _is_msgpack_mapping(start: bytes) -> bool:
    """Whether a file starts like a mapping from text in msgpack."""
    skipped = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else 0) if start else 0
    key = start[skipped : skipped + 1]
    return bool(skipped and key) and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA, 0xDB))


def _directory(path: str) -> str | None:
    names = _names(path)
    present = set(names)
    if recognition.is_temporary(path):
        return (
            "it is the temporary directory of a save that was not finished, or still runs. Take a committed checkpoint."
        )
    if digests.FILE in present:
        # This is a damaged checkpoint that jaxckpt wrote.
        return None
    if found := _item_of_orbax(path, names):
        return found
    if description.FILE in present:
        return None
    if found_here := [each for each in names if checkpoints.is_checkpoint(os.path.join(path, each))]:
        return _of_checkpoints(path, found_here)
    if not present.isdisjoint({"saved_model.pb", "saved_model.pbtxt"}):
        return f"it is a SavedModel of TensorFlow. Read it with tf.saved_model.load({path!r})."
    if prefixes := [each.removesuffix(".index") for each in names if each.endswith(".index")]:
        latest = os.path.join(path, _latest_name(path) or _highest(prefixes))
        return f"it is a directory of TensorFlow checkpoints ({_list(prefixes)}). Pass one of them, such as {latest!r}."
    if flax := [each for each in names if _FLAX_NAME.fullmatch(each)]:
        return f"it is a directory of Flax checkpoints ({_list(flax)}). {_convert_flax(repr(path))}"
    if found := _old_orbax(path, names):
        return found
    if ".metadata" in present and any(each.endswith(".distcp") for each in names):
        return "it is a checkpoint of torch.distributed.checkpoint. Read it with PyTorch."
    if not present.isdisjoint({".zarray", "zarr.json"}):
        return "it is an array of a checkpoint. Give the directory of the whole checkpoint."
    for each in names:
        if each.endswith((".safetensors", ".msgpack", ".eqx", ".npz", ".pt", ".pth", ".bin", ".h5", ".keras")):
            inside = _file(os.path.join(path, each))
            if inside is None or inside == _UNKNOWN_FILE:
                return f"it is a directory with the file {each}."
            return f"it is a directory with the file {each}; {inside}"
    if unfinished := [owner.final_name(each) for each in names if recognition.is_temporary_name(each)]:
        return (
            f"no checkpoint has been committed in this directory: a save ({_list(unfinished)}) still runs, or was not finished. If this "
            f"program is saving, wait for it with sync(); otherwise look with `jaxckpt list {shlex.quote(path)}`."
        )
    return None if names else "it is an empty directory."


def _convert_flax(path: str) -> str:
    return f"To convert it, load it with flax.training.checkpoints.restore_checkpoint({path}, target). {_SAVE_AGAIN}"


def _old_orbax(path: str, names: list[str]) -> str | None:
    """Describes a checkpoint of Orbax before 0.5, or an item of one."""
    homes = [path, *(os.path.join(path, name) for name in names)]
    found = [home for home in homes if _is_msgpack_mapping(_first_bytes(os.path.join(home, "checkpoint")))]
    if not found:
        return None
    return (
        "it is of Orbax before 0.5 (one msgpack file called checkpoint). To convert it, load it with "
        f"orbax.checkpoint.PyTreeCheckpointer().restore({found[0]!r}). {_SAVE_AGAIN}"
    )


def _item_of_orbax(path: str, names: list[str]) -> str | None:
    """Describes an item of an Orbax checkpoint that is not a tree, or a checkpoint of such items."""
    if _is_json_item(path):
        return f"it is a JSON item of Orbax. Read it with orbax.checkpoint.JsonCheckpointHandler, or json.load of {path}/metadata."
    if description.FILE not in names:
        return None
    if items := [each for each in names if _is_json_item(os.path.join(path, each))]:
        return (
            f"it has no tree, only JSON items ({_list(items)}). Read them with orbax.checkpoint.JsonCheckpointHandler, or "
            f"json.load of {os.path.join(path, items[0], 'metadata')}."
        )
    return None


def _is_json_item(path: str) -> bool:
    metadata = os.path.join(path, "metadata")
    if stores.is_file(os.path.join(path, tree_metadata.FILE)) or not os.path.isfile(metadata):
        return False
    return _first_bytes(metadata).lstrip()[:1] in (b"{", b"[", b'"')


def _of_checkpoints(path: str, names: list[str]) -> str:
    latest = _latest_name(path)
    if latest is not None and checkpoints.is_checkpoint(found := os.path.join(path, latest)):
        return (
            f"it is a directory of checkpoints ({_list(names)}). The latest is {found!r}, "
            f"which jaxckpt.latest_checkpoint({path!r}) returns; pass that."
        )
    found = os.path.join(path, _highest(names))
    return (
        f"it is a directory of checkpoints ({_list(names)}) without a state file that names the latest. Pass one of them, "
        f"such as {found!r}."
    )


def _latest_name(directory: str) -> str | None:
    """Returns the latest checkpoint that the state file of a directory names; None if there is no readable state file."""
    content = _first_bytes(os.path.join(directory, "checkpoint"), _STATE_BYTES)
    try:
        found = dict(fields((content or b"").decode("utf-8", "surrogateescape"))).get("model_checkpoint_path", "")
        return unquoted(found) or None
    except TextFormatError:
        return None


def _highest(names: list[str]) -> str:
    """Returns the name with the highest number at its end."""

    def number(name: str) -> int:
        found = re.search(r"[0-9]{1,18}$", name)
        return int(found[0]) if found else -1

    return max(names, key=number)


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted((entry.name for entry in itertools.islice(entries, _MAX_NAMES)), key=numbering.natural)


def _last_bytes(path: str, size: int) -> bytes:
    """Returns the end of a regular file that `_first_bytes` has looked at, or would."""
    if not _first_bytes(path):
        return b""
    with open(path, "rb") as file:
        file.seek(-min(size, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read(size)


def _first_bytes(path: str, size: int = _FIRST_BYTES) -> bytes:
    """Returns the beginning of a regular file. Returns b"" for anything else, without opening it: a pipe would block, a device act."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
