"""Plain values into a CheckpointConfig. Nothing stops at the first mistake: every key is looked at."""

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
from jaxckpt.directory.steps import step_reader
from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy, sharding


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    section: str = "",
) -> CheckpointConfig:
    """Reads how to save checkpoints from a config file, and checks all of it.

    Callbacks and other import paths are imported now: a mistake in one ends the program before it trains, not when it
    first saves. A config can name any function: load only configs that you trust as you trust code.

    Args:
      source: path of a file that ends in .yaml, .yml or .toml; or a mapping, also an ml_collections ConfigDict or an
        OmegaConf DictConfig, in which a value may also be the Python object itself, such as a callback.
      overrides: changes on top, such as ``"options.enable_async=true"``. The value is read as YAML and replaces what is
        there; the last one wins. A mapping from such key paths to values will do as well.
      section: key of the mapping that is the config, such as ``"train.checkpoint"``, where the source holds more than
        that; the keys of overrides start there.

    Returns:
      The config. `CheckpointConfig.manager` makes the manager, `CheckpointConfig.options` are the options.

    Raises:
      ConfigError: lists everything that is wrong: file and line, key, what was expected, what was found.
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
        if name in ("step_counter", "init_fn") and value is not None:
            value = imported(reading, path, value)
        elif name == "directory" and isinstance(value, (str, os.PathLike)):
            value = _try(reading, path, checked_path, {"value": value, "argument": name}, value)
        if value is UNUSABLE:
            continue
        if not fits(annotation, value):
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
        # Its twin takes the value: the constructor would warn about a line of this file.
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
    """Returns the usable entries of a section; reports the keys that it does not have."""
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
    """Returns what `make` makes of the arguments; reports what it refuses, and returns `UNUSABLE` then.

    Args:
      reading: where to report it.
      path: the key that the arguments come from.
      make: the class, or function, that decides.
      arguments: its arguments.
      value: what the config holds at `path`.
      allowed: what the config may hold there; the words of the schema if empty.
    """
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        # Not the error's text, which names the argument and what it may be in Python: the key path and the schema say it better.
        reason, says_expected = refusal_of(error)
        if not says_expected:
            reason = f"expected {allowed or schema.expected(path)}, got {reading.got(path, value)}: {reason}"
        reading.add(path, reason)
        return UNUSABLE
