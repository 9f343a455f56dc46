"""Sharding callbacks in TensorFlow's form: objects with a `description` that put tensors into groups. Each group gets its own data files.

A callback gets `ShardableTensor`s, which have the attributes of `tf.train.experimental.ShardableTensor`. TensorFlow is not needed.
TensorFlow's own two policies are recognised by their names, and replaced by jaxckpt's policies of the same names.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry, Piece, Snapshot

_TENSORFLOW = "tensorflow.python.checkpoint.sharding.sharding_policies"


class Shape(tuple[int, ...]):
    """A shape: a tuple that also has TensorFlow's `rank`, `num_elements()` and `as_list()`."""

    __slots__ = ()

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self)

    def num_elements(self) -> int:
        """Returns the number of elements."""
        return math.prod(self)

    def as_list(self) -> list[int]:
        """Returns the extents."""
        return list(self)


class Device(str):
    """TensorFlow's name for the process that writes, such as ``/job:worker/replica:0/task:2/device:CPU:0`` for process 2."""

    __slots__ = ()
    replica, device_type, device_index = 0, "CPU", 0

    @property
    def job(self) -> str:
        """Name of the job."""
        return self.split("/")[1].removeprefix("job:")

    @property
    def task(self) -> int:
        """Index of the process."""
        return int(self.split("/")[3].removeprefix("task:"))


class Tensor:
    """A tensor to put into a group, or a part of one.

    Attributes:
      shape: shape of the tensor, or of the part.
      dtype: its dtype, as numpy's class.
      device: the process that writes it.
    """

    __slots__ = ("_piece", "device", "dtype", "shape")

    def __init__(self, piece: Piece, dtype: np.dtype[Any], device: Device) -> None:
        """Makes a tensor.

        Args:
          piece: the piece of a leaf that holds the data.
          dtype: its dtype.
          device: the process that writes it.
        """
        self._piece = piece
        self.shape = Shape(piece.shape)
        self.dtype = dtype
        self.device = device

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """Returns a copy of the data.

        Raises:
          ValueError: another process holds the data, and sends it only when it is written (`experimental_io_device`).
        """
        if self._piece.is_remote:
            raise ValueError(
                "The data of this tensor is on another process. A sharding callback can use its shape and dtype only."
            )
        data = self._piece.fetch(self._piece.start, self._piece.shape)
        assert not isinstance(data, Blocks)
        return data.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        return f"Tensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r})"


@dataclasses.dataclass(frozen=True, eq=False)
class ShardableTensor:
    """One tensor, as a sharding callback gets it (TensorFlow: `tf.train.experimental.ShardableTensor`).

    Attributes:
      checkpoint_key: name of the leaf, such as ``model/kernel``.
      slice_spec: "" for a whole tensor. For a part that this process writes, it is TensorFlow's text: the extents of the whole tensor, then
        the first index and the extent along each axis, such as ``"8 4 0,2:0,4"``.
      tensor: the data, to put into a group unchanged.
      dtype: dtype of `tensor`.
      shape: shape of `tensor`.
      device: the process that writes `tensor`.
      name: the same as `checkpoint_key`.
      trackable: None, because JAX does not have TensorFlow's objects that track variables.
    """

    checkpoint_key: str
    slice_spec: str
    tensor: Tensor
    dtype: np.dtype[Any]
    shape: Shape
    device: Device
    name: str
    trackable: None = None

    @property
    def tensor_save_spec(self) -> "ShardableTensor":
        """This object, which has the `tensor`, `slice_spec`, `name`, `dtype` and `device` of TensorFlow's SaveSpec."""
        return self

    _tensor_save_spec = tensor_save_spec


@runtime_checkable
class ShardingCallback(Protocol):
    """A sharding callback (TensorFlow: `tf.train.experimental.ShardingCallback`).

    Attributes:
      description: what the callback does, in words, for `explain` and errors.
    """

    @property
    def description(self) -> str:
        """The callback's purpose in words."""

    def __call__(self, shardable_tensors: Sequence[Any]) -> Sequence[Mapping[str, Mapping[str, Any]]]:
        """Returns the groups, each as ``{checkpoint_key: {slice_spec: tensor}}``.

        Args:
          shardable_tensors: the tensors that this process writes, as `ShardableTensor`s.
        """


def is_callback(value: object) -> bool:
    """Whether `value` has the form of a sharding callback."""
    return not isinstance(value, type) and callable(value) and isinstance(getattr(value, "description", None), str)


def tensorflows(value: object) -> str | None:
    """Returns the name of the policy if `value` is one of TensorFlow's own policies; else None. Does not import TensorFlow."""
    kind = type(value)
    known = kind.__module__ == _TENSORFLOW and kind.__name__ in ("ShardByTaskPolicy", "MaxShardSizePolicy")
    return kind.__name__ if known else None


