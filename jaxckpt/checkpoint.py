"""`Checkpoint`: named values, saved and restored together (TensorFlow: `tf.train.Checkpoint`)."""

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from traceback import format_exception
from typing import Any, Self

from jaxckpt.directory import paths, state_file
from jaxckpt.directory.hooks import SaveHooks, Unregistered
from jaxckpt.leaf_kinds.registry import is_same
from jaxckpt.options import CheckpointOptions, checked_options
from jaxckpt.restoring import restore as loading
from jaxckpt.restoring.restore import Restore
from jaxckpt.saving import rebinding, tracing
from jaxckpt.saving.background import Background, Flight, raise_errors
from jaxckpt.saving.rebinding import RebindingWatch
from jaxckpt.saving.save import Save, call_of
from jaxckpt.status import CheckpointLoadStatus
from jaxckpt.storage.item.description import COUNTER
from jaxckpt.translate import to_orbax
from jaxckpt.tree import flatten, nnx_objects, objects, optimizers, roots
from jaxckpt.tree.builders import Builder, Rebuild, Undo, Walk, together
from jaxckpt.tree.names import KnownPath
from jaxckpt.tree.rebuilding import rebuild_values

_INTERNALS = frozenset({"_root", "_values", "_restored", "_counter", "_background", "_lock", "_given", "_watch"})


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
        set_internal = super().__setattr__
        set_internal("_root", root)
        set_internal("_values", {})
        set_internal("_restored", {})
        set_internal("_counter", 0)
        set_internal("_given", {})
        set_internal("_background", Background())
        set_internal("_lock", threading.RLock())
        set_internal("_watch", RebindingWatch())
        fields = {} if root is None else roots.expand_root(root)
        for name in (*fields, *named):
            _check_name(type(self), name)
        for name, value in named.items():
            if name in fields and fields[name] is not value:
                raise ValueError(f"{name!r} is in root and among the keywords, with different values; give it once.")
            if name not in fields:
                self._values[name] = value

    # -- attributes are the named values ------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _INTERNALS:
            raise AttributeError(name)
        values = self._current()
        if name in values:
            return values[name]
        raise AttributeError(f"This Checkpoint has no value {name!r}; it has {', '.join(sorted(values)) or 'none'}.")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
            return
        _check_name(type(self), name)
        self._restored.pop(name, None)
        self._values[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self._values and name not in self._restored:
            raise AttributeError(f"This Checkpoint has no value {name!r} of its own to delete.")
        self._values.pop(name, None)
        self._restored.pop(name, None)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._current()]

    def __repr__(self) -> str:
        return f"<Checkpoint {', '.join(sorted(self._current()))}; {COUNTER}={self._counter}>"

    def _current(self) -> dict[str, Any]:
        """The named values as they are now."""
        fields = {} if self._root is None else roots.expand_root(self._root)
        for name in fields:  # A root may have got new ones.
            _check_name(type(self), name)
        for name, (replaced, restored) in self._restored.items():
            if name not in fields or nnx_objects.is_same(fields[name], replaced):
                fields[name] = restored
        return {**fields, **self._values}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        # Without the lock: a callback of the save that a locked call waits for may copy its Checkpoint.
        state = {
            name: copy.deepcopy(getattr(self, name), memo) for name in _INTERNALS - {"_lock", "_background", "_watch"}
        }
        state |= {"_lock": threading.RLock(), "_background": Background(), "_watch": RebindingWatch()}
        for name, value in state.items():
            object.__setattr__(other, name, value)
        return other

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        state = {name: getattr(self, name) for name in _INTERNALS}
        state |= {
            "_lock": threading.RLock(),
            "_background": Background(),
            "_watch": RebindingWatch(),
            "_values": dict(self._values),
            "_given": dict(self._given),
            "_restored": dict(self._restored),
        }
        for name, value in state.items():
            object.__setattr__(other, name, value)
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Checkpoint cannot be pickled: it stands for live values and files. Pickle the values, or save it."
        )

    # -- saving -------------------------------------------------------------------------------------------------------------------

    @property
    def save_counter(self) -> int:
        """Number that the last save took, which numbers of the manager's caller leave to count saves. Settable.

        Stored in every checkpoint; set by `restore`.
        """
        return int(self._counter)

    @save_counter.setter
    def save_counter(self, value: int) -> None:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"save_counter must be an int, got {type(value).__name__}.")
        number = value.__index__()
        if not 0 <= number < 2**63:
            raise ValueError(f"save_counter must be from 0 to 2**63 - 1, got {number}.")
        self._given.clear()  # The caller decides.
        object.__setattr__(self, "_counter", number)

    def save(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
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
        return self._save(paths.checked_prefix(file_prefix), options, hooks=SaveHooks())

    def write(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
        """Writes a checkpoint at exactly this path, without number or registration (TensorFlow: `tf.train.Checkpoint.write`).

        A checkpoint that is there is replaced, atomically: after a crash either the old or the new one restores.

        Args, Returns, Raises: as for `save`.
        """
        path = paths.checked_path(file_prefix, "file_prefix")

        def reserve(save: Save) -> tuple[int, str]:
            exact = paths.spelled(path)
            paths.reserve(save, exact)
            return self._counter, exact

        turn = self._turn(options, "write")
        with self._lock, turn:
            save = Save("write", path, turn.options, turn.translation.array_settings, Unregistered(), replace=True)
            self._start(save, turn, reserve)
        return save.path

    def _save(
        self,
        prefix: str,
        options: CheckpointOptions | None,
        *,
        number: int | None = None,
        hooks: SaveHooks,
        step: int | None = None,
    ) -> str:
        """`save`, for the manager: with a number of its choice (which replaces), its own hooks, and the step that it knows."""
        given = paths.absolute(prefix)

        def reserve(save: Save) -> tuple[int, str]:
            exact = paths.spelled(prefix)
            state_file.refuse_tensorflow(os.path.dirname(paths.absolute(exact)))
            if number is None:
                # After restoring an older checkpoint, a number that was given before is not given again, deleted or not.
                return paths.reserve_unused(save, exact, self._counter + 1, self._given.get(given, 0))
            path = f"{exact}-{number}"
            paths.reserve(save, path)
            # As in TensorFlow, a number of the caller's choice leaves the counter to count saves.
            return self._counter + 1, path

        def registered(save: Save) -> None:
            # An interrupt may keep the call from counting it.
            if number is None:
                self._given[given] = max(self._given.get(given, 0), save.number)

        turn = self._turn(options, "save")
        with self._lock, turn:
            details = {"checkpoint_number": number}
            save = Save(
                "save",
                prefix,
                turn.options,
                turn.translation.array_settings,
                hooks,
                replace=number is not None,
                details=details,
                registered=registered,
            )
            try:
                self._start(save, turn, reserve, step)
            finally:
                if (
                    number is None and save.number and self._counter == save.number
                ):  # Committed, even if a callback failed.
                    self._given[given] = save.number
        return save.path

    def _refuse_tracing(self, action: str) -> None:
        tracing.refuse(action, lambda: ((leaf.name, leaf.value) for flat in self._flats() for leaf in flat.leaves))

    def _turn(self, options: CheckpointOptions | None, action: str) -> "_Turn":
        self._refuse_tracing(action)
        return _Turn(self, _checked_options(options), action)

    def _start(
        self, save: Save, turn: "_Turn", reserve: Callable[[Save], tuple[int, str]], step: int | None = None
    ) -> None:
        """Takes the snapshot and writes it, here or in the background."""
        seen: list[rebinding.Seen] = []

        def values() -> list[flatten.Flat]:
            flats = self._flats()
            seen.append(rebinding.look(flats, step))
            return flats

        self._write(save, turn, values, reserve)
        self._watch.saved(seen[-1])

    def _write(
        self,
        save: Save,
        turn: "_Turn",
        values: Callable[[], list[flatten.Flat]],
        reserve: Callable[[Save], tuple[int, str]],
    ) -> None:
        flight: Flight | None = None
        try:
            save.prepare(turn.wait, values, reserve)
            if not turn.translation.asynchronous:
                save.run(lambda: self._counter_is(save.number))
                return
            flight = Flight(save.run, save.path, save.wait_secs, turn.translation.exit_timeout_secs)
            self._background.take(flight)
            self._counter_is(save.number)
        except BaseException:
            # An interrupt may come between any two steps. The other processes must not wait for this one; but a save that has been
            # handed over goes on, and the next call waits for it.
            if not self._background.owns(flight):
                save.abandon()
            raise

    def _flats(self) -> list[flatten.Flat]:
        return [self._flat(name, value) for name, value in self._current().items()]

    def _flat(self, name: str, value: Any) -> flatten.Flat:
        return flatten.flatten(name, value, (id(self),), in_state=self._holder(name)._is_in_state(name))

    def _holder(self, name: str) -> "Checkpoint":
        """The Checkpoint that a restored value is put on: this one, or the one under it which is the root that has the name."""
        holder = self
        while name not in holder._values and isinstance(holder._root, Checkpoint):
            holder = holder._root
        return holder

    def _is_in_state(self, name: str) -> bool:
        """Whether a value of this Checkpoint's own or of its root is part of an `nnx.State`."""
        return name not in self._values and nnx_objects.is_state(self._root)

    def _counter_is(self, number: int) -> None:
        object.__setattr__(self, "_counter", number)

    # -- restoring ----------------------------------------------------------------------------------------------------------------

    def restore(
        self,
        save_path: str | os.PathLike[str] | None,
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
          What matched; see `CheckpointLoadStatus`.

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
        return self._load(save_path, options, "restore", cast)

    def read(
        self,
        save_path: str | os.PathLike[str] | None,
        options: CheckpointOptions | None = None,
        *,
        cast: bool = False,
    ) -> CheckpointLoadStatus:
        """Like `restore`, but leaves `save_counter` alone; the counterpart of `write` (TensorFlow: `tf.train.Checkpoint.read`)."""
        return self._load(save_path, options, "read", cast)

    def _load(self, save_path: Any, options: CheckpointOptions | None, action: str, cast: bool) -> CheckpointLoadStatus:
        options = _checked_options(options)
        if not isinstance(cast, bool):
            raise TypeError(f"cast must be True or False, got {type(cast).__name__}.")
        path = None if save_path is None else paths.checked_path(save_path, "save_path")
        self._refuse_background(action)
        self._refuse_tracing(action)
        with self._lock:
            translation = to_orbax(options)
            if path is None:
                self.sync()
                return CheckpointLoadStatus(None, (), (), ())
            values: dict[str, Any] = {}
            flats: dict[str, flatten.Flat] = {}

            def targets() -> list[flatten.Leaf]:
                self.sync()
                values.update(self._current())
                flats.update((name, self._flat(name, value)) for name, value in values.items())
                return [leaf for flat in flats.values() for leaf in flat.leaves]

            call = call_of(action, path, options, translation.array_settings, {"cast": cast})
            with Restore(call, path, translation.io_process) as restore:
                leaves = restore.meet(targets)
                skip = (
                    optimizers.slot_names(values, flats.values()) if options.experimental_skip_slot_variables else set()
                )
                loaded = restore.load(leaves, skip, with_counter=action == "restore", cast=cast)
                self._apply(values, flats, loaded.new, restore)
            self._watch.forget()
            if loaded.counter is not None:
                self._counter_is(loaded.counter)
            return CheckpointLoadStatus(path, loaded.matched, loaded.missing, loaded.unexpected, loaded.cast)

    def _apply(
        self, values: Mapping[str, Any], flats: Mapping[str, flatten.Flat], new: Mapping[str, Any], restore: Restore
    ) -> None:
        """Puts new leaves into the values: all of them, or, if an object of any process refuses its state, none."""

        def changes() -> Iterator[Callable[[], Undo]]:
            rebuilt, found = rebuild_values(flats, new, is_same)
            yield from found
            replaced = {name: value for name, value in rebuilt.items() if value is not values[name]}
            # A root may refuse a value too.
            yield lambda: self._replace(replaced)

        loading.carry_out(changes(), restore.agree)

    def _replace(self, new: Mapping[str, Any]) -> Undo:
        """Puts restored values in the place of the current ones: all, or, if one is refused, none. Returns what puts those back."""
        undos: list[Undo] = []
        put_back = together(undos)
        named = {name: value for name, value in new.items() if name in self._values}
        fields = {name: value for name, value in new.items() if name not in named}
        adapter = objects.root_adapter(self._root)
        restored = {}
        if fields and adapter is None:
            expanded = roots.expand_root(self._root)
            restored = {name: (expanded[name], value) for name, value in fields.items()}
        old_values = {name: self._values[name] for name in named}
        old_restored = {name: self._restored[name] for name in restored if name in self._restored}

        def put_back_own() -> None:
            self._values.update(old_values)
            for name in restored:
                self._restored.pop(name, None)
            self._restored.update(old_restored)

        try:
            undos.append(put_back_own)
            # Each in one step: an interrupt in a loop would leave some values old and some new.
            self._values.update(named)
            self._restored.update(restored)
            if adapter is not None:
                for name, value in fields.items():
                    undos.append(adapter.set_child(self._root, name, value))
        except BaseException:
            put_back()
            raise
        return put_back

    # -- waiting ------------------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Waits for the save in flight, and raises its error, once.

        Raises:
          RuntimeError: called from a write callback of an asynchronous save of this Checkpoint.
          TimeoutError: the save is still running after `OrbaxSettings.timeout_secs`; it goes on.
          BaseException: what the save raised.
        """
        self._refuse_background("sync")
        self._background.wait()
        self._background.raise_error()

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
        except BaseException as second:  # The block's own error goes on; this one must not be lost.
            text = "".join(format_exception(second))
            error.add_note(f"Besides, the asynchronous save that was in flight failed:\n{text}")

    def _refuse_background(self, action: str) -> None:
        if self._background.is_current_thread:
            raise RuntimeError(
                f"{action} was called from a write callback of an asynchronous save of the same Checkpoint, which would wait for itself. "
                "Use another Checkpoint object in the callback, or call it after sync()."
            )


class _NestedAdapter:
    """Takes a Checkpoint apart that is a value of another one: its values have names below its own, and it is updated in place.

    Its `save_counter` counts its own saves and is not part of it.
    """

    def take(self, node: Checkpoint, path: KnownPath, walk: Walk) -> Builder:
        """Takes the values apart."""
        values = node._current()
        parts: dict[str, Builder] = {}
        outside = walk.in_state
        try:
            for name, value in values.items():
                start = walk.position
                holder = node._holder(name)
                walk.in_state = holder._is_in_state(name)
                parts[name] = walk.take(value, path.below(name))
                walk.own(holder, start, key=name)
        finally:
            walk.in_state = outside
        if not values:
            walk.empty({}, path)
        return _NestedBuilder(node, values, parts)

    def children(self, root: Checkpoint) -> dict[str, Any]:
        """Returns the values by name."""
        return root._current()

    def set_child(self, root: Checkpoint, name: str, value: Any) -> Undo:
        """Replaces a value."""
        return root._replace({name: value})


class _NestedBuilder:
    def __init__(self, node: Checkpoint, values: Mapping[str, Any], parts: Mapping[str, Builder]) -> None:
        self._node, self._values, self._parts = node, values, parts

    def build(self, rebuild: Rebuild) -> Any:
        """Returns the Checkpoint, which a change gives its restored values."""
        built = {name: part.build(rebuild) for name, part in self._parts.items()}
        new = {name: value for name, value in built.items() if value is not self._values[name]}
        if new:
            rebuild.changes.append(lambda: self._node._replace(new))
        return self._node


objects.register(Checkpoint, _NestedAdapter())


class _Turn:
    """A save's turn: gives the options and their translation, and waits for the save before.

    An error that the callback of an earlier save left is raised when this one is done. Not a generator with
    contextlib.contextmanager: that sets attributes of exceptions, which some refuse.
    """

    def __init__(self, checkpoint: Checkpoint, options: CheckpointOptions, action: str) -> None:
        self.options = options
        self.translation = to_orbax(options)
        self._background = checkpoint._background
        self._earlier: tuple[Flight, ...] = ()
        checkpoint._refuse_background(action)

    def __enter__(self) -> Self:
        return self

    def wait(self) -> None:
        """Waits until the save before is over. Raises its error, if it was not saved."""
        self._background.wait()
        self._background.raise_error(after_commit=False)
        self._earlier = self._background.failed()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # After an error of this save, they are raised at the next touch.
        if error is None:
            raise_errors(self._earlier)


def _checked_options(options: CheckpointOptions | None) -> CheckpointOptions:
    return checked_options(options) or CheckpointOptions()


def _check_name(owner: type, name: str) -> None:
    if any(name in vars(kind) for kind in owner.__mro__) or name in _INTERNALS:
        raise ValueError(
            f"{name!r} is a reserved name: Checkpoint has a method or property called that. Use another name."
        )
