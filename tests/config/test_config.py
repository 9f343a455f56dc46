"""Config files: what is read, what is refused and in which words, and that the result is what the real classes take."""

import copy
import dataclasses
import errno
import inspect
import json
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from config_helpers import (
    COUNT,
    HERE,
    KEEPS_ALL,
    MINIMAL,
    config_of,
    no_argument,
    options_of,
    problems_of,
    step,
    upload,
    written,
    yaml_problems,
)
from orbax.checkpoint import checkpoint_managers

import jaxckpt
from jaxckpt import CheckpointConfig, CheckpointManager, CheckpointOptions, ConfigError, OrbaxSettings, load_config

# What comes out.


def test_a_minimal_config_has_the_defaults_of_the_classes() -> None:
    config = load_config(MINIMAL)
    assert config == CheckpointConfig("ckpts", 3)
    assert config.options == CheckpointOptions()
    assert config.max_to_keep == 3
    assert config.directory == "ckpts"


def test_the_fields_are_the_arguments_of_the_manager() -> None:
    parameters = list(inspect.signature(CheckpointManager).parameters.values())
    fields = dataclasses.fields(CheckpointConfig)
    assert [field.name for field in fields] == [parameter.name for parameter in parameters[1:]]
    for field, parameter in zip(fields, parameters[1:], strict=True):
        if field.name == "options":
            continue
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert default == parameter.default, field.name


def test_all_keys() -> None:
    config = load_config(
        {
            "directory": "d",
            "max_to_keep": None,
            "keep_checkpoint_every_n_hours": 2,
            "checkpoint_name": "model",
            "step_counter": f"{HERE}:step",
            "checkpoint_interval": 100,
            "init_fn": f"{HERE}:no_argument",
            "last_checkpoint_step": 0,
            "options": {
                "experimental_io_device": "/job:worker/task:0",
                "experimental_write_callbacks": [f"{HERE}:upload", f"{HERE}:no_argument"],
                "enable_async": True,
                "experimental_skip_slot_variables": True,
                "experimental_sharding_callback": {"max_shard_size": 1000},
                "orbax": {"timeout_secs": 60, "compression": "zstd"},
            },
        }
    )
    assert config == CheckpointConfig(
        "d",
        None,
        2,
        "model",
        step,
        100,
        no_argument,
        0,
        CheckpointOptions(
            "/job:worker/task:0",
            experimental_write_callbacks=[upload, no_argument],
            enable_async=True,
            experimental_skip_slot_variables=True,
            experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(1000),
            orbax=OrbaxSettings(timeout_secs=60, compression="zstd"),
        ),
    )


_ORBAX = "orbax.checkpoint.checkpoint_managers"


def test_policies_of_a_manager() -> None:
    """An object by its import path, a class of Orbax or a function by a call, or the object itself."""
    assert config_of(preservation_policy=f"{HERE}:KEEPS_ALL").preservation_policy is KEEPS_ALL
    config = config_of(
        preservation_policy={"call": f"{HERE}:best"},
        save_decision_policy={"call": f"{_ORBAX}:SpecificStepsPolicy", "with": {"steps": [1, 5]}},
        numbers="step",
    )
    assert isinstance(config.preservation_policy, checkpoint_managers.BestN)
    assert config.save_decision_policy == checkpoint_managers.SpecificStepsPolicy([1, 5])
    assert config_of(save_decision_policy=config.save_decision_policy).save_decision_policy == (
        config.save_decision_policy
    )
    assert copy.deepcopy(config).save_decision_policy == config.save_decision_policy
    assert config.to_dict()["save_decision_policy"] == "SpecificStepsPolicy(steps=[1, 5])"


def test_policies_of_a_manager_that_are_refused() -> None:
    problems = problems_of(
        {
            **MINIMAL,
            "preservation_policy": {"call": f"{_ORBAX}:FixedIntervalPolicy", "with": {"interval": 3}},
            "save_decision_policy": f"{_ORBAX}:FixedIntervalPolicy",
            "numbers": "steps",
        }
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "preservation_policy",
        "save_decision_policy",
        "numbers",
    ]
    assert "FixedIntervalPolicy lacks Orbax's method should_preserve" in problems[0]
    assert "this is the class FixedIntervalPolicy; give an object of it" in problems[1]
    assert "expected 'saves' or 'step', got 'steps'" in problems[2]
    (problem,) = problems_of({**MINIMAL, "preservation_policy": 3})
    assert "package.module:function" in problem
    with pytest.raises(TypeError, match="preservation_policy: int lacks"):
        CheckpointConfig("d", 1, preservation_policy=3)  # type: ignore[arg-type]


