"""Config files: functions by import path and by call."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from config_helpers import HERE, MINIMAL, STEP, Notifier, config_of, no_argument, options_of, problems_of, upload

import jaxckpt
from jaxckpt import CheckpointOptions, ConfigError, OrbaxSettings

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
