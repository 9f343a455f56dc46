"""`Checkpoint`: named values, saved and restored together (TensorFlow: `tf.train.Checkpoint`)."""

import copy
import functools
from collections.abc import Iterable
from traceback import format_exception
from typing import Any, Self

from jaxckpt._lib.arguments import StrPath
from jaxckpt.directory import paths
from jaxckpt.directory.counter import SaveCounter
from jaxckpt.directory.hooks import SaveHooks
from jaxckpt.options import CheckpointOptions
from jaxckpt.saver import Saver
from jaxckpt.status import CheckpointLoadStatus
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.tree import objects
from jaxckpt.tree.named_values import NamedValues
from jaxckpt.tree.nested import NestedAdapter

# The one attribute that is not a value.
_SAVER = "_saver"


class Checkpoint:
    """Named values that are saved and restored together (TensorFlow: `tf.train.Checkpoint`).

    Values are read when they are saved, so attributes can be set and added at any time::

        checkpoint = jaxckpt.Checkpoint(model=params, optimizer=opt_state, step=0)
        checkpoint.step = 100
        path = checkpoint.save("/checkpoints/ckpt")        # "/checkpoints/ckpt-1"
        checkpoint.restore(path).assert_consumed()
        params = checkpoint.model

    A value is a pytree of jax.Array, numpy array, Python or numpy scalar, str, bytes or None (for restore also jax.ShapeDtypeStruct);
    a Flax NNX object; an optax state; a typed PRNG key; an object with ``serialize()`` and ``deserialize(value)``, or ``get_state()``
    and ``set_state(state)``; or another Checkpoint, whose values then have names below its own. NNX objects, state objects and nested
    Checkpoints are updated in place by restore. Everything else, `nnx.State` too, is replaced on the Checkpoint.

    A Checkpoint may be used from several threads; its saves happen one after the other.
    """

    _saver: Saver

    def __init__(self, root: Any = None, **named: Any) -> None:
        """Makes a Checkpoint of the given values.

        Args:
          root: an object whose first level becomes names: a mapping, a dataclass, an NNX object, another Checkpoint, or an object
            with attributes. Its fields are read when they are saved. An NNX object and a Checkpoint are updated in place by restore.
            Another root is not written into: what restore brings stands on the Checkpoint, until the root's field is given
            another value.
          **named: values by name.

        Raises:
          ValueError: a name is reserved, or stands for different objects in `root` and in `named`.
          TypeError: `root` has no names.
        """
        inner = values_of(root) if isinstance(root, Checkpoint) else None
        check_name = functools.partial(_check_name, type(self))
        self._become(NamedValues(root, named, inner=inner, check_name=check_name), SaveCounter())

    def _become(self, values: NamedValues, counter: SaveCounter) -> None:
        super().__setattr__(_SAVER, Saver(values, counter, id(self)))

    # -- attributes are the named values ------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == _SAVER:
            raise AttributeError(name)
        values = self._saver.values.current()
        if name in values:
            return values[name]
        raise AttributeError(f"This Checkpoint has no value {name!r}; it has {', '.join(sorted(values)) or 'none'}.")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
            return
        self._saver.values.set(name, value)

    def __delattr__(self, name: str) -> None:
        if not self._saver.values.delete(name):
            raise AttributeError(f"This Checkpoint has no value {name!r} of its own to delete.")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._saver.values.current()]

    def __repr__(self) -> str:
        return f"<Checkpoint {', '.join(sorted(self._saver.values.current()))}; {COUNTER}={self.save_counter}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        # Without the lock: a callback of the save that a locked call waits for may copy its Checkpoint.
        other._become(copy.deepcopy(self._saver.values, memo), copy.deepcopy(self._saver.counter, memo))
        return other

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other._become(self._saver.values.copy(), self._saver.counter.copy())
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Checkpoint cannot be pickled: it stands for live values and files. Pickle the values, or save it."
        )

    # -- saving -------------------------------------------------------------------------------------------------------------------

    @property
    def save_counter(self) -> int:
        """The number used by the most recent save. A manager's save with an explicit number only increments it. Assignable.

        Stored in every checkpoint; set by `restore`.
        """
        return self._saver.counter.number

    @save_counter.setter
    def save_counter(self, value: int) -> None:
        self._saver.counter.assign(value)

    def save(self, file_prefix: StrPath, options: CheckpointOptions | None = None) -> str:
        """Saves a numbered checkpoint and registers it as the latest (TensorFlow: `tf.train.Checkpoint.save`).

        Args:
          file_prefix: directory and name; the checkpoint is the directory ``<file_prefix>-<number>``. Parents are made. The number
            is `save_counter` + 1, or the one after the highest that exists if that one is taken: nothing is overwritten.
          options: how; see `CheckpointOptions`. With `enable_async` this returns as soon as the values are safe from later changes.

        Returns:
          Path of the checkpoint: `file_prefix` as it is spelled, and the number. A part ``name/..`` of it whose `name` does not
          exist is left out, since nothing could follow it.

        Raises:
          TypeError: a value that cannot be stored (names the leaf), an argument of a wrong type, or a call inside of a function
            that JAX traces, as jax.jit does.
          ValueError: a device that does not exist, colliding names, a prefix without a name.
          CheckpointError: the directory holds TensorFlow's checkpoints, whose state file and numbers are TensorFlow's.
          OSError: with errno; nothing was left behind, no number used up. An asynchronous save that fails later, and raises
            this at the next touch, has used up its number: its path was returned.
          BaseException: what the previous asynchronous save, or a callback, raised.
        """
        return self._saver.save(paths.checked_prefix(file_prefix), options, SaveHooks())

    def write(self, file_prefix: StrPath, options: CheckpointOptions | None = None) -> str:
        """Writes a checkpoint at exactly this path, without number or registration (TensorFlow: `tf.train.Checkpoint.write`).

        A checkpoint that is there is replaced, atomically: after a crash either the old or the new one restores.

        Args:
          file_prefix: path of the checkpoint. Parents are made.
          options: how; see `CheckpointOptions`.

        Returns:
          Path of the checkpoint, as for `save`.

        Raises:
          BaseException: as for `save`.
        """
        return self._saver.write(paths.checked_path(file_prefix, "file_prefix"), options)

    # -- restoring ----------------------------------------------------------------------------------------------------------------

    def restore(
        self,
        save_path: StrPath | None,
        options: CheckpointOptions | None = None,
        *,
        cast: bool = False,
    ) -> CheckpointLoadStatus:
        """Restores values and `save_counter` from a checkpoint (TensorFlow: `tf.train.Checkpoint.restore`).

        The current values are the targets: leaves are matched by name, and must have the target's kind, shape and dtype; arrays get
        the target's sharding, memory kind and weak type. Everything is validated, read and verified before the first value is changed.

        A scalar may have changed its form: a Python or numpy scalar restores into a JAX scalar and the other way round, if it is a number
        of the same kind (bool, int, float, complex) that the target's dtype can represent. A Python float, which has no dtype of its own,
        is rounded as JAX rounds it.

        Args:
          save_path: what `save` or `write` returned, or any Orbax checkpoint of a tree; None restores nothing.
          options: as for `save`.
          cast: convert arrays whose stored dtype is another one of the same kind (float32 to bfloat16, int64 to int32), instead of an
            error. `CheckpointLoadStatus.cast` names them. A value that does not fit, such as an int that is too large, is an error.

        Returns:
          The names that matched, and those that did not; see `CheckpointLoadStatus`.

        Raises:
          FileNotFoundError: there is nothing at `save_path`, or the checkpoint was deleted while it was read.
          CheckpointError: what is there is no checkpoint.
          CorruptCheckpointError: it is damaged.
          ValueError: a leaf of another kind, shape or dtype, or a sharding that does not fit (names the leaf and both sides), or two
            different values for one object that stands under two names (names both).
          TypeError: a target that could not be saved either (names the leaf), or a call inside of a function that JAX traces.
          OSError: it cannot be read.
          BaseException: what the previous asynchronous save raised.
        """
        return self._saver.restore("restore", save_path, options, cast=cast)

    def read(
        self,
        save_path: StrPath | None,
        options: CheckpointOptions | None = None,
        *,
        cast: bool = False,
    ) -> CheckpointLoadStatus:
        """Like `restore`, but leaves `save_counter` alone; the counterpart of `write` (TensorFlow: `tf.train.Checkpoint.read`)."""
        return self._saver.restore("read", save_path, options, cast=cast)

    # -- waiting ------------------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Waits for the save in flight, and raises its error, once.

        Raises:
          RuntimeError: called from a write callback of an asynchronous save of this Checkpoint.
          TimeoutError: the save is still running after `OrbaxSettings.timeout_secs`; it goes on.
          BaseException: what the save raised.
        """
        self._saver.sync()

    def close(self) -> None:
        """Waits for the save in flight, and raises its error. The Checkpoint can still be used."""
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except BaseException as second:
            # The block's own error goes on; this one must not be lost.
            text = "".join(format_exception(second))
            error.add_note(f"Besides, the asynchronous save that was in flight failed:\n{text}")


def saver_of(checkpoint: Checkpoint) -> Saver:
    """Returns what saves and restores a Checkpoint: the interface for `CheckpointManager`."""
    return checkpoint._saver


def values_of(checkpoint: Checkpoint) -> NamedValues:
    """Returns the values of a Checkpoint."""
    return checkpoint._saver.values


objects.register(Checkpoint, NestedAdapter(values_of))


def _check_name(owner: type, name: str) -> None:
    if any(name in vars(kind) for kind in owner.__mro__) or name == _SAVER:
        raise ValueError(
            f"{name!r} is a reserved name: Checkpoint has a method or property called that. Use another name."
        )
