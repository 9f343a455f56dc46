"""`make test-oldest` installs the lower bounds that pyproject.toml gives, not others, and runs tests that exist."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions(lines: list[str], operator: str) -> dict[str, str]:
    matches = [re.match(rf"([A-Za-z0-9-]+)(?:\[\w+\])?{operator}([0-9.]+)", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


def test_the_constraints_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = versions(project["dependencies"], ">=")
    assert len(needed) == len(project["dependencies"])
    oldest = versions((ROOT / ".ci" / "oldest.txt").read_text().splitlines(), "==")
    assert oldest == {**needed, "jaxlib": needed["jax"]}


def test_the_tests_exist() -> None:
    (arguments,) = re.findall(r"\$\(or \$\(ARGS\),(.+)\)", (ROOT / "Makefile").read_text())
    assert [path for path in arguments.split() if not (ROOT / path).exists()] == []
