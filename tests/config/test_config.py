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
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

import jaxckpt
from jaxckpt import CheckpointConfig, CheckpointManager, CheckpointOptions, ConfigError, OrbaxSettings, load_config
from jaxckpt.config.problems import dotted
from jaxckpt.config.schema import known_keys, sections

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
MINIMAL = {"directory": "ckpts", "max_to_keep": 3}
EXAMPLES = hypothesis.settings(max_examples=200, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])


def upload(path: str) -> None:
    """A write callback that an import path can name."""


def no_argument() -> None:
    """A write callback, an init_fn."""


def two_arguments(one: object, two: object) -> None:
    """Not a write callback."""


def step() -> int:
    return 7


STEP = np.array(12)


class Notifier:
    """A factory of write callbacks; equal to its like, and a record of its arguments."""

    def __init__(self, channel: str, mention: bool = False) -> None:
        self.channel, self.mention = channel, mention

    def __call__(self, path: str) -> None:
        """The write callback."""

    @classmethod
    def quiet(cls) -> "Notifier":
        return cls("quiet")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notifier) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def nothing() -> None:
    """A factory that forgot its return."""


def failing() -> None:
    raise OSError(errno.EIO, "no connection")


def exiting() -> None:
    sys.exit(3)


HERE = __name__


def config_of(**values: Any) -> CheckpointConfig:
    return load_config({**MINIMAL, **values})


def options_of(**options: Any) -> CheckpointOptions:
    return config_of(options=options).options


def problems_of(source: Any, overrides: Any = (), **arguments: Any) -> list[str]:
    """The problems, one by one."""
    with pytest.raises(ConfigError) as info:
        load_config(source, overrides, **arguments)
    lines = str(info.value).splitlines()
    if len(lines) == 1:
        return lines
    assert re.match(rf"{len(lines) - 1} problems in ", lines[0])
    return [line.removeprefix("  ") for line in lines[1:]]


