"""The keys that a config may have, read off the classes that they become, and what each of them may hold."""

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

# Where the annotation of the Python argument does not say what the config file holds.
_WORDS: dict[KeyPath, str] = {
    ("directory",): "the path of a directory, as text",
    ("step_counter",): f"{IMPORTED}, or null",
    ("init_fn",): f"{IMPORTED}, or null",
    OPTIONS: "a mapping of options",
    ORBAX: "a mapping of Orbax settings",
    (*OPTIONS, "experimental_io_device"): 'a device such as "/job:worker/task:0", a process index, or null',
    (*OPTIONS, CALLBACKS): f"a list of {IMPORTED}",
    (*OPTIONS, POLICY): f"{{max_shard_size: bytes}}, {SHARD_BY_TASK}, {IMPORTED}, or null",
}


@functools.cache
def sections() -> dict[KeyPath, dict[str, Any]]:
    """Returns the keys of each section with their annotations; `Any` for what the constructor alone can judge."""
    parameters = inspect.signature(CheckpointOptions).parameters
    return {
        (): annotations(),
        OPTIONS: {name: bool if isinstance(parameter.default, bool) else Any for name, parameter in parameters.items()},
        ORBAX: get_type_hints(OrbaxSettings, include_extras=True),
    }


@functools.cache
def known_keys() -> tuple[KeyPath, ...]:
    """Returns the paths of all keys."""
    return tuple((*section, name) for section, keys in sections().items() for name in keys)


def expected(path: KeyPath) -> str:
    """Says what the key at `path` may hold."""
    if path in _WORDS:
        return _WORDS[path]
    annotation = sections()[path[:-1]][str(path[-1])]
    return words(annotation) or "another value"
