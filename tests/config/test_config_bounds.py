"""Config sources that are made to take long: each ends at once, in one ConfigError that says where."""

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxckpt import ConfigError, load_config

pytestmark = pytest.mark.sampled

MINIMAL = {"directory": "ckpts", "max_to_keep": 3}


def problems_of(source: Any, overrides: Any = (), **arguments: Any) -> list[str]:
    """The problems, one by one."""
    with pytest.raises(ConfigError) as info:
        load_config(source, overrides, **arguments)
    lines = str(info.value).splitlines()
    return lines if len(lines) == 1 else [line.removeprefix("  ") for line in lines[1:]]


def written(directory: Path, text: str, name: str = "run.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def laughs(levels: int, width: int) -> str:
    """YAML in which each level is a list of `width` aliases of the level below."""
    lines = ["directory: d", "max_to_keep: 3", "a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int, width: int) -> str:
    """The same with merge keys: each mapping merges the one below many times."""
    lines = ["directory: d", "max_to_keep: 3", "m0: &m0 {k0: 1}"]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * width)}], k{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


MANY = "expected at most 20,000 keys and values (an alias counts as all of its values), got more"
DEEP = "expected at most 64 levels of mappings and lists, got more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (laughs(9, 9), f"bad.yaml:8: a5: {MANY}"),
        (laughs(60, 2), MANY),
        (merges(30, 600), MANY),
        ("".join(f"- &a{n} x\n" for n in range(21_000)), f"bad.yaml:20000: {MANY}"),
        ("a:\n" + "".join(f"{' ' * n}- \n" for n in range(80)), DEEP),
        ("- " * 100 + "x", f"bad.yaml:1: {DEEP}"),
        ("".join(f"{' ' * n}a:\n" for n in range(80)), f"bad.yaml:65: {DEEP}"),
        ("a: &a\n  b: *a\n", "bad.yaml:1: a.b: expected plain values, got a mapping or list that contains itself"),
        ("a: &a [1, [*a]]\n", "bad.yaml:1: a[1][0]: expected plain values, got a mapping or list that contains itself"),
        ("a: &x 1\nb: &x 2\n", "found duplicate anchor 'x'"),
        (
            "max_to_keep: " + "1" * 5000,
            "bad.yaml:1: max_to_keep: expected a number of at most 1,000 characters, got 5,000",
        ),
        (
            "max_to_keep: 0x" + "f" * 5000,
            "bad.yaml:1: max_to_keep: expected a number of at most 1,000 characters, got 5,002",
        ),
        (
            "max_to_keep: 1" + ":1" * 100_000,
            "bad.yaml:1: max_to_keep: expected a number of at most 1,000 characters, got 200,001",
        ),
        ("max_to_keep: -0x" + "f" * 900, "got <a number of 3,600 bits>"),
        ("a: 1\n" * 60_000, "bad.yaml: expected a config file of at most 262,144 bytes, got a longer one"),
        ("{" * 200_000, f"bad.yaml:1: {DEEP}"),
        (
            "a: '" + "x" * 200_000 + "'\nmax_to_keep: " + "y" * 200,
            "max_to_keep: expected a positive whole number, or null, got 'yyy",
        ),
    ],
)
def test_yaml_that_grows(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text, "bad.yaml")
    problems = problems_of(path)
    shown = "\n".join(problems).replace(f"{tmp_path}{os.sep}", "")
    assert expected in shown
    assert len(shown) < 3000


def test_a_chain_of_merges_is_read(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "base: &base {directory: d, max_to_keep: 1, checkpoint_name: base}",
            "other: &other {max_to_keep: 2, checkpoint_interval: 5}",
            "both: &both {<<: [*base, *other], checkpoint_name: both}",
            "run: {<<: *both, options: {enable_async: true}}",
            "again: {<<: *both, <<: *other}",
            "itself: &itself {<<: *itself, directory: e, max_to_keep: 3}",
            "wrong: {<<: 3, directory: e, max_to_keep: 3}",
        ]
    )
    path = written(tmp_path, text, "chain.yaml")
    config = load_config(path, section="run")
    # Of a list of mappings the first one wins; a key of the mapping itself wins over all.
    assert (config.directory, config.max_to_keep, config.checkpoint_interval) == ("d", 1, 5)
    assert (config.checkpoint_name, config.options.enable_async) == ("both", True)
    assert load_config(path, section="itself").directory == "e"
    assert "again.<<: expected each key once, got it twice" in problems_of(path, section="again")[0]
    assert problems_of(path, section="wrong") == [
        f"{path}:7: wrong.<<: expected a mapping, or a list of mappings, to merge"
    ]
    wide = written(
        tmp_path, "directory: &d d\nmax_to_keep: 3\noptions: {orbax: {}}\nx: [" + "*d, " * 900 + "*d]\n", "wide.yaml"
    )
    (problem,) = problems_of(wide)
    assert problem.startswith(f"{wide}:4: x: unknown key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".".join(["a"] * 20_000) + " = 1", "bad.toml:1: expected a key of at most 64 parts, got 'a.a.a"),
        (
            "x = 1\n[" + " . ".join(['"a"', "'b'", "c"] * 5000) + "]\n",
            "bad.toml:2: expected a key of at most 64 parts, got",
        ),
        ("x = {" + ".".join(["a"] * 100) + " = 1}\n", "bad.toml:1: expected a key of at most 64 parts, got"),
        ("x = " + "[" * 80 + "]" * 80, DEEP),
        ("x = " + "[" * 5000 + "]" * 5000, "bad.toml: expected valid TOML, got an error: "),
        ("x = [" + "1," * 21_000 + "]", MANY),
        ("max_to_keep = " + "1" * 5000, "bad.toml: expected valid TOML, got an error: Exceeds the limit"),
        ("max_to_keep = -0x" + "f" * 5000, "bad.toml: expected valid TOML"),
        (
            "max_to_keep = 0b1" + "0" * 5000 + "\ncheckpoint_interval = false\ndirectory = 1",
            "checkpoint_interval: expected",
        ),
        (
            "directory = 0x" + "f" * 5000,
            "directory: expected the path of a directory, as text, got <a number of 20,000 bits>",
        ),
        ("a" * 200_000 + " = 1", "aaaaaaaa...aaaaaaaa"),
        ("x = '" + "x" * 300_000 + "'", "bad.toml: expected a config file of at most 262,144 bytes, got a longer one"),
    ],
)
def test_toml_that_grows(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text, "bad.toml")
    shown = "\n".join(problems_of(path)).replace(f"{tmp_path}{os.sep}", "")
    assert expected in shown
    assert len(shown) < 3000