def written(directory: Path, text: str, name: str = "run.yaml") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def yaml_problems(directory: Path, text: str) -> list[str]:
    """The problems of a YAML file, with the name of its directory left out."""
    path = written(directory, text)
    return [line.replace(f"{directory}{os.sep}", "") for line in problems_of(path)]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the import path; its modules are forgotten after the test."""
    directory = tmp_path / "modules"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    before = set(sys.modules)
    yield directory
    for name in set(sys.modules) - before:
        if str(directory) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


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
    for field, parameter in zip(fields[:-1], parameters[1:-1], strict=True):
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


# Functions.


def test_functions_by_import_path_and_by_call() -> None:
    call = {"call": f"{HERE}:Notifier", "with": {"channel": "training", "mention": True}}
    callbacks = options_of(experimental_write_callbacks=[f"{HERE}:upload", call, {"call": f"{HERE}:Notifier.quiet"}])
    assert callbacks.experimental_write_callbacks == [upload, Notifier("training", True), Notifier("quiet")]
    assert config_of(init_fn={"call": f"{HERE}:Notifier.quiet", "with": None}).init_fn == Notifier("quiet")
    assert config_of(step_counter=f"{HERE}:STEP").step_counter is STEP
    assert config_of(step_counter={"call": f"{HERE}:Notifier.quiet"}).step_counter == Notifier("quiet")


def test_a_mapping_may_hold_the_objects_themselves() -> None:
    device = jax.devices()[0]
    notifier = Notifier("x")
    config = config_of(
        directory=Path("a") / "b",
        max_to_keep=np.int64(3),
        step_counter=STEP,
        init_fn=no_argument,
        options={
            "experimental_io_device": device,
            "experimental_write_callbacks": (notifier, print),
            "experimental_sharding_callback": jaxckpt.MaxShardSizePolicy(5),
            "orbax": OrbaxSettings(timeout_secs=4),
        },
    )
    assert config.directory == os.path.join("a", "b")
    assert config.step_counter is STEP
    assert type(config.max_to_keep) is int
    assert config.options == CheckpointOptions(
        device,
        experimental_write_callbacks=[notifier, print],
        experimental_sharding_callback=jaxckpt.MaxShardSizePolicy(5),
        orbax=OrbaxSettings(timeout_secs=4),
    )
    whole = CheckpointOptions(enable_async=True)
    assert config_of(options=whole).options == whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("upload", 'it does not have the form "package.module:function"'),
        ("os.path.join", 'it does not have the form "package.module:function"; did you mean os.path:join?'),
        ("", "it does not have the form"),
        (":", "it does not have the form"),
        ("os:", "it does not have the form"),
        (".os:sep", "it does not have the form"),
        ("os:a:b", "it does not have the form"),
        ("os path:join", "it does not have the form"),
        ("jsn:loads", "there is no module 'jsn'; did you mean json?"),
        ("json.decodr:JSONDecoder", "there is no module 'json.decodr'; did you mean json.decoder?"),
        ("nowhere_at_all.of_course:f", "there is no module 'nowhere_at_all'"),
        ("json:lods", "json has no attribute 'lods'; did you mean loads?"),
        ("json:JSONDecoder.decod", "json.JSONDecoder has no attribute 'decod'; did you mean decode?"),
        ("os.path.join:x", "there is no module"),
    ],
)
def test_import_paths_that_lead_nowhere(text: str, reason: str) -> None:
    (problem,) = problems_of({**MINIMAL, "init_fn": text})
    assert problem.startswith(f"init_fn: expected an import path, got {text!r} (text): {reason}")


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("raise RuntimeError('no GPU here')", RuntimeError, "importing {} raised RuntimeError: no GPU here"),
        ("import does_not_exist_at_all", ModuleNotFoundError, "importing {} raised ModuleNotFoundError: No module"),
        ("from os import does_not_exist", ImportError, "importing {} raised ImportError: cannot import name"),
        ("def f(:", SyntaxError, "importing {} raised SyntaxError"),
        ("import sys; sys.exit(2)", SystemExit, "importing {} raised SystemExit: 2"),
        ("def __getattr__(name): raise KeyError(name)", KeyError, "reading {}.f raised KeyError: 'f'"),
    ],
)
def test_what_the_users_module_raises_is_the_cause(
    modules: Path, code: str, kind: type[BaseException], reason: str
) -> None:
    name = f"user_{kind.__name__.lower()}"
    (modules / f"{name}.py").write_text(code)
    with pytest.raises(ConfigError) as info:
        config_of(init_fn=f"{name}:f")
    assert type(info.value.__cause__) is kind
    assert reason.format(name) in str(info.value)


def test_several_causes_are_a_group(modules: Path) -> None:
    (modules / "user_broken.py").write_text("raise OSError('disk')")
    with pytest.raises(ConfigError) as info:
        config_of(init_fn="user_broken:f", step_counter={"call": f"{HERE}:failing"})
    assert isinstance(info.value.__cause__, BaseExceptionGroup)
    assert [str(error) for error in info.value.__cause__.exceptions] == ["disk", "[Errno 5] no connection"]


def test_modules_in_packages(modules: Path) -> None:
    package = modules / "user_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "saving.py").write_text("class Hooks:\n    @staticmethod\n    def done(path):\n        pass\n")
    config = config_of(options={"experimental_write_callbacks": ["user_package.saving:Hooks.done"]})
    (callback,) = config.options.experimental_write_callbacks or ()
    assert callback.__qualname__ == "Hooks.done"
    (problem,) = problems_of({**MINIMAL, "init_fn": "user_package.savin:f"})
    assert problem.endswith("there is no module 'user_package.savin'; did you mean user_package.saving?")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, ['[0].call: expected "package.module:factory", got nothing']),
        ({"call": 3}, ['[0].call: expected "package.module:factory", got 3']),
        ({"call": None}, ['[0].call: expected "package.module:factory", got null']),
        ({"call": "os:sep"}, ["[0].call: expected a callable, got os:sep, which is '/' (text)"]),
        (
            {"call": f"{HERE}:Notifier", "with": [1]},
            ["[0].with: expected a mapping from argument names to values, got a list [1]"],
        ),
        ({"call": f"{HERE}:Notifier", "with": {1: 2}}, ["[0].with: expected a mapping from argument names"]),
        ({"call": f"{HERE}:Notifier", "wiht": {}}, ["[0].wiht: unknown key; did you mean with?"]),
        ({"call": f"{HERE}:Notifier"}, [f"[0]: expected an object from {HERE}:Notifier, got TypeError: "]),
        ({"call": f"{HERE}:nothing"}, [f"[0]: expected an object from {HERE}:nothing, got None"]),
        (
            {"call": f"{HERE}:failing"},
            [f"[0]: expected an object from {HERE}:failing, got OSError: [Errno 5] no connection"],
        ),
        ({"call": f"{HERE}:exiting"}, [f"[0]: expected an object from {HERE}:exiting, got SystemExit: 3"]),
        ({"call": f"{HERE}:step"}, ["[0]: expected a callback, got a mapping {'call': "]),
        (f"{HERE}:two_arguments", [f"[0]: expected a callback, got '{HERE}:two_arguments' (text): two_arguments"]),
        ("os:sep", ["[0]: expected a callback, got 'os:sep' (text): a write callback must be callable, got str: '/'"]),
        (None, ['[0]: expected "package.module:function", or {call: "package.module:factory", with: {...}}, got null']),
        (True, ['[0]: expected "package.module:function", or']),
        (["json:loads"], ['[0]: expected "package.module:function", or']),
    ],
)
def test_callbacks_that_are_none(value: Any, expected: list[str]) -> None:
    problems = problems_of({**MINIMAL, "options": {"experimental_write_callbacks": [value]}})
    assert len(problems) == len(expected)
    for problem, text in zip(problems, expected, strict=True):
        assert problem.startswith(f"options.experimental_write_callbacks{text}")


def test_a_callback_is_named_by_its_place() -> None:
    given = {"experimental_write_callbacks": [f"{HERE}:upload", f"{HERE}:two_arguments", "no.such:thing"]}
    first, second = problems_of({**MINIMAL, "options": given})
    assert first.startswith("options.experimental_write_callbacks[1]: expected a callback, got ")
    assert "cannot be called with 0 or 1 arguments" in first
    assert "experimental_write_callbacks[0]" not in first
    assert second.startswith("options.experimental_write_callbacks[2]: expected an import path")


def test_callbacks_are_a_list() -> None:
    (problem,) = problems_of({**MINIMAL, "options": {"experimental_write_callbacks": "a:b"}})
    assert problem.startswith("options.experimental_write_callbacks: expected a list of ")
    assert problem.endswith("""got 'a:b' (text); write ["a:b"]""")


def test_factories_are_called_once_and_only_when_all_of_their_call_is_right(modules: Path) -> None:
    (modules / "user_factory.py").write_text(
        "calls = []\ndef make(**given):\n    calls.append(given)\n    return print\n"
    )
    config_of(init_fn={"call": "user_factory:make", "with": {"a": [1, {"b": None}]}})
    problems_of({**MINIMAL, "init_fn": {"call": "user_factory:make", "wit": {}}})
    import user_factory  # type: ignore[import-not-found]

    assert user_factory.calls == [{"a": [1, {"b": None}]}]


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
        (b"a: *nobody\n", "bad.yaml:1: expected valid YAML, got an error: found undefined alias"),
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
COUNT = "checkpoint_interval: expected a positive whole number, or null, got "
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
    plain = value.item() if isinstance(value, np.generic) else value  # what a config makes of numpy's scalars
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
    for directory in ("~/x", "$HOME/x", "relative", "/absolute", " spaces "):
        assert config_of(directory=directory).directory == directory
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


# Mappings of other kinds.


class Keys:
    """keys() and item access, as OmegaConf's DictConfig has them, but nothing else."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def keys(self) -> Any:
        return self._values.keys()

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if value == "???":
            raise LookupError(f"Missing mandatory value: {key}\n    full_key: {key}")
        if isinstance(value, str) and value.startswith("${"):
            return self._values[value[2:-1]]
        return Keys(value) if isinstance(value, dict) else value


