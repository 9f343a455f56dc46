"""`CheckpointConfig`: the checked values of a config."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Annotated, Any, Literal, SupportsIndex, SupportsInt, get_type_hints

from jaxckpt.checkpoint import Checkpoint
from jaxckpt.config.kinds import Only, PositiveFloat, PositiveInt, fits, words
from jaxckpt.directory.paths import checked_path, is_name
from jaxckpt.directory.policies import (
    PreservationPolicy,
    SaveDecisionPolicy,
    check_preservation_policy,
    check_save_decision_policy,
)
from jaxckpt.directory.steps import step_reader
from jaxckpt.manager import CheckpointManager
from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy, policy_of

SHARD_BY_TASK = "shard_by_task"


@dataclass(frozen=True)
class CheckpointConfig:
    """How a run saves its checkpoints: the arguments of `CheckpointManager`, and its options.

    `load_config` makes one from a file. It is immutable; `dataclasses.replace` makes a changed copy. Two configs are equal
    if all their values are equal. ``print(config)`` shows every effective value in the form of a YAML config file.

    Attributes:
      directory: directory of the checkpoints. A relative path is relative to the working directory. ``~`` at its beginning is replaced
        by the home directory; environment variables are not expanded.
      max_to_keep: how many checkpoints are kept; None keeps all of them.
      keep_checkpoint_every_n_hours: one checkpoint in this many hours is kept for ever; None to keep none for ever.
      checkpoint_name: the part of the names before the number; checkpoints are named ``<directory>/<checkpoint_name>-<number>``.
      step_counter: tells the training step: a callable without arguments, or an object that ``int()`` accepts and whose value can
        change.
      checkpoint_interval: smallest number of steps between two saves. It requires a `step_counter`.
      init_fn: a callable without arguments that `CheckpointManager.restore_or_initialize` calls if there is no checkpoint.
      last_checkpoint_step: the step of the last save, if there was one before this program.
      options: the options of every call of the manager that does not get its own options. The config keeps a copy.
      preservation_policy: a policy of Orbax, or an object with its method `should_preserve`, that keeps checkpoints besides
        `max_to_keep`; None for none.
      save_decision_policy: a policy of Orbax, or an object with its method `should_save`, that decides when to save, instead of
        `checkpoint_interval`; None for none. It requires a `step_counter`.
      numbers: "saves" counts the saves; "step" makes the step the number of a checkpoint, and requires a `step_counter`.

    Raises:
      TypeError: a value has the wrong type.
      ValueError: a value is out of range.
    """

    directory: str
    max_to_keep: PositiveInt | None
    keep_checkpoint_every_n_hours: PositiveFloat | None = None
    checkpoint_name: Annotated[str, Only("a file name without /, as text", is_name)] = "ckpt"
    step_counter: Callable[[], SupportsInt] | SupportsInt | SupportsIndex | None = None
    checkpoint_interval: PositiveInt | None = None
    init_fn: Callable[[], object] | None = None
    last_checkpoint_step: int | None = None
    options: CheckpointOptions = field(default_factory=CheckpointOptions)
    preservation_policy: PreservationPolicy | None = None
    save_decision_policy: SaveDecisionPolicy | None = None
    numbers: Literal["saves", "step"] = "saves"

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", checked_path(self.directory, "directory"))
        check_preservation_policy(self.preservation_policy)
        check_save_decision_policy(self.save_decision_policy)
        for name, annotation in annotations().items():
            value = getattr(self, name)
            if not fits(annotation, value):
                allowed = (words(annotation) or str(annotation)).replace("null", "None")
                kind = ValueError if fits(annotation, value, narrow=False) else TypeError
                raise kind(f"{name}: expected {allowed}, got {value!r}")
        step_reader(self.step_counter)
        object.__setattr__(self, "options", copy.copy(self.options))

    def manager(self, checkpoint: Checkpoint, **changes: Any) -> CheckpointManager:
        """Builds the manager that this config describes.

        Args:
          checkpoint: the Checkpoint to save and restore.
          **changes: fields to replace for this manager, such as a `step_counter` that only the program knows.

        Raises:
          TypeError: a value has the wrong type.
          ValueError: the manager refuses a value or a combination of values, such as an interval without a step counter.
        """
        config = dataclasses.replace(self, **changes) if changes else self
        return CheckpointManager(
            checkpoint, **{item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as nested dicts of plain values, in the form of a config file.

        If all callables of the config can be imported, `load_config` makes an equal config from the result. Other callables (a
        lambda, the result of a factory) appear as their `repr`, and a jax.Device as the index of its process.
        """
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        # The one section comes last.
        values["options"] = values.pop("options")
        values["step_counter"] = _import_path(self.step_counter)
        values["init_fn"] = _import_path(self.init_fn)
        values["preservation_policy"] = _import_path(self.preservation_policy)
        values["save_decision_policy"] = _import_path(self.save_decision_policy)
        values["options"] = _plain_options(self.options)
        return values

    def __str__(self) -> str:
        # Imported here, so that `import jaxckpt` stays fast.
        import yaml  # type: ignore[import-untyped]

        values = self.to_dict()
        values["options"]["orbax"] = dataclasses.asdict(self.options.orbax or OrbaxSettings())
        return str(yaml.safe_dump(values, sort_keys=False, default_flow_style=False)).rstrip()


@functools.cache
def annotations() -> dict[str, Any]:
    """Returns the type of every field, by name."""
    return get_type_hints(CheckpointConfig, include_extras=True)


def _plain_options(options: CheckpointOptions) -> dict[str, Any]:
    device, policy, callbacks = (
        options.experimental_io_device,
        policy_of(options.experimental_sharding_callback),
        options.experimental_write_callbacks,
    )
    plain_policy: object = None
    if isinstance(policy, MaxShardSizePolicy):
        plain_policy = {"max_shard_size": policy.max_shard_size}
    elif isinstance(policy, ShardByTaskPolicy):
        plain_policy = SHARD_BY_TASK
    elif policy is not None:
        plain_policy = _import_path(policy)
    return {
        "experimental_io_device": device
        if device is None or isinstance(device, (str, int))
        else int(device.process_index),
        "experimental_write_callbacks": None
        if callbacks is None
        else [_import_path(callback) for callback in callbacks],
        "enable_async": options.enable_async,
        "experimental_skip_slot_variables": options.experimental_skip_slot_variables,
        "experimental_sharding_callback": plain_policy,
        "orbax": None if options.orbax is None else dataclasses.asdict(options.orbax),
    }


def _import_path(value: object) -> str | None:
    """Returns the import path of an object if it can be imported by it; otherwise its `repr`. None for None."""
    if value is None:
        return None
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    found: object = sys.modules.get(module or "")
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    # Python makes a new object for a bound method, such as a class method, at each access, so methods are compared with ==.
    same = found is value or (isinstance(value, MethodType) and found == value)
    return f"{module}:{name}" if same else repr(value)
