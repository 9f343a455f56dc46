"""Config files: `load_config` reads, checks and resolves one into a `CheckpointConfig`.

A config passes through these modules in order: `sources` (with `files`, `yaml_text`, `plain` and `overrides`) makes plain values of a
file or a mapping, `schema` (with `kinds`) knows the keys, `resolve` (with `imports`) makes the objects that the values stand for, and
`model` holds the result. All of them report into `problems`.
"""

from jaxckpt.config.model import CheckpointConfig
from jaxckpt.config.resolve import load_config

__all__ = ["CheckpointConfig", "load_config"]
