"""Config files: whatever comes is a config or a ConfigError, and survives a round trip (Hypothesis)."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from config_helpers import EXAMPLES, HERE, MINIMAL
from hypothesis import strategies as st

from jaxckpt import CheckpointConfig, CheckpointOptions, ConfigError, load_config
from jaxckpt.config.problems import dotted
from jaxckpt.config.schema import known_keys, sections

# Whatever comes.

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["json:loads", "json:lods", "os:sep", "a:b", "/task:0", "shard_by_task", "zstd", "ckpts", "builtins:dict"]
    ),
)
NAMES = sorted({str(path[-1]) for path in known_keys()})
KEYS = st.sampled_from([*NAMES, "call", "with", "max_shard_size", "enable_asinc", "", "a.b"]) | st.text(max_size=4)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
TREES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(sections()[()], SCALARS | JSON),
        "options": st.dictionaries(st.sampled_from(list(sections()[("options",)])) | KEYS, JSON, max_size=5) | JSON,
    },
) | st.dictionaries(KEYS, JSON, max_size=5)


def only_config_errors(source: Any, overrides: Any = ()) -> CheckpointConfig | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return load_config(source, overrides)
        except ConfigError:
            return None


@pytest.mark.slow
@EXAMPLES
@hypothesis.given(TREES)
def test_any_mapping_is_a_config_or_a_config_error(source: dict[str, Any]) -> None:
    config = only_config_errors(source)
    if config is not None:
        assert isinstance(config.options, CheckpointOptions)
        str(config)


@EXAMPLES
@hypothesis.given(
    st.lists(st.builds("{}={}".format, st.sampled_from([dotted(key) for key in known_keys()]) | KEYS, st.text()) | JSON)
)
def test_any_overrides_are_a_config_or_a_config_error(overrides: list[Any]) -> None:
    only_config_errors(MINIMAL, overrides)


@EXAMPLES
@hypothesis.given(st.text(), st.sampled_from([".yaml", ".toml"]))
def test_any_file_is_a_config_or_a_config_error(tmp_path: Path, text: str, ending: str) -> None:
    path = tmp_path / f"any{ending}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    only_config_errors(path)


@EXAMPLES
@hypothesis.given(TREES)
def test_a_yaml_file_is_what_its_mapping_is(tmp_path: Path, source: dict[str, Any]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(source), encoding="utf-8")
    from_mapping, from_file = only_config_errors(source), only_config_errors(path)
    assert (from_mapping is None) == (from_file is None)
    if from_mapping is not None and not math.isnan(from_mapping.keep_checkpoint_every_n_hours or 0.0):
        assert from_file is not None
        assert str(from_file) == str(from_mapping)


POSITIVE = st.integers(1, 10**9)
FUNCTIONS = st.sampled_from([f"{HERE}:upload", f"{HERE}:no_argument", f"{HERE}:Notifier.quiet"])
VALID_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "experimental_io_device": st.none()
        | st.integers(0, 9)
        | st.sampled_from(["/job:worker/task:1", "CPU:0", "/task:3"]),
        "experimental_write_callbacks": st.none() | st.lists(FUNCTIONS, max_size=3),
        "enable_async": st.booleans(),
        "experimental_skip_slot_variables": st.booleans(),
        "experimental_sharding_callback": st.sampled_from([None, "shard_by_task"])
        | st.fixed_dictionaries({"max_shard_size": POSITIVE}),
        "orbax": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "timeout_secs": st.floats(1e-3, 1e6) | POSITIVE.filter(lambda secs: secs < 10**6),
                "exit_timeout_secs": st.floats(1e-3, 1e6),
                "compression": st.sampled_from([None, "zstd"]),
                "chunk_byte_size": st.integers(16, 2**40),
                "target_data_file_size": POSITIVE,
                "memory_limit_bytes": st.integers(16, 2**40),
                "read_once_per_job": st.none() | st.booleans(),
            },
        ),
    },
)
# Hypothesis also tries the texts that stand in the code, such as reserved names.
PATH_TEXT = st.text(st.characters(blacklist_characters="\0:/", blacklist_categories=("Cs",)), min_size=1).filter(
    lambda text: text not in (".", "..") and "orbax-checkpoint-tmp" not in text and ".jaxckpt-tmp-" not in text
)
VALID = st.fixed_dictionaries(
    # `~` at the beginning means the home directory.
    {"directory": PATH_TEXT.filter(lambda text: not text.startswith("~")), "max_to_keep": st.none() | POSITIVE},
    optional={
        "keep_checkpoint_every_n_hours": st.none() | POSITIVE | st.floats(1e-6, 1e6),
        "checkpoint_name": PATH_TEXT,
        "step_counter": st.sampled_from([None, f"{HERE}:step"]),
        "checkpoint_interval": st.none() | POSITIVE,
        "init_fn": st.none() | FUNCTIONS,
        "last_checkpoint_step": st.none() | st.integers(),
        "numbers": st.sampled_from(["saves", "step"]),
        "options": VALID_OPTIONS,
    },
)


@EXAMPLES
@hypothesis.given(VALID)
def test_round_trip(tmp_path: Path, source: dict[str, Any]) -> None:
    config = load_config(source)
    for name, value in source.items():
        if name not in ("options", "step_counter", "init_fn"):
            assert getattr(config, name) == value
    for name, value in source.get("options", {}).items():
        if name not in ("experimental_write_callbacks", "experimental_sharding_callback", "orbax"):
            assert getattr(config.options, name) == value
    assert load_config(config.to_dict()) == config
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config
    path = tmp_path / "printed.yaml"
    path.write_text(str(config), encoding="utf-8")
    assert str(load_config(path)) == str(config)


@EXAMPLES
@hypothesis.given(VALID)
def test_overrides_are_what_the_mapping_is(source: dict[str, Any]) -> None:
    flat = {**{name: value for name, value in source.items() if name != "options"}}
    flat |= {f"options.{name}": value for name, value in source.get("options", {}).items()}
    texts = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**9)}" for key, value in flat.items()]
    texts = [text.strip().removesuffix("\n...") for text in texts]
    expected = load_config(source)
    assert load_config({}, texts) == expected
    assert load_config({}, flat) == expected