class Items:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def items(self) -> Any:
        return self._values.items()


class ToDict:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def to_dict(self) -> dict[str, Any]:
        return self._values


SOURCE = {"directory": "d", "max_to_keep": 3, "options": {"orbax": {"timeout_secs": 9}}}


@pytest.mark.parametrize("kind", [Keys, Items, ToDict, types.MappingProxyType])
def test_mappings_by_duck_typing(kind: Any) -> None:
    assert load_config(kind(SOURCE)) == load_config(SOURCE)
    assert load_config({**SOURCE, "options": kind(SOURCE["options"])}) == load_config(SOURCE)


def test_interpolations_are_resolved_by_item_access() -> None:
    config = load_config(Keys({**SOURCE, "checkpoint_interval": "${max_to_keep}"}))  # type: ignore[arg-type]
    assert config.checkpoint_interval == 3


def test_a_missing_value_is_a_problem_unless_an_override_gives_it() -> None:
    source: Any = Keys({**SOURCE, "directory": "???", "options": {"orbax": {"timeout_secs": "???"}}})
    assert problems_of(source) == [
        "directory: expected a value, got LookupError: Missing mandatory value: directory",
        "options.orbax.timeout_secs: expected a value, got LookupError: Missing mandatory value: timeout_secs",
    ]
    config = load_config(source, ["directory=here", "options.orbax={}"])
    assert config == load_config({**SOURCE, "directory": "here", "options": {"orbax": {}}})