def describe(callback: Any) -> str:
    """Returns the name of a callback for messages, which is the same on every process."""
    kind = type(callback)
    return f"{kind.__module__}.{kind.__qualname__} ({callback.description})"


def arranged(snapshot: Snapshot, callback: Any, process: int, several: bool) -> Snapshot:
    """Returns a snapshot whose arrays are arranged in the groups of a callback.

    Args:
      snapshot: the snapshot whose pieces this process writes.
      callback: a `ShardingCallback`; None leaves the snapshot unchanged.
      process: index of this process.
      several: whether the job has several processes.

    Raises:
      RuntimeError: the callback left out, added, repeated or exchanged a tensor; the message names it.
      BaseException: the error of the callback.
    """
    if callback is None:
        return snapshot
    device = Device(f"/job:{'worker' if several else 'localhost'}/replica:0/task:{process}/device:CPU:0")
    places: dict[tuple[str, str], tuple[Entry, Piece]] = {}
    tensors = []
    for entry in snapshot.entries:
        content = entry.content
        if not isinstance(content, ArrayContent):
            continue
        for piece in content.pieces:
            spec = _slice_spec(content, piece)
            tensor = Tensor(piece, content.dtype, device)
            name = entry.name
            places[name, spec] = entry, piece
            tensors.append(ShardableTensor(name, spec, tensor, content.dtype, tensor.shape, device, name))
    groups = _validated(callback(tuple(tensors)), tensors, describe(callback))
    return dataclasses.replace(snapshot, groups=tuple(_entries(group, places) for group in groups if group))


def _slice_spec(content: ArrayContent, piece: Piece) -> str:
    if piece.shape == content.shape:
        return ""
    extents = ":".join(f"{start},{extent}" for start, extent in zip(piece.start, piece.shape, strict=True))
    return f"{' '.join(map(str, content.shape))} {extents}"


def _validated(groups: Any, tensors: Iterable[ShardableTensor], description: str) -> list[list[tuple[str, str]]]:
    """Returns the keys of each group. Raises RuntimeError unless every tensor is in exactly one group, unchanged."""
    unseen = {(tensor.checkpoint_key, tensor.slice_spec): tensor.tensor for tensor in tensors}
    known, names = dict(unseen), {name for name, _ in unseen}
    found: list[list[tuple[str, str]]] = []

    def error(what: str) -> RuntimeError:
        return RuntimeError(f"The sharding callback {description} {what}.")

    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise error(f"must return a list of {{checkpoint_key: {{slice_spec: tensor}}}}, got {type(groups).__name__}")
    for group in groups:
        if not isinstance(group, Mapping) or not all(isinstance(slices, Mapping) for slices in group.values()):
            raise error(
                "must return a list of {checkpoint_key: {slice_spec: tensor}}; one of its items has another form"
            )
        found.append([])
        for name, slices in group.items():
            if name not in names:
                raise error(f"returned {name!r}, which is not among its arguments")
            for spec, tensor in slices.items():
                key = (name, str(spec).strip())
                part = f"{name}, slice {key[1]!r}" if key[1] else name
                if key not in known:
                    raise error(
                        f"returned {part}, a slice that is not among its arguments; tensors cannot be cut further"
                    )
                if key not in unseen:
                    raise error(f"returned {part} twice")
                original = unseen.pop(key)
                if tensor is not original:
                    raise error(f"returned {part} as {_difference(tensor, original)}")
                found[-1].append(key)
    if unseen:
        missing = [f"{name}, slice {spec!r}" if spec else name for name, spec in unseen]
        more = f", and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise error(f"left out {'; '.join(missing[:10])}{more}; every tensor must be in one of the groups")
    return found


def _difference(tensor: Any, original: Tensor) -> str:
    shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
    if shape is None or tuple(shape) != original.shape:
        return f"a tensor of shape {shape} instead of {tuple(original.shape)}: tensors cannot be reshaped"
    if dtype != original.dtype:
        return f"a tensor of dtype {dtype} instead of {original.dtype}: dtypes cannot change"
    return "another tensor than its argument: values cannot change"


def _entries(
    group: Sequence[tuple[str, str]], places: Mapping[tuple[str, str], tuple[Entry, Piece]]
) -> tuple[Entry, ...]:
    """Returns the entries of a group, each with only those of its pieces that are in the group."""
    pieces: dict[str, list[Piece]] = {}
    entries: dict[str, Entry] = {}
    for key in group:
        entry, piece = places[key]
        entries[key[0]] = entry
        pieces.setdefault(key[0], []).append(piece)
    return tuple(
        entry._replace(content=entry.content._replace(pieces=tuple(pieces[name])))  # type: ignore[union-attr]
        for name, entry in entries.items()
    )
