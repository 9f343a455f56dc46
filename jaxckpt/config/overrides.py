"""Overrides of a config: ``"key.path=value"`` strings, or a mapping from key paths to values."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxckpt.config.bounds import MAX_DEPTH, MAX_OVERRIDES
from jaxckpt.config.plain import PlainValues, is_mapping
from jaxckpt.config.problems import UNUSABLE, ArgumentError, KeyPath, Problem, dotted, got, shown
from jaxckpt.config.yaml_text import YamlText


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
      path: key path of the value to replace, from the top of the source; None if the override cannot be parsed.
      label: names the override in messages.
      value: the new value; `UNUSABLE` if it cannot be used.
      text: the YAML text of the value, if it was given as text.
      problems: the problems of the override.
      replaces: whether to replace the old value. If not, there are problems.
    """

    path: KeyPath | None
    label: str
    value: object = UNUSABLE
    text: YamlText | None = None
    problems: list[Problem] = field(default_factory=list)
    replaces: bool = False


def read_overrides(overrides: object, plain: PlainValues, section: KeyPath, where: str) -> Iterator[Override]:
    """Yields the overrides in order.

    Args:
      overrides: the argument of `load_config`.
      plain: makes plain values of objects.
      section: key path of the config in the source, where the keys of overrides start.
      where: names the source in messages.

    Raises:
      ArgumentError: the argument does not hold overrides, or too many.
    """
    if isinstance(overrides, (str, bytes)):
        text = shown(overrides)
        raise ArgumentError(f"expected a list of overrides, got the single text {text}; write [{text}]")
    if is_mapping(overrides):
        items, problems = plain.items(overrides)
        yield Override(None, "", problems=problems)
        for key, value in _few(items):
            yield _from_item(key, value, plain, section, where)
        return
    if not isinstance(overrides, Iterable):
        raise ArgumentError(f'expected a list of overrides such as "options.enable_async=true", got {got(overrides)}')
    for override in _few(overrides):
        yield _from_text(override, section)


def _few(overrides: Iterable[Any]) -> list[Any]:
    """Returns the overrides as a list. Their number is limited, because they may come from a generator that never ends."""
    found = list(itertools.islice(overrides, MAX_OVERRIDES + 1))
    if len(found) > MAX_OVERRIDES:
        raise ArgumentError(f"expected at most {MAX_OVERRIDES:,} overrides, got more")
    return found


def _from_item(key: object, value: object, plain: PlainValues, section: KeyPath, where: str) -> Override:
    path = (*section, *key_path(key))
    if len(path) > MAX_DEPTH:
        return _too_long(key, f"override {shown(key)}")
    converted, problems = plain.of(value, path, where)
    return Override(path, f"override {dotted(key_path(key))}", converted, None, problems, replaces=True)


def _from_text(override: object, section: KeyPath) -> Override:
    label = f"override {shown(override)}"
    key, equals, value = override.partition("=") if isinstance(override, str) else ("", "", "")
    if not equals or not key.strip():
        form = '"key.path=value", such as "options.enable_async=true"'
        return Override(None, label, problems=[Problem((), f"expected {form}, got {got(override)}", label)])
    path = (*section, *key_path(key))
    if len(path) > MAX_DEPTH:
        return _too_long(key, label)
    value = value.strip()
    if not value:
        hint = "write null to mean null, '' to mean empty text"
        return _refused(path, f"expected a value after the =, got nothing; {hint}", label)
    text = YamlText(value, lambda line: label, path)
    rest = value[text.end :].strip()
    if text.valid and rest:
        hint = "YAML reads this as a comment; put the value in quotes"
        return _refused(path, f"expected one value, got {shown(rest)} after it; {hint}", label)
    return Override(path, label, text.value, text, text.problems, replaces=True)


def _refused(path: KeyPath, text: str, label: str) -> Override:
    return Override(path, label, problems=[Problem(path, text, label)])


def _too_long(key: object, label: str) -> Override:
    text = f"expected a key of at most {MAX_DEPTH} parts, got {len(key_path(key)):,} parts"
    return Override(None, label, problems=[Problem((), text, label)])


def key_path(key: object) -> KeyPath:
    """Returns the key path of a dotted key; any other key is a path of one part."""
    return tuple(part.strip() for part in key.split(".")) if isinstance(key, str) else (key,)
