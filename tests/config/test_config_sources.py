"""Config files: where a config comes from: mappings of many kinds, overrides, sections."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
from config_helpers import COUNT, MINIMAL, config_of, no_argument, problems_of, written

from jaxckpt import CheckpointConfig, CheckpointOptions, ConfigError, OrbaxSettings, load_config
from jaxckpt.config.schema import sections

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
