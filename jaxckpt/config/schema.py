"""The keys of a config and their allowed values, taken from the classes that the config becomes."""

import dataclasses
import functools
import inspect
from typing import Any, get_type_hints

from jaxckpt.config.imports import IMPORTED
from jaxckpt.config.kinds import words
from jaxckpt.config.model import SHARD_BY_TASK, CheckpointConfig, annotations
from jaxckpt.config.problems import KeyPath
from jaxckpt.options import CheckpointOptions, OrbaxSettings

OPTIONS: KeyPath = ("options",)
ORBAX: KeyPath = ("options", "orbax")
DEPRECATED = "experimental_enable_async_checkpoint"
CALLBACKS = "experimental_write_callbacks"
POLICY = "experimental_sharding_callback"
REQUIRED = tuple(
    item.name
    for item in dataclasses.fields(CheckpointConfig)
    if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
)

# The allowed values in words, for keys where the annotation of the Python argument does not describe the config file.
_WORDS: dict[KeyPath, str] = {
    ("directory",): "the path of a directory, as text",
    ("step_counter",): f"{IMPORTED}, or null",
    ("init_fn",): f"{IMPORTED}, or null",
    ("preservation_policy",): f"{IMPORTED}, or null",
    ("save_decision_policy",): f"{IMPORTED}, or null",
    OPTIONS: "a mapping of options",
    ORBAX: "a mapping of Orbax settings",
    (*OPTIONS, "experimental_io_device"): 'a device such as "/job:worker/task:0", a process index, or null',
    (*OPTIONS, CALLBACKS): f"a list of {IMPORTED}",
    (*OPTIONS, POLICY): f"{{max_shard_size: bytes}}, {SHARD_BY_TASK}, {IMPORTED}, or null",
}


@functools.cache
def sections() -> dict[KeyPath, dict[str, Any]]:
    """Returns the keys of each section with their annotations; `Any` for keys that only the constructor can check."""
    parameters = inspect.signature(CheckpointOptions).parameters
    return {
        (): annotations(),
        OPTIONS: {name: bool if isinstance(parameter.default, bool) else Any for name, parameter in parameters.items()},
        ORBAX: get_type_hints(OrbaxSettings, include_extras=True),
    }


@functools.cache
def known_keys() -> tuple[KeyPath, ...]:
    """Returns the key paths of all keys."""
    return tuple((*section, name) for section, keys in sections().items() for name in keys)


def expected(path: KeyPath) -> str:
    """Returns the allowed values of the key at `path` in words."""
    if path in _WORDS:
        return _WORDS[path]
    annotation = sections()[path[:-1]][str(path[-1])]
    return words(annotation) or "another value"