def test_a_config_is_frozen_comparable_copyable_and_printable() -> None:
    config = config_of(options={"enable_async": True, "experimental_write_callbacks": [f"{HERE}:upload"]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_to_keep = 4  # type: ignore[misc]
    assert config != config_of()
    for copied in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert copied == config
    assert "max_to_keep=3" in repr(config)
    assert "enable_async=True" in repr(config)
    shown = yaml.safe_load(str(config))
    assert shown["options"]["experimental_write_callbacks"] == [f"{HERE}:upload"]
    assert shown["options"]["orbax"] == dataclasses.asdict(OrbaxSettings())
    assert set(shown) == {field.name for field in dataclasses.fields(CheckpointConfig)}


def test_replace_checks_as_the_constructor_does() -> None:
    config = load_config(MINIMAL)
    assert dataclasses.replace(config, max_to_keep=None, step_counter=step).step_counter is step
    with pytest.raises(ValueError, match="max_to_keep: expected a positive whole number, or None, got 0"):
        dataclasses.replace(config, max_to_keep=0)
    with pytest.raises(TypeError, match="max_to_keep"):
        dataclasses.replace(config, max_to_keep=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options"):
        dataclasses.replace(config, options=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint_name: expected a file name"):
        CheckpointConfig("d", 1, checkpoint_name="a/b")
    with pytest.raises(ValueError, match="directory is empty"):
        CheckpointConfig("", 1)


def test_a_config_has_options_of_its_own() -> None:
    options = CheckpointOptions(enable_async=True)
    config = CheckpointConfig("d", 1, options=options)
    options.enable_async = False
    assert config.options.enable_async


def test_the_source_is_not_changed() -> None:
    source: dict[str, Any] = {"directory": "d", "max_to_keep": 1, "options": {"orbax": {}}}
    before = copy.deepcopy(source)
    load_config(source, ["options.orbax.timeout_secs=5", "options.enable_async=true", "max_to_keep=2"])
    assert source == before


@pytest.mark.parametrize("section", [{"options": None}, {"options": {}}, {"options": {"orbax": None}}])
def test_an_empty_section_is_the_defaults(section: dict[str, Any]) -> None:
    assert config_of(**section) == config_of()


def test_policies() -> None:
    assert options_of(experimental_sharding_callback="shard_by_task") == CheckpointOptions(
        experimental_sharding_callback=jaxckpt.ShardByTaskPolicy()
    )
    assert options_of(experimental_sharding_callback=None) == CheckpointOptions()


@pytest.mark.parametrize("device", [None, 0, 3, "CPU:0", "/job:localhost", "/job:worker/replica:0/task:3/device:CPU:0"])
def test_devices(device: Any) -> None:
    assert options_of(experimental_io_device=device) == CheckpointOptions(device)


@pytest.mark.parametrize(
    ("given", "asynchronous"),
    [
        ({"experimental_enable_async_checkpoint": True}, True),
        ({"experimental_enable_async_checkpoint": False}, False),
        ({"experimental_enable_async_checkpoint": True, "enable_async": False}, True),
        ({"enable_async": True, "experimental_enable_async_checkpoint": False}, True),
    ],
)
def test_the_deprecated_key_warns_and_points_at_the_file_and_the_caller(
    tmp_path: Path, given: dict[str, bool], asynchronous: bool
) -> None:
    path = written(tmp_path, json.dumps({**MINIMAL, "options": given}, indent=1))
    with pytest.warns(DeprecationWarning, match="use options.enable_async") as caught:
        config = load_config(path)
    assert config.options.enable_async is asynchronous
    (warning,) = caught
    assert warning.filename == __file__
    assert re.match(
        rf"{re.escape(str(path))}:\d: options\.experimental_enable_async_checkpoint is deprecated", str(warning.message)
    )


# Sources.


def test_yaml_toml_and_mappings_say_the_same(tmp_path: Path) -> None:
    as_yaml = written(
        tmp_path,
        """
        directory: d
        max_to_keep: 3
        options:
          enable_async: yes
          experimental_write_callbacks: ["json:loads"]
          orbax: {timeout_secs: 1.5}
        """,
    )
    as_toml = written(
        tmp_path,
        """
        directory = "d"
        max_to_keep = 3
        [options]
        enable_async = true
        experimental_write_callbacks = ["json:loads"]
        orbax.timeout_secs = 1.5
        """,
        "run.toml",
    )
    mapping = {
        "directory": "d",
        "max_to_keep": 3,
        "options": {"enable_async": True, "experimental_write_callbacks": [json.loads], "orbax": {"timeout_secs": 1.5}},
    }
    assert load_config(as_yaml) == load_config(str(as_yaml)) == load_config(as_toml) == load_config(mapping)


@pytest.mark.parametrize("name", ["run.yml", "run.YAML"])
def test_other_yaml_endings(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbfdirectory: caf\xc3\xa9\nmax_to_keep: 1\n")
    assert load_config(path).directory == "café"


@pytest.mark.parametrize(("name", "ending"), [("run.json", ".json"), ("run", "no ending")])
def test_other_endings_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    path = written(tmp_path, "", name)
    assert problems_of(path) == [f"{path}: expected a config file that ends in .yaml, .yml or .toml, got {ending!r}"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        load_config(tmp_path / "missing.yaml")
    assert missing.value.errno == errno.ENOENT
    assert (
        missing.value.filename == str(tmp_path / "missing.yaml") or missing.value.filename == tmp_path / "missing.yaml"
    )
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(IsADirectoryError):
        load_config(tmp_path / "folder.yaml")


@pytest.mark.parametrize("source", [None, 3, b"run.yaml", ["a"], CheckpointConfig, CheckpointOptions()])
def test_sources_that_are_none(source: Any) -> None:
    with pytest.raises(TypeError, match="expected the path of a YAML or TOML file, or a mapping") as info:
        load_config(source)
    assert isinstance(info.value, ConfigError)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"directory: [1",
            "bad.yaml:1: expected valid YAML, got an error: while parsing a flow sequence, expected ',' or ']'",
        ),
        (b"a: 1\nb: c: d\n", "bad.yaml:2: expected valid YAML, got an error: mapping values are not allowed here"),
        (b"a: 1\n--- \nb: 2\n", "bad.yaml:2: expected valid YAML, got an error: expected a single document"),
        (b"a: *unknown\n", "bad.yaml:1: expected valid YAML, got an error: found undefined alias"),
        (b"a: \x01\n", "bad.yaml: expected valid YAML, got an error: "),
        (b"[" * 5000, "bad.yaml:1: expected at most 64 levels of mappings and lists, got more"),
        (b"directory: \xff\n", "bad.yaml: expected text in UTF-8, got other bytes"),
        (b"- 1\n- 2\n", "bad.yaml: expected a mapping of keys to values, got a list [1, 2]"),
        (b"just text\n", "bad.yaml: expected a mapping of keys to values, got 'just text' (text)"),
    ],
)
def test_files_that_are_not_yaml(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (line,) = problems_of(path)
    assert line.replace(f"{tmp_path}{os.sep}", "").startswith(problem)


@pytest.mark.parametrize("text", ["directory = ", "a = 1\na = 2\n", "[a]\n[a]\n", "a = " + "[" * 3000])
def test_files_that_are_not_toml(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text, "bad.toml")
    (line,) = problems_of(path)
    assert line.startswith(f"{path}: expected valid TOML, got an error: ")


def test_an_empty_file_lacks_what_is_required(tmp_path: Path) -> None:
    assert yaml_problems(tmp_path, "# directory: d\n") == [
        "run.yaml: directory: expected the path of a directory, as text, got nothing: this key is required",
        "run.yaml: max_to_keep: expected a positive whole number, or null, got nothing: this key is required",
    ]


def test_all_problems_are_reported_with_their_lines(tmp_path: Path) -> None:
    text = """\
        # comment
        directroy: /tmp/x
        max_to_keep: 0
        checkpoint_name: no
        keep_checkpoint_every_n_hours: 1:30
        checkpoint_interval: 1e3
        step_counter: json:lods
        enable_async: true
        options:
          enable_asinc: true
          enable_async: "true"
          experimental_io_device: garbage
          experimental_write_callbacks:
            - os.path.join
            - {cal: x}
          experimental_sharding_callback: {max_shard_size: -1}
          orbax:
            timeout_secs: 1e3
            exit_timeout_secs: -1
            compression: gzip
            timeout: 3
            chunk_byte_size: 5.0
        """
    expected = [
        "5: keep_checkpoint_every_n_hours: expected an unambiguous value, got 1:30, which YAML reads as 90: write 90",
        "2: directroy: unknown key; did you mean directory?",
        "8: enable_async: unknown key; did you mean options.enable_async?",
        "3: max_to_keep: expected a positive whole number, or null, got 0",
        "4: checkpoint_name: expected a file name without /, as text, got false (YAML reads no as false; quote",
        "6: checkpoint_interval: expected a positive whole number, or null, got '1e3' (text; write the number as 1000)",
        "7: step_counter: expected an import path, got 'json:lods' (text): json has no attribute 'lods'; did you mean",
        " directory: expected the path of a directory, as text, got nothing: this key is required",
        "10: options.enable_asinc: unknown key; did you mean enable_async?",
        "11: options.enable_async: expected true or false, got 'true' (text; write true without quotes)",
        '12: options.experimental_io_device: expected a device such as "/job:worker/task:0", a process index, or null, '
        "got 'garbage' (text): cannot parse 'garbage'",
        "14: options.experimental_write_callbacks[0]: expected an import path, got 'os.path.join' (text): it does not have",
        "15: options.experimental_write_callbacks[1].cal: unknown key; did you mean call?",
        '15: options.experimental_write_callbacks[1].call: expected "package.module:factory", got nothing',
        "16: options.experimental_sharding_callback.max_shard_size: expected ",
        "21: options.orbax.timeout: unknown key; did you mean timeout_secs?",
        "18: options.orbax.timeout_secs: expected a number, got '1e3' (text; write the number as 1000)",
        "19: options.orbax.exit_timeout_secs: expected a positive, finite number of seconds",
        "20: options.orbax.compression: expected 'zstd', or null, got 'gzip' (text)",
        "22: options.orbax.chunk_byte_size: expected a whole number, got 5.0",
    ]
    problems = yaml_problems(tmp_path, text)
    for problem, line in zip(problems, expected, strict=True):
        assert problem.startswith(f"run.yaml:{line}")


NAME = "checkpoint_name: expected a file name without /, as text, got "
HOURS = "keep_checkpoint_every_n_hours: expected a positive number, or null, got "
POLICY = (
    "options.experimental_sharding_callback: expected {max_shard_size: bytes}, shard_by_task, "
    '"package.module:function", or {call: "package.module:factory", with: {...}}, or null, got '
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_to_keep: 4", "max_to_keep: expected each key once, got it twice (first at run.yaml:2)"),
        ('"max_to_keep": 4', "max_to_keep: expected each key once"),
        ("options: {enable_async: true, enable_async: true}", "options.enable_async: expected each key once"),
        ("options: {orbax: {timeout_secs: 3, timeout_secs: 4}}", "options.orbax.timeout_secs: expected each key once"),
        ("? [a]\n: 1", "expected text as key, got a mapping or list"),
        ("? {a: 1}\n: 1", "expected text as key, got a mapping or list"),
        ("checkpoint_name: !!python/name:os.sep ''", "checkpoint_name: expected a plain value, got the YAML tag"),
        ("options: !!python/object:os.x {}", "options: expected a plain mapping or list, got the YAML tag"),
        ("options: !mine {}", "options: expected a plain mapping or list, got the YAML tag '!mine'"),
        ("checkpoint_name: 2024-99-99", "checkpoint_name: expected a timestamp, got '2024-99-99' (month must"),
        (
            "checkpoint_interval: 010",
            "checkpoint_interval: expected an unambiguous value, got 010, which YAML reads as 8",
        ),
        ("checkpoint_interval: -0_10", "checkpoint_interval: expected an unambiguous value"),
        ("checkpoint_interval: 1:30:00", "checkpoint_interval: expected an unambiguous value, got 1:30:00"),
        ("checkpoint_name: 2024-01-01", f"{NAME}datetime.date(2024, 1, 1) (date)"),
        ("checkpoint_name: on", f"{NAME}true (YAML reads on as true; quote it to mean text)"),
        ("checkpoint_name: 12", f"{NAME}12"),
        ("checkpoint_name:", f"{NAME}nothing"),
        ("checkpoint_name: ~", f"{NAME}null"),
        ("checkpoint_name: a/b", f"{NAME}'a/b' (text)"),
        ("checkpoint_interval: 1_0.5e+1", f"{COUNT}105.0"),
        ("checkpoint_interval: '10'", f"{COUNT}'10' (text; write the number without quotes)"),
        ("checkpoint_interval: 'null'", f"{COUNT}'null' (text; write null without quotes)"),
        ("checkpoint_interval: None", f"{COUNT}'None' (text; write null without quotes)"),
        ("checkpoint_interval: .inf", f"{COUNT}inf"),
        ("keep_checkpoint_every_n_hours: .nan", f"{HOURS}nan"),
        ("keep_checkpoint_every_n_hours: 1e-3", f"{HOURS}'1e-3' (text; write the number as 0.001)"),
        ("options: yes", "options: expected a mapping of options, got true (YAML reads yes as true"),
        ("options: [1]", "options: expected a mapping of options, got a list [1]"),
        ("options: {orbax: 3}", "options.orbax: expected a mapping of Orbax settings, got 3"),
        ("options: {experimental_sharding_callback: {}}", f"{POLICY}a mapping {{}}"),
        ("options: {experimental_sharding_callback: shard}", f"{POLICY}'shard' (text)"),
        ("options: {experimental_io_device: -1}", "options.experimental_io_device: expected a device such as"),
        ("options: {experimental_io_device: true}", "options.experimental_io_device: expected a device such as"),
        ("1: 2", "[1]: unknown key; the keys here are directory, "),
        ("on: 2", "True: unknown key; the keys here are directory, "),
        ("? ''\n: 2", "'': unknown key; the keys here are directory, "),
    ],
)
def test_traps_of_yaml(tmp_path: Path, text: str, problem: str) -> None:
    problems = yaml_problems(tmp_path, f"directory: d\nmax_to_keep: 3\n{text}\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"run.yaml:3: {problem}")


def test_the_suggested_spelling_of_a_number_is_one(tmp_path: Path) -> None:
    for text in ("1e3", "2.5e4", "1E9", "1e-3", "1e-9", "3e22", "-1e2"):
        (problem,) = yaml_problems(tmp_path, f"directory: d\nmax_to_keep: 3\ncheckpoint_interval: {text}\n")
        (number,) = re.findall(r"write the number as (\S+)\)", problem)
        assert yaml.safe_load(number) == float(text)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
        directory: d
        max_to_keep: &three 3
        checkpoint_interval: *three
        options: &options
          enable_async: true
          orbax: &orbax {timeout_secs: 5}
        """,
    )
    config = load_config(path)
    assert config.checkpoint_interval == 3
    merged = written(
        tmp_path,
        """\
        base:
          defaults: &defaults {directory: d, max_to_keep: 3, options: {enable_async: true}}
        run:
          <<: *defaults
          max_to_keep: 4
          checkpoint_interval: x
        """,
        "merged.yaml",
    )
    assert problems_of(merged, section="run") == [
        f"{merged}:6: run.checkpoint_interval: expected a positive whole number, or null, got 'x' (text)"
    ]
    config = load_config(merged, ["checkpoint_interval=2"], section="run")
    assert (config.directory, config.max_to_keep, config.options.enable_async) == ("d", 4, True)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("directroy", "directory"),
        ("max-to-keep", "max_to_keep"),
        ("maxToKeep", "max_to_keep"),
        ("MAX_TO_KEEP", "max_to_keep"),
        ("enable_async", "options.enable_async"),
        ("compression", "options.orbax.compression"),
        ("timeout_sec", "options.orbax.timeout_secs"),
        ("io_device", "options.experimental_io_device"),
        ("options.max_to_keep", "max_to_keep"),
        ("options.timeout_secs", "options.orbax.timeout_secs"),
        ("options.write_callbacks", "experimental_write_callbacks"),
        ("options.orbax.enable_async", "options.enable_async"),
        ("options.orbax.chunk_bytes_size", "chunk_byte_size"),
    ],
)
def test_did_you_mean(key: str, suggestion: str) -> None:
    *path, last = key.split(".")
    source: dict[str, Any] = copy.deepcopy({**MINIMAL, "options": {"orbax": {}}})
    section = source
    for part in path:
        section = section[part]
    section[last] = 1
    assert problems_of(source) == [f"{key}: unknown key; did you mean {suggestion}?"]
    assert problems_of(MINIMAL, [f"{key}=1"]) == [f"override '{key}=1': {key}: unknown key; did you mean {suggestion}?"]


def test_without_a_likely_key_all_are_listed() -> None:
    (problem,) = problems_of({**MINIMAL, "options": {"orbax": {"zzz": 1}}})
    names = ", ".join(field.name for field in dataclasses.fields(OrbaxSettings))
    assert problem == f"options.orbax.zzz: unknown key; the keys here are {names}"


NUMBERS = [0, -1, 1, 7, 2.5, 3.0, math.nan, math.inf, -0.0, 10**400, np.int64(3), np.float32(0.5)]
OTHERS = [True, np.bool_(True), None, [], {}, "3", "ckpt", "", "a/b", "a\0b", "..", b"x", 1j]


@pytest.mark.parametrize("value", NUMBERS + OTHERS)
@pytest.mark.parametrize(
    "name",
    [
        "max_to_keep",
        "keep_checkpoint_every_n_hours",
        "checkpoint_name",
        "checkpoint_interval",
        "init_fn",
        "last_checkpoint_step",
    ],
)
def test_the_config_refuses_what_the_manager_refuses(tmp_path: Path, name: str, value: Any) -> None:
    arguments = {"directory": tmp_path / "d", "max_to_keep": 2, "step_counter": step, name: value}
    # A config makes Python's numbers of numpy's scalars.
    plain = value.item() if isinstance(value, np.generic) else value
    try:
        CheckpointManager(jaxckpt.Checkpoint(x=1), **{**arguments, name: plain})
    except (TypeError, ValueError, OverflowError):
        problems = problems_of(arguments)
        assert len(problems) == 1
        assert problems[0].startswith(f"{name}")
    else:
        config = load_config(arguments)
        assert config.manager(jaxckpt.Checkpoint(x=1)).directory == str(tmp_path / "d")


@pytest.mark.parametrize("value", [0, -1, 0.5, 3, True, "3", None, math.nan, math.inf, 2**63, "zstd", "gzip", [], {}])
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(OrbaxSettings)])
def test_the_config_refuses_what_orbax_settings_refuse(name: str, value: Any) -> None:
    try:
        settings = OrbaxSettings(**{name: value})
    except (TypeError, ValueError):
        (problem,) = problems_of({**MINIMAL, "options": {"orbax": {name: value}}})
        assert problem.startswith(f"options.orbax.{name}: expected ")
        assert ", got " in problem
        assert problem.count("expected ") == 1
    else:
        assert options_of(orbax={name: value}).orbax == settings


def test_directories_are_those_of_the_manager() -> None:
    for directory in ("./~/x", "$HOME/x", "relative", "/absolute", " spaces "):
        assert config_of(directory=directory).directory == directory
    assert config_of(directory="~/x").directory == os.path.expanduser("~/x")
    for directory in ("", "a\0b", 3, None, b"bytes", ["d"], True):
        (problem,) = problems_of({**MINIMAL, "directory": directory})
        assert problem.startswith("directory: expected the path of a directory, as text, got ")


@pytest.mark.parametrize("value", [5, True, 2.0, "not an import path", [], "os:sep", np.int64(4)])
def test_step_counters_that_are_none(value: Any) -> None:
    (problem,) = problems_of({**MINIMAL, "step_counter": value})
    assert problem.startswith("step_counter: expected ")


@pytest.mark.parametrize("call", ["builtins:int", "builtins:float"])
def test_step_counters_that_cannot_count(call: str) -> None:
    (problem,) = problems_of({**MINIMAL, "step_counter": {"call": call}})
    assert problem.startswith("step_counter: expected ")
    assert "can never change" in problem
    assert "step_counter=lambda: checkpoint.step" in problem


def test_an_import_that_is_not_what_the_key_needs() -> None:
    assert problems_of({**MINIMAL, "init_fn": "os:sep"})[0].endswith("got 'os:sep' (text), which is '/' (text)")