def test_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    text = "base: d\ndirectory: ${base}/x\nmax_to_keep: ???\noptions: {experimental_write_callbacks: ['json:loads']}"
    source = omegaconf.OmegaConf.create(text)
    problems = problems_of(source)
    assert (
        problems[0] == "max_to_keep: expected a value, got MissingMandatoryValue: Missing mandatory value: max_to_keep"
    )
    del source["base"]
    source.directory = "${max_to_keep}d"
    source.max_to_keep = 2
    config = load_config(source, ["checkpoint_name=x"])
    assert config.directory == "2d"
    assert config.options.experimental_write_callbacks == [json.loads]
    source.directory = "${nowhere}"
    (problem,) = problems_of(source)
    assert problem.startswith(
        "directory: expected a value, got InterpolationKeyError: Interpolation key 'nowhere' not found"
    )


def test_ml_collections() -> None:
    ml_collections = pytest.importorskip("ml_collections")
    source = ml_collections.ConfigDict(SOURCE)
    source.checkpoint_interval = source.get_ref("max_to_keep")
    source.init_fn = no_argument
    expected = load_config({**SOURCE, "checkpoint_interval": 3, "init_fn": no_argument})
    assert load_config(source) == load_config(ml_collections.FrozenConfigDict(source)) == expected


def test_a_mapping_that_contains_itself() -> None:
    source: dict[str, Any] = dict(MINIMAL)
    source["options"] = source
    assert problems_of(source) == ["options: expected plain values, got a mapping or list that contains itself"]


# Overrides.


def test_overrides() -> None:
    config = load_config(
        MINIMAL,
        [
            "max_to_keep=null",
            " checkpoint_interval = 5 ",
            "checkpoint_name='3'",
            "keep_checkpoint_every_n_hours=1.5",
            "init_fn=builtins:print",
            "options.enable_async=true",
            "options.experimental_write_callbacks=[json:loads]",
            "options.orbax.timeout_secs=60",
            "options.experimental_sharding_callback={max_shard_size: 10}",
        ],
    )
    assert config == load_config(
        {
            **MINIMAL,
            "max_to_keep": None,
            "checkpoint_interval": 5,
            "checkpoint_name": "3",
            "keep_checkpoint_every_n_hours": 1.5,
            "init_fn": print,
            "options": {
                "enable_async": True,
                "experimental_write_callbacks": [json.loads],
                "orbax": {"timeout_secs": 60},
                "experimental_sharding_callback": {"max_shard_size": 10},
            },
        }
    )


@pytest.mark.parametrize("value", ["/data/run", "relative/a=b", "a#b", "'a: b # c'", '"x"', "C:/x"])
def test_directories_in_overrides(value: str) -> None:
    assert load_config(MINIMAL, [f"directory={value}"]).directory == value.strip("'\"")


