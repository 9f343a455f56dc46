"""Config files: managers from configs, and the files that come with the project."""

import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from config_helpers import CONFIGS, MINIMAL, ROOT, options_of, step, written

import jaxckpt
from jaxckpt import CheckpointManager, CheckpointOptions, ConfigError, OrbaxSettings, load_config
from jaxckpt.config.schema import sections

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
          experimental_write_callbacks: ["{__name__}:saved"]
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


@pytest.mark.slow
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
