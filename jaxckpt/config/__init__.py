"""Config files: `load_config` reads, checks and resolves one into a `CheckpointConfig`.

A config passes through these modules in order: `sources` (with `files`, `yaml_text`, `plain` and `overrides`) turns a file or a mapping
into plain values, `schema` (with `kinds`) lists the keys, `resolve` (with `imports`) makes Python objects from the values, and `model`
holds the result. Each of them collects its findings as `problems`.
"""

from jaxckpt.config.model import CheckpointConfig
from jaxckpt.config.resolve import load_config

__all__ = ["CheckpointConfig", "load_config"]