@pytest.mark.slow
def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path, "directory: d\nmax_to_keep: 3\n" + "".join(f"key{n}: 1\n" for n in range(9_000)))
    with pytest.raises(ConfigError) as info:
        load_config(path)
    heading, *lines = str(info.value).splitlines()
    assert heading == f"more than 100 problems in {path}, the first ones:"
    assert len(lines) == 100
    assert lines[0].startswith(f"  {path}:3: key0: unknown key")


@pytest.mark.parametrize("name", ["pipe.yaml", "zero.yaml", "zero.toml", "socket.yaml"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        kind = name.partition(".")[0]
        if kind == "pipe":
            os.mkfifo(name)
        elif kind == "socket":
            server.bind(name)
        else:
            os.symlink("/dev/zero", name)
        words = {"pipe": "a pipe", "zero": "a device", "socket": "a socket"}[kind]
        assert problems_of(name) == [f"{name}: expected a config file, got {words}"]


class Endless:
    """A mapping, or a list, without an end."""

    def keys(self) -> Iterator[str]:
        return (f"key{n}" for n in itertools.count())

    def __getitem__(self, key: str) -> int:
        return 1


class EndlessList(Sequence[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return index


def nested(levels: int, inside: Any = 1) -> Any:
    for _ in range(levels):
        inside = {"a": inside}
    return inside


def shared(levels: int) -> Any:
    inside: Any = [1, 2]
    for _ in range(levels):
        inside = [inside, inside]
    return inside


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (nested(70), f"x: {DEEP}"),
        (nested(20_000), f"x: {DEEP}"),
        (shared(40), f"x: {MANY}"),
        (Endless(), f"x: {MANY}"),
        (EndlessList(), f"x: {MANY}"),
        (10**5000, "x: unknown key"),
    ],
    ids=["deep", "very deep", "shared", "endless", "endless list", "number"],
)
def test_mappings_that_grow(value: Any, expected: str) -> None:
    for source, overrides in (({**MINIMAL, "x": value}, ()), (MINIMAL, {"x": value})):
        shown = "\n".join(problems_of(source, overrides))
        assert expected.removeprefix("x: ") in shown
        assert len(shown) < 1000
    (problem,) = problems_of({**MINIMAL, "max_to_keep": -(10**5000)})
    assert problem.startswith("max_to_keep: expected a positive whole number, or null, got <a number of 16,610 bits>")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([".".join(["a"] * 20_000) + "=1"], "expected a key of at most 64 parts, got 20,000 parts"),
        ({".".join(["a"] * 20_000): 1}, "expected a key of at most 64 parts, got 20,000 parts"),
        (("x=1" for _ in itertools.count()), "expected at most 1,000 overrides, got more"),
        (["max_to_keep=" + "[" * 50_000], DEEP),
        (["max_to_keep=[&a [1], " + "*a, " * 11_000 + "]"], MANY),
        (["max_to_keep='" + "x" * 300_000 + "'"], "expected at most 262,144 characters, got 300,002"),
        (["max_to_keep=" + "9" * 5000], "max_to_keep: expected a number of at most 1,000 characters, got 5,000"),
        ("max_to_keep=" + "x" * 100_000, "expected a list of overrides, got the single text 'max_to_keep=xxx"),
    ],
)
def test_overrides_that_grow(overrides: Any, expected: str) -> None:
    shown = "\n".join(problems_of(MINIMAL, overrides))
    assert expected in shown
    assert len(shown) < 3000