def test_the_last_override_wins_and_replaces() -> None:
    source = {**MINIMAL, "options": {"enable_async": True, "orbax": {"timeout_secs": 5}}}
    config = load_config(source, iter(["max_to_keep=1", "max_to_keep=2", "options.orbax={exit_timeout_secs: 7}"]))
    assert config.max_to_keep == 2
    assert config.options == CheckpointOptions(enable_async=True, orbax=OrbaxSettings(exit_timeout_secs=7))
    config = load_config(source, ["options={}", "options.orbax.timeout_secs=6"])
    assert config.options == CheckpointOptions(orbax=OrbaxSettings(timeout_secs=6))
    assert load_config({**source, "options": None}, ["options.enable_async=true"]).options.enable_async


def test_overrides_as_a_mapping() -> None:
    config = load_config(MINIMAL, {"max_to_keep": None, "options.orbax": {"timeout_secs": 5}, "init_fn": no_argument})
    assert config == config_of(max_to_keep=None, options={"orbax": {"timeout_secs": 5}}, init_fn=no_argument)
    assert problems_of(MINIMAL, {"options.enable_async": 1, 3: 4}) == [
        "override [3]: [3]: unknown key; the keys here are " + ", ".join(sections()[()]),
        "override options.enable_async: options.enable_async: expected true or false, got 1",
    ]


def test_an_override_repairs_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "directory: d\nmax_to_keep: none\ninit_fn: no.such:thing\n")
    assert load_config(path, ["max_to_keep=3", "init_fn=null"]).max_to_keep == 3


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("max_to_keep", 'expected "key.path=value", such as "options.enable_async=true", got \'max_to_keep\' (text)'),
        ("=3", 'expected "key.path=value"'),
        (7, 'expected "key.path=value"'),
        (None, 'expected "key.path=value"'),
        (b"a=1", 'expected "key.path=value"'),
        (
            "max_to_keep=",
            "max_to_keep: expected a value after the =, got nothing; write null to mean null, '' to mean",
        ),
        ("directory=run #3", "directory: expected one value, got '#3' after it; YAML reads this as a comment; put the"),
        ("directory=#3", "directory: expected one value, got '#3' after it"),
        ("directory=[", "directory: expected valid YAML, got an error: "),
        ("directory=a: b", "directory: expected the path of a directory, as text, got a mapping {'a': 'b'}"),
        ("directory=a: b: c", "directory: expected valid YAML, got an error: mapping values are not allowed here"),
        ("directory=!!python/name:os.system x", "directory: expected a plain value, got the YAML tag"),
        ("options={enable_async: true, enable_async: true}", "options.enable_async: expected each key once"),
        ("checkpoint_interval=1e1", f"{COUNT}'1e1' (text; write the number as 10)"),
        ("max_to_keep=yes", "max_to_keep: expected a positive whole number, or null, got true (YAML reads yes as true"),
        ("max_to_keep=010", "max_to_keep: expected an unambiguous value, got 010"),
        ("options.enable_async=maybe", "options.enable_async: expected true or false, got 'maybe' (text)"),
        ("options=3", "options: expected a mapping of options, got 3"),
        ("max_to_keep.x=3", "max_to_keep.x: expected a key inside a mapping, got max_to_keep = 3"),
        ("a.b.c=1", "a: unknown key; the keys here are"),
        ("max_to_kep=3", "max_to_kep: unknown key; did you mean max_to_keep?"),
        ("options..x=3", "options.'': unknown key; the keys here are"),
    ],
)
def test_overrides_that_are_wrong(override: Any, problem: str) -> None:
    (line,) = problems_of(MINIMAL, [override])
    assert line.startswith(f"override {override!r}: {problem}")


@pytest.mark.parametrize("overrides", ["max_to_keep=3", "", b"x", 3, None])
def test_overrides_are_a_list(overrides: Any) -> None:
    with pytest.raises(TypeError, match="expected a list of overrides") as info:
        load_config(MINIMAL, overrides)
    assert isinstance(info.value, ConfigError)


# Sections.


