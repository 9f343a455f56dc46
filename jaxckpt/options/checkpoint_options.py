"""`CheckpointOptions`: TensorFlow's options, with TensorFlow's names and defaults."""

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self, cast

import jax

from jaxckpt._lib.arguments import flag, mismatch, type_name
from jaxckpt.job import devices
from jaxckpt.job.devices import IoDevice
from jaxckpt.options import callbacks, sharding
from jaxckpt.options.callbacks import WriteCallback
from jaxckpt.options.orbax_settings import OrbaxSettings
from jaxckpt.options.policies import MaxShardSizePolicy, ShardByTaskPolicy, ShardingPolicy, policy_of

_NOT_GIVEN: Any = object()


class CheckpointOptions:
    """How checkpoints are saved and restored (TensorFlow: `tf.train.CheckpointOptions`).

    The arguments have TensorFlow's names, order and defaults. Each is also an attribute that can be read and set.
    A value is checked when it is given, and takes effect at the next call that uses the options. That call also checks that
    the device exists, before it touches any file. Saving and restoring never change the options.

    Options can be compared, copied and (if their callbacks can) pickled. A jax.Device only chooses its process: options
    with the device and with the process's index are equal, and the index is pickled.
    """

    __slots__ = ("_async", "_callbacks", "_device", "_orbax", "_policy", "_skip_slots")

    def __init__(
        self,
        experimental_io_device: IoDevice = None,
        experimental_enable_async_checkpoint: bool = _NOT_GIVEN,
        experimental_write_callbacks: Iterable[WriteCallback] | None = None,
        enable_async: bool = False,
        experimental_skip_slot_variables: bool = False,
        experimental_sharding_callback: ShardingPolicy | None = None,
        *,
        orbax: OrbaxSettings | None = None,
    ) -> None:
        """Makes options.

        Args:
          experimental_io_device: the process that does all file access. Only this process needs to see the directory. Given as a
            TensorFlow device string (such as ``"/job:worker/task:3"`` for process 3, ``"/job:localhost"`` or ``"CPU:0"``), a
            process index, or a jax.Device. With None, each process writes its own shards to a directory that all processes see.
          experimental_enable_async_checkpoint: deprecated; use `enable_async`. Saves are asynchronous if either of the two is True.
          experimental_write_callbacks: callables that run, in order, once a checkpoint is committed and can be restored. Each takes
            the checkpoint's path or no argument. The iterable is copied.
          enable_async: whether `save` and `write` return as soon as the values are safe from later changes, and write
            the files in the background.
          experimental_skip_slot_variables: whether restoring leaves slot variables as they are: the leaves of optimizer states with
            the shape of a parameter (moments, traces). Saving is not affected.
          experimental_sharding_callback: how data is divided into files: `ShardByTaskPolicy()` (the same as None),
            `MaxShardSizePolicy(bytes)`, TensorFlow's policies of these names, or a callback in TensorFlow's form. Such a callback is an
            object with a `description`. It is called with a sequence of shardable tensors and returns a list of groups, each
            ``{checkpoint_key: {slice_spec: tensor}}``. Each group gets its own data files. A shardable tensor has these attributes:
            `checkpoint_key` (the leaf's name), `slice_spec` ("" for a whole tensor), `tensor` (to put into a group unchanged), `dtype`
            (numpy's), `shape`, `device` (of the process that writes) and `name`. Each process calls the callback with the tensors that
            it writes; with an IO device, only that process calls it. A str leaf has no tensor. Every tensor must be in exactly one
            group, unchanged; otherwise the save raises RuntimeError, which names the tensor, and leaves no files.
          orbax: Orbax's settings beyond TensorFlow's options; None for the defaults of `OrbaxSettings`.

        Raises:
          TypeError: a flag is not a bool (numpy's bool is not accepted), the callbacks are not an iterable of callables, or `orbax` is
            of another class.
          ValueError: a device cannot be parsed, a callback accepts neither 0 nor 1 argument, or the sharding callback is neither a
            policy nor a callback.
        """
        if experimental_enable_async_checkpoint is _NOT_GIVEN:
            experimental_enable_async_checkpoint = False
        else:
            _warn_deprecated(self)
        deprecated = flag("experimental_enable_async_checkpoint", experimental_enable_async_checkpoint)
        self.experimental_io_device = experimental_io_device
        self.experimental_write_callbacks = experimental_write_callbacks
        self._async = flag("enable_async", enable_async) or deprecated
        self.experimental_skip_slot_variables = experimental_skip_slot_variables
        self.experimental_sharding_callback = experimental_sharding_callback
        self.orbax = orbax

    @property
    def experimental_io_device(self) -> IoDevice:
        """The process that does all file access, as it was given; None if each process accesses its own shards."""
        return self._device

    @experimental_io_device.setter
    def experimental_io_device(self, value: IoDevice) -> None:
        self._device = devices.parse_device(value)

    @property
    def enable_async(self) -> bool:
        """Whether saving continues in the background."""
        return self._async

    @enable_async.setter
    def enable_async(self, value: bool) -> None:
        self._async = flag("enable_async", value)

    @property
    def experimental_enable_async_checkpoint(self) -> bool:
        """Deprecated: another name of `enable_async`. Setting it issues a DeprecationWarning."""
        return self._async

    @experimental_enable_async_checkpoint.setter
    def experimental_enable_async_checkpoint(self, value: bool) -> None:
        _warn_deprecated(self)
        self._async = flag("experimental_enable_async_checkpoint", value)

    @property
    def experimental_write_callbacks(self) -> list[WriteCallback] | None:
        """The callables that run after the commit: a list, or None. The list may be changed; its items are checked at use."""
        return self._callbacks

    @experimental_write_callbacks.setter
    def experimental_write_callbacks(self, value: Iterable[WriteCallback] | None) -> None:
        self._callbacks = None if value is None else list(callbacks.check_callbacks(value))

    @property
    def experimental_skip_slot_variables(self) -> bool:
        """Whether restoring leaves slot variables (such as optimizer moments) as they are."""
        return self._skip_slots

    @experimental_skip_slot_variables.setter
    def experimental_skip_slot_variables(self, value: bool) -> None:
        self._skip_slots = flag("experimental_skip_slot_variables", value)

    @property
    def experimental_sharding_callback(self) -> ShardingPolicy | None:
        """How data is divided into files."""
        return self._policy

    @experimental_sharding_callback.setter
    def experimental_sharding_callback(self, value: ShardingPolicy | None) -> None:
        own = isinstance(value, (ShardByTaskPolicy, MaxShardSizePolicy))
        if value is not None and not own and not sharding.is_callback(value):
            hint = ""
            if isinstance(value, type):
                arguments = "()" if issubclass(value, ShardByTaskPolicy) else "(...)"
                hint = f"; this is the class, write {value.__name__}{arguments}"
            raise mismatch(
                ValueError,
                "experimental_sharding_callback",
                "ShardByTaskPolicy(), MaxShardSizePolicy(bytes), None, or a callable object with a `description` (a str)",
                f"{value!r}{hint}",
            )
        policy_of(value)
        self._policy = value

    @property
    def orbax(self) -> OrbaxSettings | None:
        """Settings of Orbax beyond TensorFlow's options; None for the defaults."""
        return self._orbax

    @orbax.setter
    def orbax(self, value: OrbaxSettings | None) -> None:
        if value is not None and not isinstance(value, OrbaxSettings):
            raise mismatch(
                TypeError, "orbax", "OrbaxSettings(...), such as OrbaxSettings(timeout_secs=600)", repr(value)
            )
        self._orbax = value

    def __repr__(self) -> str:
        names = [name for name in _signature.parameters if name not in ("self", "experimental_enable_async_checkpoint")]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CheckpointOptions) or type(self) is not type(other):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __getstate__(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        # The first part holds attributes of a subclass, the second the slots.
        attributes, slots = cast(tuple[dict[str, Any] | None, dict[str, Any]], object.__getstate__(self))
        device = slots["_device"]
        return attributes, {**slots, "_device": device.process_index if isinstance(device, jax.Device) else device}

    def __copy__(self) -> Self:
        other = self._copied({}, lambda value: value)
        other._callbacks = None if self._callbacks is None else list(self._callbacks)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._copied(memo, lambda value: copy.deepcopy(value, memo))

    def _copied(self, memo: dict[int, Any], change: Callable[[Any], Any]) -> Self:
        memo[id(self)] = other = object.__new__(type(self))
        attributes, slots = self.__getstate__()
        for name, value in {**(attributes or {}), **slots}.items():
            object.__setattr__(other, name, change(value))
        other._device = self._device
        return other


# help() and tools shall show the default False, as TensorFlow has it, instead of the marker for "not given".
_signature = inspect.signature(CheckpointOptions.__init__)
_parameters = [
    each.replace(default=False) if each.default is _NOT_GIVEN else each for each in _signature.parameters.values()
]
CheckpointOptions.__init__.__signature__ = _signature.replace(parameters=_parameters)  # type: ignore[attr-defined]


def sharding_callback_of(options: CheckpointOptions) -> Any:
    """Returns the sharding callback of the options; None if they have a policy, which only changes settings, or nothing."""
    policy = policy_of(options.experimental_sharding_callback)
    return None if isinstance(policy, (MaxShardSizePolicy, ShardByTaskPolicy)) else policy


def checked_options(options: object) -> CheckpointOptions | None:
    """Returns the argument `options` of a call. Raises TypeError if it is neither a CheckpointOptions nor None."""
    if options is None or isinstance(options, CheckpointOptions):
        return options
    if isinstance(options, type):
        own = options is CheckpointOptions
        found = f"the class {'jaxckpt.CheckpointOptions' if own else f'{options.__module__}.{options.__qualname__}'}"
        hint = f"; write {options.__name__}()" if issubclass(options, CheckpointOptions) else ""
    else:
        found, hint = type_name(options), ""
        if type(options).__name__ == "CheckpointOptions":
            hint = "; import it from jaxckpt (`from jaxckpt import CheckpointOptions`), it takes the same arguments"
    raise TypeError(f"options must be a jaxckpt.CheckpointOptions or None, got {found}{hint}.")


def _warn_deprecated(options: CheckpointOptions) -> None:
    """Warns at the line that sets the attribute or calls the constructor, even through a subclass's constructor."""
    # Level 1 is this function, level 2 the constructor or the property.
    level, frame = 3, sys._getframe(2)
    while frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is options and frame.f_back:
        level += 1
        frame = frame.f_back
    text = "experimental_enable_async_checkpoint is deprecated; use enable_async, which does the same."
    warnings.warn(text, DeprecationWarning, stacklevel=level)
