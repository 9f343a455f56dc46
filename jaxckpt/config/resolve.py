"""Makes a CheckpointConfig from plain values. Checks every key, and reports all mistakes at once."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxckpt._lib.arguments import refusal_of
from jaxckpt.config import schema
from jaxckpt.config.imports import imported
from jaxckpt.config.kinds import fits
from jaxckpt.config.model import SHARD_BY_TASK, CheckpointConfig
from jaxckpt.config.problems import UNUSABLE, KeyPath, config_error, dotted, got
from jaxckpt.config.schema import CALLBACKS, DEPRECATED, OPTIONS, ORBAX, POLICY
from jaxckpt.config.sources import Source
from jaxckpt.directory.paths import checked_path
from jaxckpt.directory.policies import check_preservation_policy, check_save_decision_policy
from jaxckpt.directory.steps import step_reader
from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy, sharding

_POLICIES = {"preservation_policy": check_preservation_policy, "save_decision_policy": check_save_decision_policy}


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    section: str = "",
) -> CheckpointConfig:
    """Loads a config of how to save checkpoints, and checks all of it.

    Callbacks and other import paths are imported now, so that a mistake ends the program before it trains, not at its
    first save. A config can name any function, so load only configs that you trust like code.

    Args:
      source: path of a file that ends in .yaml, .yml or .toml; or a mapping, such as a dict, an ml_collections ConfigDict or an
        OmegaConf DictConfig. In a mapping, a value may also be the Python object itself, such as a callback.
      overrides: changes to the source, such as ``"options.enable_async=true"``. Each value is read as YAML and replaces the old
        value; the last override of a key wins. A mapping from key paths to values is accepted too.
      section: key path of the mapping that is the config, such as ``"train.checkpoint"``, if the source holds other things
        too. The keys of overrides start there.

    Returns:
      The config. `CheckpointConfig.manager` makes the manager, and `CheckpointConfig.options` has the options.

    Raises:
      ConfigError: the config has mistakes. The message lists each with file and line, key, what was expected and what was found.
      OSError: the file cannot be read (`FileNotFoundError`, `PermissionError`, ...).

    Warns:
      DeprecationWarning: the config sets `experimental_enable_async_checkpoint`.
    """
    reading = Source(source, overrides, section)
    values = _top(reading)
    options, deprecated = _options(reading, reading.data.get("options"))
    if reading.problems:
        raise config_error(reading.problems, reading.name)
    if deprecated:
        key = dotted((*reading.section, *deprecated))
        where = ": ".join(part for part in (reading.where(deprecated), key) if part)
        warnings.warn(f"{where} is deprecated; use options.enable_async", DeprecationWarning, stacklevel=2)
    return CheckpointConfig(**values, options=options)


def _top(reading: Source) -> dict[str, Any]:
    """Returns the arguments of the manager."""
    values: dict[str, Any] = {}
    for name, value in _known(reading, reading.data, ()).items():
        path, annotation = (name,), schema.sections()[()][name]
        if path == OPTIONS:
            continue
        if name in ("step_counter", "init_fn", *_POLICIES) and value is not None:
            value = imported(reading, path, value)
        elif name == "directory" and isinstance(value, (str, os.PathLike)):
            value = _try(reading, path, checked_path, {"value": value, "argument": name}, value)
        if value is UNUSABLE:
            continue
        if name in _POLICIES:
            _try(reading, path, _POLICIES[name], {"policy": value}, reading.data[name])
        elif not fits(annotation, value):
            given = reading.data[name]
            which = "" if value is given else f", which is {got(value)}"
            reading.add(path, f"expected {schema.expected(path)}, got {reading.got(path, given)}{which}")
        elif name == "step_counter":
            _try(reading, path, step_reader, {"step_counter": value}, reading.data[name])
        values[name] = value
    for name in schema.REQUIRED:
        if name not in reading.data and reading.usable((name,)):
            reading.add((name,), f"expected {schema.expected((name,))}, got nothing: this key is required")
    return values


def _options(reading: Source, given: object) -> tuple[CheckpointOptions, KeyPath | None]:
    """Returns the options, and the path of the deprecated key if it was used."""
    nothing = CheckpointOptions()
    if given is None or given is UNUSABLE:
        return nothing, None
    if isinstance(given, CheckpointOptions):
        return given, None
    if not isinstance(given, dict):
        reading.add(OPTIONS, f"expected {schema.expected(OPTIONS)}, got {reading.got(OPTIONS, given)}")
        return nothing, None
    arguments: dict[str, Any] = {}
    for name, value in _known(reading, given, OPTIONS).items():
        path = (*OPTIONS, name)
        before = len(reading.problems)
        value = _option(reading, path, value)
        if len(reading.problems) == before:
            arguments[name] = value
            if name != DEPRECATED:
                _try(reading, path, CheckpointOptions, {name: value}, value)
    deprecated = (*OPTIONS, DEPRECATED) if DEPRECATED in arguments else None
    if deprecated:
        # The value is given as `enable_async`. Given as itself, the constructor would warn about a line of this file.
        arguments["enable_async"] = arguments.pop(DEPRECATED) or arguments.get("enable_async", False)
    options = None if reading.problems else _try(reading, OPTIONS, CheckpointOptions, arguments, given)
    return options or nothing, deprecated


def _option(reading: Source, path: KeyPath, value: object) -> object:
    """Returns the Python value of one option."""
    name = path[-1]
    if name == "orbax":
        return _orbax(reading, value)
    if name == POLICY:
        return _policy(reading, path, value)
    if name == CALLBACKS:
        return _callbacks(reading, path, value)
    if not fits(schema.sections()[OPTIONS][str(name)], value):
        reading.add(path, f"expected {schema.expected(path)}, got {reading.got(path, value)}")
    return value


def _callbacks(reading: Source, path: KeyPath, value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, list):
        hint = f'; write ["{value}"]' if isinstance(value, str) else ""
        reading.add(path, f"expected {schema.expected(path)}, got {reading.got(path, value)}{hint}")
        return UNUSABLE
    callbacks = []
    for index, item in enumerate(value):
        callback = imported(reading, (*path, index), item)
        if callback is not UNUSABLE:
            _try(reading, (*path, index), CheckpointOptions, {CALLBACKS: [callback]}, item, "a callback")
            callbacks.append(callback)
    return callbacks


def _policy(reading: Source, path: KeyPath, value: object) -> object:
    if value == SHARD_BY_TASK:
        return ShardByTaskPolicy()
    if (isinstance(value, str) and ":" in value) or (isinstance(value, dict) and "call" in value):
        callback = imported(reading, path, value)
        if callback is not UNUSABLE:
            _try(reading, path, CheckpointOptions, {POLICY: callback}, value, "a sharding callback")
        return callback
    if isinstance(value, dict):
        size = "max_shard_size"
        reading.refuse_unknown(path, value, (size,))
        if size in value:
            inside = (*path, size)
            return _try(reading, inside, MaxShardSizePolicy, {size: value[size]}, value[size], "a number of bytes")
    elif value is None or isinstance(value, (ShardByTaskPolicy, MaxShardSizePolicy)) or sharding.is_callback(value):
        return value
    reading.add(path, f"expected {schema.expected(path)}, got {reading.got(path, value)}")
    return UNUSABLE


def _orbax(reading: Source, value: object) -> object:
    if value is None or isinstance(value, OrbaxSettings):
        return value
    if not isinstance(value, dict):
        reading.add(ORBAX, f"expected {schema.expected(ORBAX)}, got {reading.got(ORBAX, value)}")
        return UNUSABLE
    settings = _known(reading, value, ORBAX)
    before = len(reading.problems)
    for name, setting in settings.items():
        path = (*ORBAX, name)
        if not fits(schema.sections()[ORBAX][name], setting):
            reading.add(path, f"expected {schema.expected(path)}, got {reading.got(path, setting)}")
        else:
            _try(reading, path, OrbaxSettings, {name: setting}, setting)
    return UNUSABLE if len(reading.problems) > before else _try(reading, ORBAX, OrbaxSettings, settings, value)


def _known(reading: Source, data: dict[object, object], section: KeyPath) -> dict[str, object]:
    """Returns the usable entries of a section, and reports unknown keys."""
    keys = schema.sections()[section]
    reading.refuse_unknown(section, data, keys, schema.known_keys())
    return {key: value for key, value in data.items() if isinstance(key, str) and key in keys and value is not UNUSABLE}


def _try(
    reading: Source,
    path: KeyPath,
    make: Callable[..., Any],
    arguments: dict[str, Any],
    value: object,
    allowed: str = "",
) -> Any:
    """Calls `make` and returns its result. If it refuses its arguments, reports a problem and returns `UNUSABLE`.

    Args:
      reading: the source, which collects problems.
      path: key path of the value from which the arguments come.
      make: the class or function that checks the arguments.
      arguments: its arguments.
      value: the value of the config at `path`.
      allowed: the allowed values in words; empty to use the words of the schema.
    """
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        # The error's text names the argument and its Python types. The key path and the schema tell more to a reader of the config.
        reason, says_expected = refusal_of(error)
        if not says_expected:
            reason = f"expected {allowed or schema.expected(path)}, got {reading.got(path, value)}: {reason}"
        reading.add(path, reason)
        return UNUSABLE