def test_a_section_of_a_larger_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
        train: {steps: 100}
        saving:
          checkpoint:
            directory: d
            max_to_keep: 3
            options: {enable_asinc: 1}
        """,
    )
    assert problems_of(path, ["max_to_kep=1", "options.enable_async=1"], section="saving.checkpoint") == [
        "override 'max_to_kep=1': saving.checkpoint.max_to_kep: unknown key; did you mean max_to_keep?",
        f"{path}:6: saving.checkpoint.options.enable_asinc: unknown key; did you mean enable_async?",
        "override 'options.enable_async=1': saving.checkpoint.options.enable_async: expected true or false, got 1",
    ]
    config = load_config(path, ["options={}", "max_to_keep=4"], section="saving.checkpoint")
    assert config == CheckpointConfig("d", 4)
    assert problems_of(path, section="savin") == [
        f"{path}: savin: expected a section of that name, got nothing; did you mean saving?"
    ]
    (problem,) = problems_of(path, section="train.steps")
    assert problem == f"{path}:1: train.steps: expected a mapping of keys to values, got 100"
    assert problems_of(path, section="train")[0].startswith(f"{path}:1: train.steps: unknown key")


def test_the_rest_of_the_file_may_be_anything(tmp_path: Path) -> None:
    text = """\
        train: !include train.yaml
        start: 1:30
        start: 010
        checkpoint:
          directory: d
          max_to_keep: 3
          max_to_keep: 4
        """
    path = written(tmp_path, text)
    assert problems_of(path, section="checkpoint") == [
        f"{path}:7: checkpoint.max_to_keep: expected each key once, got it twice (first at {path}:6)"
    ]
    path = written(tmp_path, text.replace("          max_to_keep: 4\n", ""))
    assert load_config(path, section="checkpoint") == CheckpointConfig("d", 3)
    with pytest.raises(ConfigError, match="checkpoint: expected each key once"):
        load_config(written(tmp_path, text.rstrip() + "\n        checkpoint: {}\n"), section="checkpoint")


def test_a_section_of_a_mapping() -> None:
    assert load_config({"a": {"b": MINIMAL}}, section="a.b") == load_config(MINIMAL)
    assert problems_of({"a": None}, section="a")[0].startswith("a.directory: expected")


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
    {"directory": PATH_TEXT, "max_to_keep": st.none() | POSITIVE},
    optional={
        "keep_checkpoint_every_n_hours": st.none() | POSITIVE | st.floats(1e-6, 1e6),
        "checkpoint_name": PATH_TEXT,
        "step_counter": st.sampled_from([None, f"{HERE}:step"]),
        "checkpoint_interval": st.none() | POSITIVE,
        "init_fn": st.none() | FUNCTIONS,
        "last_checkpoint_step": st.none() | st.integers(),
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


# With the real things.


def saved(path: str) -> None:
    Path(path).parent.joinpath(f"saved-{os.path.basename(path)}").touch()


def test_a_manager_from_a_config(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"""\
        directory: {tmp_path}/checkpoints
        max_to_keep: 2
        checkpoint_name: model
        checkpoint_interval: 10
        last_checkpoint_step: 0
        options:
          enable_async: true
          experimental_write_callbacks: ["{HERE}:saved"]
          orbax: {{timeout_secs: 60}}
        """,
    )
    config = load_config(path)
    checkpoint = jaxckpt.Checkpoint(value=np.arange(4.0), step=0)
    with pytest.raises(ValueError, match="step_counter"):
        config.manager(checkpoint)
    manager = config.manager(checkpoint, step_counter=lambda: checkpoint.step)
    paths = []
    for checkpoint.step in range(0, 40, 5):
        if written_to := manager.save():
            paths.append(written_to)
    manager.sync()
    assert [os.path.basename(item) for item in paths] == ["model-1", "model-2", "model-3"]
    assert manager.checkpoints == paths[1:]
    assert sorted(item.name for item in (tmp_path / "checkpoints").glob("saved-*")) == [
        f"saved-model-{number}" for number in (1, 2, 3)
    ]
    other = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
    assert config.manager(other, step_counter=step).restore_or_initialize() == paths[-1]
    assert other.step == 30


def test_the_manager_uses_the_options_unless_it_is_given_others(tmp_path: Path) -> None:
    config = load_config({"directory": tmp_path, "max_to_keep": 3, "options": {"experimental_io_device": "/task:99"}})
    manager_options = CheckpointOptions()
    with pytest.raises(ValueError, match="task:99"):
        config.manager(jaxckpt.Checkpoint(x=1))
    manager = config.manager(jaxckpt.Checkpoint(x=1), options=manager_options)
    assert manager.save() == str(tmp_path / "ckpt-1")


# The files that come with the project.


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_the_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert load_config(config.to_dict()) == config
    assert jaxckpt.to_orbax(config.options).asynchronous is config.options.enable_async


def test_the_laptop_files_are_the_same() -> None:
    assert load_config(CONFIGS / "laptop.yaml") == load_config(CONFIGS / "laptop.toml")


def test_the_demos_config_loads() -> None:
    path = ROOT / "jaxckpt" / "demo" / "demo.yaml"
    config = load_config(path, section="checkpoint")
    assert config.options.enable_async


def test_the_reference_mentions_every_key_once_and_has_the_real_defaults() -> None:
    text = (CONFIGS / "reference.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    classes: dict[tuple[object, ...], Any] = {
        (): CheckpointManager,
        ("options",): CheckpointOptions,
        ("options", "orbax"): OrbaxSettings,
    }
    for section, keys in sections().items():
        indent = "  " * len(section)
        here = values
        for part in section:
            here = here[part]
        parameters = inspect.signature(classes[section]).parameters
        for name in keys:
            assert len(re.findall(rf"^{indent}(?:# )?{name}:", text, re.MULTILINE)) == 1, name
            if name == "experimental_enable_async_checkpoint":
                assert name not in here, "it warns"
            elif name not in ("directory", "max_to_keep", "options", "orbax"):
                assert here[name] == parameters[name].default, name
                assert type(here[name]) is type(parameters[name].default) or isinstance(here[name], int), name
    assert yaml.safe_load(str(load_config(CONFIGS / "reference.yaml"))) == yaml.safe_load(
        str(load_config({name: values[name] for name in ("directory", "max_to_keep")}))
    )


def test_the_examples_in_the_reference_are_right(modules: Path) -> None:
    package = modules / "my_project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "checkpoints.py").write_text(
        "def upload(path): pass\ndef Notifier(channel, mention): return lambda path: print(channel, mention, path)\n"
    )
    text = (CONFIGS / "reference.yaml").read_text(encoding="utf-8")
    start = text.index("#   experimental_write_callbacks:")
    example = text[start : text.index("\n  experimental_write_callbacks:", start)]
    options = yaml.safe_load(textwrap.dedent("\n".join(line.replace("#", " ", 1) for line in example.splitlines())))
    assert len(options_of(**options).experimental_write_callbacks or ()) == 2


def test_the_documented_mistakes_read_as_documented(tmp_path: Path, modules: Path) -> None:
    (modules / "my_project.py").write_text("def upload(path): pass\n")
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"```\n(4 problems in run\.yaml:\n.*?)```", text, re.DOTALL)
    path = written(
        tmp_path,
        """\
        directory: d
        max_to_kep: 3

        options:
          enable_async: maybe
          experimental_write_callbacks:
            - my_project:uplod
        """,
    )
    with pytest.raises(ConfigError) as info:
        load_config(path)
    found = str(info.value).replace(f"{tmp_path}{os.sep}", "").splitlines()
    assert sorted(found) == sorted(documented.splitlines())


def test_a_reason_is_told_whole_whatever_the_value_holds() -> None:
    """The texts of errors are not parsed again: a value may hold the words that end a reason."""
    device = "a; expected b: c"
    with pytest.raises(ConfigError) as info:
        load_config({"directory": "d", "max_to_keep": 3, "options": {"experimental_io_device": device}})
    assert str(info.value).endswith(f"got {device!r} (text): cannot parse {device!r}")


def test_loading_a_mapping_imports_no_yaml() -> None:
    code = """
        import sys, jaxckpt
        jaxckpt.load_config({"directory": "d", "max_to_keep": 3, "options": {"enable_async": True}})
        assert "yaml" not in sys.modules and "tomllib" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT, timeout=120)


def test_mapping_is_all_that_the_annotation_asks_for() -> None:
    class Frozen(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return MINIMAL[key]

        def __iter__(self) -> Iterator[str]:
            return iter(MINIMAL)

        def __len__(self) -> int:
            return len(MINIMAL)

    assert load_config(Frozen()) == load_config(MINIMAL)
