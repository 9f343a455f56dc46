"""`Checkpoint`: named values, saved and restored together (TensorFlow: `tf.train.Checkpoint`)."""

import copy
import functools
from traceback import format_exception
from typing import Any, Self

from jaxckpt._lib.arguments import StrPath
from jaxckpt.attributes import ValueAttributes, check_name, set_saver
from jaxckpt.directory import paths
from jaxckpt.directory.counter import SaveCounter
from jaxckpt.directory.hooks import SaveHooks
from jaxckpt.options import CheckpointOptions
from jaxckpt.restoring.adapting import Adaptation, Rename
from jaxckpt.saver import Saver
from jaxckpt.status import CheckpointDiff, CheckpointLoadStatus
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.tree import objects
from jaxckpt.tree.named_values import NamedValues
from jaxckpt.tree.nested import NestedAdapter


class Checkpoint(ValueAttributes):
    """Named values that are saved and restored together (TensorFlow: `tf.train.Checkpoint`).

    The attributes are the values. They are read when they are saved, so they can be set and added at any time:

        checkpoint = jaxckpt.Checkpoint(model=params, optimizer=opt_state, step=0)
        checkpoint.step = 100
        path = checkpoint.save("/checkpoints/ckpt")        # "/checkpoints/ckpt-1"
        checkpoint.restore(path).assert_consumed()
        params = checkpoint.model

    A value is one of these:

    * a pytree whose leaves are jax.Array, numpy array, Python or numpy scalar, str, bytes or None (for restore also
      jax.ShapeDtypeStruct);
    * a Flax NNX object, an optax state, or a typed PRNG key;
    * a state object: one with ``serialize()`` and ``deserialize(value)``, or with ``get_state()`` and ``set_state(state)``;
    * another Checkpoint. The names of its values begin with the name of the attribute.

    Restore updates NNX objects, state objects and nested Checkpoints in place. It replaces every other value (`nnx.State` too): the
    attribute of the Checkpoint gets a new object.

    Several threads may use a Checkpoint at the same time. It saves one checkpoint after the other.
    """

    def __init__(self, root: Any = None, **named: Any) -> None:
        """Creates a Checkpoint of the given values.

        Args:
          root: an object whose fields become values under their names: a mapping, a dataclass, an NNX object, another Checkpoint, or an
            object with attributes. The fields are read when they are saved. Restore updates an NNX object and a Checkpoint in place.
            Restore does not write into any other root: the Checkpoint keeps the restored value, until the program gives that field
            of the root another value.
          **named: values by name.

        Raises:
          ValueError: a name is reserved, or stands for different objects in `root` and in `named`.
          TypeError: `root` has no named fields.
        """
        inner = values_of(root) if isinstance(root, Checkpoint) else None
        check = functools.partial(check_name, type(self))
        self._become(NamedValues(root, named, inner=inner, check_name=check), SaveCounter())

    def _become(self, values: NamedValues, counter: SaveCounter) -> None:
        set_saver(self, Saver(values, counter, id(self)))

    def __repr__(self) -> str:
        return f"<Checkpoint {', '.join(sorted(self._saver.values.current()))}; {COUNTER}={self.save_counter}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        # Without the lock: a write callback may copy its Checkpoint while the lock is held by a call that waits for that save.
        other._become(copy.deepcopy(self._saver.values, memo), copy.deepcopy(self._saver.counter, memo))
        return other

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other._become(self._saver.values.copy(), self._saver.counter.copy())
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Checkpoint cannot be pickled, because it refers to live values and to files. Pickle the values, or call save()."
        )

    # -- saving -------------------------------------------------------------------------------------------------------------------

    @property
    def save_counter(self) -> int:
        """The number used by the most recent save. Assignable.

        A manager's save with an explicit number only increments it. Every checkpoint stores it, and `restore` sets it.
        """
        return self._saver.counter.number

    @save_counter.setter
    def save_counter(self, value: int) -> None:
        self._saver.counter.assign(value)

    def save(self, file_prefix: StrPath, options: CheckpointOptions | None = None) -> str:
        """Saves a numbered checkpoint and registers it as the latest (TensorFlow: `tf.train.Checkpoint.save`).

        Args:
          file_prefix: directory and name. The checkpoint is the directory ``<file_prefix>-<number>``; missing parent directories are
            created. The number is `save_counter` + 1. If a checkpoint has that number, the number is the highest existing one + 1:
            nothing is overwritten.
          options: how to save; see `CheckpointOptions`. With `enable_async` this returns as soon as later changes of the values cannot
            reach the checkpoint.

        Returns:
          Path of the checkpoint: `file_prefix` as it was spelled, and the number. A part ``name/..`` is left out if `name` does not
          exist, because such a path could not be opened.

        Raises:
          TypeError: a value cannot be stored (the message names the leaf), an argument has a wrong type, or the call is inside a
            function that JAX traces (jax.jit).
          ValueError: the device does not exist, two names collide, or the prefix has no name.
          CheckpointError: the directory holds TensorFlow's checkpoints; TensorFlow owns the state file and the numbers there.
          OSError: the write failed; `errno` is set. Nothing is left behind, and the number is not used up. An asynchronous save that
            fails later raises this from the next call, and its number is used up, because its path was returned.
          BaseException: the error of the previous asynchronous save, or of a callback.
        """
        return self._saver.save(paths.checked_prefix(file_prefix), options, SaveHooks())

    def write(self, file_prefix: StrPath, options: CheckpointOptions | None = None) -> str:
        """Writes a checkpoint at exactly this path, without number or registration (TensorFlow: `tf.train.Checkpoint.write`).

        A checkpoint that exists there is replaced atomically: after a crash either the old or the new one restores.

        Args:
          file_prefix: path of the checkpoint. Missing parent directories are created.
          options: how to save; see `CheckpointOptions`.

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
        rename: Rename | None = None,
        cast: bool = False,
        skip_mismatched: bool = False,
    ) -> CheckpointLoadStatus:
        """Restores values and `save_counter` from a checkpoint (TensorFlow: `tf.train.Checkpoint.restore`).

        The current values are the *targets*. Targets and stored leaves are matched by name, and must have the same kind, shape and
        dtype. A restored array gets the sharding, memory kind and weak type of its target. Everything is validated, read and verified
        before the first value is changed.

        A scalar may change its form: a Python or numpy scalar restores into a JAX scalar, and the other way round. Both must be numbers
        of the same kind (bool, int, float, complex), and the target's dtype must be able to represent the stored number. A Python
        float, which has no dtype of its own, is rounded as JAX rounds it.

        Args:
          save_path: the path that `save` or `write` returned, or the path of any Orbax checkpoint of a tree; None restores nothing.
          options: how to restore; see `CheckpointOptions`.
          rename: the stored names of targets that have other names now: a mapping ``{target prefix: stored prefix}``, or a function that
            returns the stored name for the name of a target. A prefix is a name, or the beginning of one up to a ``/``; the longest one
            that fits wins; the empty prefix stands for the whole tree.
          cast: whether to convert arrays whose stored dtype is another one of the same kind (float32 to bfloat16, int64 to int32). By
            default another dtype is an error. `CheckpointLoadStatus.cast` names the converted leaves. A value that the new dtype
            cannot hold, such as an int that is too large, is an error.
          skip_mismatched: whether a target keeps its value if the stored leaf has another shape. By default another shape is an error.
            `CheckpointLoadStatus.mismatched` names such targets; they do not count as matched.

        Returns:
          The names that matched, and those that did not; see `CheckpointLoadStatus`.

        Raises:
          FileNotFoundError: nothing exists at `save_path`, or the checkpoint was deleted while it was read.
          CheckpointError: `save_path` is not a checkpoint.
          CorruptCheckpointError: the checkpoint is damaged.
          ValueError: a leaf has another kind, shape or dtype, or a sharding does not fit (the message names the leaf and both sides);
            or the checkpoint has two different values for one object that has two names (the message names both);
            or `rename` leads to nothing in the checkpoint, changes no name, or gives two targets one stored name.
          TypeError: a target is of a type that cannot be saved either (the message names the leaf), or the call is inside a function
            that JAX traces.
          OSError: a file cannot be read.
          BaseException: the error of the previous asynchronous save.
        """
        return self._saver.restore("restore", save_path, options, Adaptation(rename, cast, skip_mismatched))

    def read(
        self,
        save_path: StrPath | None,
        options: CheckpointOptions | None = None,
        *,
        rename: Rename | None = None,
        cast: bool = False,
        skip_mismatched: bool = False,
    ) -> CheckpointLoadStatus:
        """Restores values as `restore` does, but does not change `save_counter` (TensorFlow: `tf.train.Checkpoint.read`).

        It is the counterpart of `write`.

        Args:
          save_path: the path that `save` or `write` returned, or the path of any Orbax checkpoint of a tree; None restores nothing.
          options: how to restore; see `CheckpointOptions`.
          rename: the stored names of targets that have other names now: a mapping ``{target prefix: stored prefix}``, or a function that
            returns the stored name for the name of a target. A prefix is a name, or the beginning of one up to a ``/``; the longest one
            that fits wins; the empty prefix stands for the whole tree.
          rename: the stored names of targets that have other names now; see `restore`.
          cast: whether to convert arrays whose stored dtype is another one of the same kind; see `restore`.
          skip_mismatched: whether a target keeps its value if the stored leaf has another shape; see `restore`.

        Returns:
          The names that matched, and those that did not; see `CheckpointLoadStatus`.

        Raises:
          BaseException: as `restore`.
        """
        return self._saver.restore("read", save_path, options, Adaptation(rename, cast, skip_mismatched))

    def diff(
        self, save_path: StrPath, options: CheckpointOptions | None = None, *, rename: Rename | None = None
    ) -> CheckpointDiff:
        """Tells what a restore would do: which names match, and which leaves have another dtype or shape. Reads no data, changes nothing.

        In a job of several processes, every process makes this call, as it does for a restore.

        Args:
          save_path: path of a checkpoint; see `restore`.
          options: how a restore would be done; see `CheckpointOptions`.
          rename: the stored names of targets that have other names now; see `restore`.

        Returns:
          The names, by what a restore would do; see `CheckpointDiff`. ``print(checkpoint.diff(path))`` shows them.

        Raises:
          BaseException: as `restore`, but not for the shapes, dtypes and kinds of leaves.
        """
        return self._saver.diff(save_path, options, Adaptation(rename))

    # -- waiting ------------------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Waits for the asynchronous save in flight, if there is one, and raises its error, once.

        Raises:
          RuntimeError: called from a write callback of an asynchronous save of this Checkpoint.
          TimeoutError: the save is still running after `OrbaxSettings.timeout_secs`. It goes on.
          BaseException: the error of the save.
        """
        self._saver.sync()

    def close(self) -> None:
        """Waits for the save in flight and raises its error, as `sync` does. The Checkpoint can still be used."""
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
            # The error of the `with` block is raised. The error of the save is added to it, so that it is not lost.
            text = "".join(format_exception(second))
            error.add_note(f"The asynchronous save that was in flight failed too:\n{text}")


def saver_of(checkpoint: Checkpoint) -> Saver:
    """Returns the saver of a Checkpoint. `CheckpointManager` uses it."""
    return checkpoint._saver


def values_of(checkpoint: Checkpoint) -> NamedValues:
    """Returns the values of a Checkpoint."""
    return checkpoint._saver.values


objects.register(Checkpoint, NestedAdapter(values_of))
