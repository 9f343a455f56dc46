"""Sharding callbacks in TensorFlow's form: an object with a `description` that puts tensors into groups, each a set of data files.

A callback sees what `tf.train.experimental.ShardableTensor` shows, without TensorFlow: `ShardableTensor` says what can be relied on.
TensorFlow's own two policies are recognised by their names; what they ask for is what jaxckpt's policies of these names do.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxckpt.storage.item.content import ArrayContent, Blocks, Entry, Piece, Snapshot

_TENSORFLOW = "tensorflow.python.checkpoint.sharding.sharding_policies"


class Shape(tuple[int, ...]):
    """A shape with TensorFlow's names besides: `rank`, `num_elements()`, `as_list()`."""

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
    """TensorFlow's name of the process that writes, such as ``/job:worker/replica:0/task:2/device:CPU:0``; `job` and `task` besides."""

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
      shape: of the part.
      dtype: of the part; numpy's.
      device: of the process that writes it.
    """

    __slots__ = ("_piece", "device", "dtype", "shape")

    def __init__(self, piece: Piece, dtype: np.dtype[Any], device: Device) -> None:
        """Makes a tensor.

        Args:
          piece: where the data is.
          dtype: numpy's.
          device: of the process that writes it.
        """
        self._piece = piece
        self.shape = Shape(piece.shape)
        self.dtype = dtype
        self.device = device

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """Returns a copy of the data.

        Raises:
          ValueError: another process has it, which sends it only when it is written (`experimental_io_device`).
        """
        if self._piece.is_remote:
            raise ValueError(
                "The data of this tensor is on another process; a sharding callback can use its shape and dtype."
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
    """One tensor, as a sharding callback is given it (TensorFlow: `tf.train.experimental.ShardableTensor`).

    Attributes:
      checkpoint_key: name of the leaf, such as ``model/kernel``.
      slice_spec: "" for a whole tensor; of a part that this process has, TensorFlow's text: the extents of the whole, and for each axis
        first index and extent, such as ``"8 4 0,2:0,4"``.
      tensor: the data; to be put into a group as it is.
      dtype: of `tensor`.
      shape: of `tensor`.
      device: of `tensor`.
      name: `checkpoint_key` again.
      trackable: None; values of JAX have no object that tracks them.
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
        """Itself: has the `tensor`, `slice_spec`, `name`, `dtype` and `device` of TensorFlow's SaveSpec."""
        return self

    _tensor_save_spec = tensor_save_spec


@runtime_checkable
class ShardingCallback(Protocol):
    """A sharding callback (TensorFlow: `tf.train.experimental.ShardingCallback`).

    Attributes:
      description: what it does, for `explain` and errors.
    """

    @property
    def description(self) -> str:
        """What it does, in words."""

    def __call__(self, shardable_tensors: Sequence[Any]) -> Sequence[Mapping[str, Mapping[str, Any]]]:
        """Returns the groups: of each, ``{checkpoint_key: {slice_spec: tensor}}``."""


def is_callback(value: object) -> bool:
    """Whether `value` has the form of a sharding callback."""
    return not isinstance(value, type) and callable(value) and isinstance(getattr(value, "description", None), str)


def tensorflows(value: object) -> str | None:
    """Returns the name of TensorFlow's own policy that `value` is, or None. TensorFlow is not imported."""
    kind = type(value)
    known = kind.__module__ == _TENSORFLOW and kind.__name__ in ("ShardByTaskPolicy", "MaxShardSizePolicy")
    return kind.__name__ if known else None


def describe(callback: Any) -> str:
    """Returns what a callback is called in messages: the same on every process."""
    kind = type(callback)
    return f"{kind.__module__}.{kind.__qualname__} ({callback.description})"


def arranged(snapshot: Snapshot, callback: Any, process: int, several: bool) -> Snapshot:
    """Returns a snapshot whose arrays are in the groups of a callback.

    Args:
      snapshot: whose pieces this process writes.
      callback: a `ShardingCallback`; None leaves the snapshot as it is.
      process: index of this process.
      several: whether the job has several.

    Raises:
      RuntimeError: the callback has left out, added, repeated, or exchanged a tensor; names it.
      BaseException: what the callback raised.
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
    """Returns the keys of each group. Raises RuntimeError unless every tensor is in one of them, once, and as it was."""
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
                raise error(f"returned {name!r}, which is not among the tensors that it was given")
            for spec, tensor in slices.items():
                key = (name, str(spec).strip())
                part = f"{name}, slice {key[1]!r}" if key[1] else name
                if key not in known:
                    raise error(f"returned {part}, a slice that it was not given; tensors cannot be cut further")
                if key not in unseen:
                    raise error(f"returned {part} twice")
                original = unseen.pop(key)
                if tensor is not original:
                    raise error(f"returned {part} as {_difference(tensor, original)}")
                found[-1].append(key)
    if unseen:
        missing = [f"{name}, slice {spec!r}" if spec else name for name, spec in unseen]
        more = f", and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise error(f"left out {'; '.join(missing[:10])}{more}; every tensor has to be in one of the groups")
    return found


def _difference(tensor: Any, original: Tensor) -> str:
    shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
    if shape is None or tuple(shape) != original.shape:
        return f"a tensor of shape {shape}, where it was given {tuple(original.shape)}: tensors cannot be reshaped"
    if dtype != original.dtype:
        return f"a tensor of dtype {dtype}, where it was given {original.dtype}: dtypes cannot change"
    return "another tensor than it was given: values cannot change"


def _entries(
    group: Sequence[tuple[str, str]], places: Mapping[tuple[str, str], tuple[Entry, Piece]]
) -> tuple[Entry, ...]:
    """Returns the entries of a group, each with its pieces that are in it."""
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
