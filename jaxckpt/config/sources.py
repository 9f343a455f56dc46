"""Where a config comes from: a YAML or TOML file or a mapping, and overrides on top, as plain values."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxckpt.config.bounds import (
    ITSELF,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_OVERRIDES,
    MAX_PROBLEMS,
    MAX_VALUES,
    TOO_DEEP,
    Counter,
    TooMuchError,
)
from jaxckpt.config.problems import (
    UNUSABLE,
    KeyPath,
    Problem,
    close_name,
    config_error,
    did_you_mean,
    dotted,
    got,
    shown,
)
from jaxckpt.config.yaml_text import YamlText
from jaxckpt.errors import ConfigError


class ArgumentError(ConfigError, TypeError):
    """load_config was called with something that is no config at all; callers may catch it as either."""


# A dotted key with too many parts. Each part is matched as a whole, so the search takes no longer than reading the text.
_TOML_PART = r"""(?:[\w\-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+"""
_LONG_TOML_KEY = re.compile(rf"""(?<![\w\-"'.])(?:{_TOML_PART}\.[ \t]*+){{{MAX_DEPTH}}}""")


class Source:
    """The plain values of a config, with their origins. The paths that its methods take start at the section.

    Attributes:
      data: nested dicts and lists; the keys of a dict may be anything a YAML key can be.
      name: how messages call the whole.
      section: path of `data` in the source; empty if it is all of it.
      problems: what is wrong so far; later stages append to it. Their paths start at the top of the source.
    """

    def __init__(self, source: object, overrides: object, section: str = "") -> None:
        """Reads a source and puts the overrides on top.

        Args:
          source: path of a YAML or TOML file, or a mapping.
          overrides: ``"key.path=value"`` strings, or a mapping from key paths to values.
          section: key path of the part that counts; empty for all of it.

        Raises:
          ArgumentError: one of the arguments has a wrong type.
          ConfigError: the file is not valid YAML or TOML, or holds no mapping, or not the section.
          OSError: the file cannot be read.
        """
        self.problems: list[Problem] = []
        self.section: KeyPath = ()
        self.name = "the config"
        self._path: Path | None = None
        self._text: YamlText | None = None
        self._overridden: list[tuple[KeyPath, str, YamlText | None]] = []
        self._counter = Counter()
        if isinstance(source, (str, os.PathLike)):
            data = self._read(Path(source))
        elif is_mapping(source):
            data = self._from_object(source, ())
        else:
            raise ArgumentError(f"expected the path of a YAML or TOML file, or a mapping, as config, got {got(source)}")
        self.data = self._mapping(data)
        for part in _key_path(section) if section else ():
            if part not in self.data:
                hint = close_name(str(part), [key for key in self.data if isinstance(key, str)])
                self.add((part,), f"expected a section of that name, got nothing{hint}")
                raise config_error(self.problems, self.name)
            self.section = (*self.section, part)
            self.data = self._mapping(self.data[part])
        # The rest of a larger file is none of our business: it may use tags, or values, that mean something to its reader.
        self.problems = [item for item in self.problems if self._concerns(item.path)]
        self._override(overrides)

    def _concerns(self, path: KeyPath) -> bool:
        """Whether `path` leads into the section, or is on the way to it."""
        length = min(len(path), len(self.section))
        return path[:length] == self.section[:length]

    def _mapping(self, data: object) -> dict[object, object]:
        """Returns the keys of the section, which may be empty, as in a file in which everything is commented out."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            if data is not UNUSABLE:
                self.add((), f"expected a mapping of keys to values, got {self.got((), data)}")
            raise config_error(self.problems, self.name)
        return data

    def where(self, path: KeyPath) -> str:
        """Returns the words that say where the value at `path` was written; empty for a mapping."""
        path = (*self.section, *path)
        for prefix, label, _ in reversed(self._overridden):
            if path[: len(prefix)] == prefix:
                return label
        # A section that is not in the file has been made by an override of one of its keys.
        made = next((label for inside, label, _ in self._overridden if inside[: len(path)] == path), None)
        for length in range(len(path), 0, -1):  # for a key that is missing, the line of the mapping that should have it
            line = None if self._text is None else self._text.line(path[:length])
            if line is not None:
                return f"{self.name}:{line + 1}"
            if made is not None:
                return made
        return "" if self._path is None else self.name

    def got(self, path: KeyPath, value: object) -> str:
        """Describes the value at `path`, also by its spelling where that explains it."""
        path = (*self.section, *path)
        text, rest = self._text, path
        for prefix, _, override in reversed(self._overridden):
            if path[: len(prefix)] == prefix:
                text, rest = override, path[len(prefix) :]
                break
        return got(value, None if text is None else text.written(rest))

    def add(self, path: KeyPath, text: str, cause: BaseException | None = None) -> None:
        """Notes a problem at `path`."""
        # One more than are listed, so that the error can say that there are more. Finding the place of each takes time.
        if len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(Problem((*self.section, *path), text, self.where(path), cause))

    def refuse_unknown(
        self, section: KeyPath, data: Iterable[object], names: Collection[str], known: Iterable[KeyPath] = ()
    ) -> None:
        """Notes the keys of a section that do not exist.

        Args:
          section: its path.
          data: the keys that are there.
          names: the keys that there may be.
          known: paths of all keys, for suggestions from other sections.
        """
        paths = list(known) or [(*section, name) for name in names]
        for key in data:
            if len(self.problems) > MAX_PROBLEMS:
                return
            if key is not UNUSABLE and key not in names:
                hint = did_you_mean(key, section, paths) or f"; the keys here are {', '.join(names)}"
                self.add((*section, key), f"unknown key{hint}")

    def usable(self, path: KeyPath) -> bool:
        """Whether nothing has been reported at or below `path`; not where more was wrong than has been reported."""
        path = (*self.section, *path)
        return len(self.problems) <= MAX_PROBLEMS and not any(
            problem.path[: len(path)] == path for problem in self.problems
        )

    def _read(self, path: Path) -> object:
        self._path, self.name = path, str(path)
        kind = path.suffix.lower()
        if kind not in (".yaml", ".yml", ".toml"):
            raise ConfigError(
                f"{path}: expected a config file that ends in .yaml, .yml or .toml, got {path.suffix or 'no ending'!r}"
            )
        content = _content(path)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.problems.append(Problem((), f"expected text in UTF-8, got other bytes ({error})", self.name))
            return UNUSABLE
        if kind == ".toml":
            return self._read_toml(text)
        self._text = YamlText(text, lambda line: f"{path}:{line + 1}" if line >= 0 else str(path))
        self.problems += self._text.problems
        return self._text.value

    def _read_toml(self, text: str) -> object:
        import tomllib

        # tomllib needs time that grows with the square of the parts.
        if long := _LONG_TOML_KEY.search(text):
            line = text.count("\n", 0, long.start()) + 1
            words = f"expected a key of at most {MAX_DEPTH} parts, got {shown(long[0])}"
            self.problems.append(Problem((), words, f"{self.name}:{line}"))
            return UNUSABLE
        try:
            return self._from_object(tomllib.loads(text), ())
        except (ValueError, RecursionError) as error:
            reason = TOO_DEEP if isinstance(error, RecursionError) else error
            self.problems.append(Problem((), f"expected valid TOML, got an error: {reason}", self.name))
            return UNUSABLE

    def _from_object(self, value: object, path: KeyPath) -> object:
        """Returns a mapping of any kind as dicts and lists; leaves other objects as they are."""
        try:
            return self._plain(value, path, ())
        except TooMuchError as error:
            self.problems.append(Problem(path, str(error), "" if self._path is None else self.name))
        except RecursionError:
            self.problems.append(Problem(path, TOO_DEEP))
        return UNUSABLE

    def _plain(self, value: object, path: KeyPath, above: tuple[int, ...]) -> object:
        self._counter.add()
        if len(above) >= MAX_DEPTH:
            raise TooMuchError(TOO_DEEP)
        try:
            if id(value) in above:
                self.problems.append(Problem(path, ITSELF))
                return UNUSABLE
            inside = (*above, id(value))
            if is_mapping(value):
                return {key: self._plain(item, (*path, key), inside) for key, item in self._items(value, path)}
            if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
                return [self._plain(item, (*path, index), inside) for index, item in enumerate(value)]
        except (TooMuchError, RecursionError):
            # Reported once, above.
            raise
        except Exception as error:
            return self._unreadable(path, error)
        return value.item() if isinstance(value, np.generic) else value

    def _items(self, value: Any, path: KeyPath) -> list[tuple[object, object]]:
        """Returns the items of a mapping, fetched by key where that is possible: it resolves interpolations."""
        if not (hasattr(value, "keys") and hasattr(value, "__getitem__")):
            pairs = value.items() if hasattr(value, "items") else value.to_dict().items()
            return list(itertools.islice(pairs, MAX_VALUES + 1))
        items: list[tuple[object, object]] = []
        # Not `in value`: a mapping that is not a dict may iterate over something else.
        for key in itertools.islice(value.keys(), MAX_VALUES + 1):
            try:
                items.append((key, value[key]))
            except Exception as error:  # a mandatory value that is missing, an interpolation of nothing
                items.append((key, self._unreadable((*path, key), error)))
        return items

    def _unreadable(self, path: KeyPath, error: Exception) -> object:
        reason = str(error).partition("\n")[0]
        self.problems.append(Problem(path, f"expected a value, got {type(error).__name__}: {reason}", cause=error))
        return UNUSABLE

    def _override(self, overrides: object) -> None:
        if isinstance(overrides, (str, bytes)):
            text = shown(overrides)
            raise ArgumentError(f"expected a list of overrides, got the single text {text}; write [{text}]")
        if is_mapping(overrides):
            for key, value in self._few(self._items(overrides, ())):
                path = self._overridden_path(key)
                if path is None:
                    self._refuse_long(key, f"override {shown(key)}")
                    continue
                self._set(path, self._from_object(value, path), f"override {dotted(_key_path(key))}", None)
            return
        if not isinstance(overrides, Iterable):
            raise ArgumentError(
                f'expected a list of overrides such as "options.enable_async=true", got {got(overrides)}'
            )
        for override in self._few(overrides):
            self._override_text(override)

    def _few(self, overrides: Iterable[Any]) -> Iterable[Any]:
        """Yields the overrides, up to a bound: they may be a generator that never ends."""
        found = list(itertools.islice(overrides, MAX_OVERRIDES + 1))
        if len(found) > MAX_OVERRIDES:
            raise ArgumentError(f"expected at most {MAX_OVERRIDES:,} overrides, got more")
        return found

    def _refuse_long(self, key: object, label: str) -> None:
        parts = len(_key_path(key))
        self.problems.append(Problem((), f"expected a key of at most {MAX_DEPTH} parts, got {parts:,} parts", label))

    def _override_text(self, override: object) -> None:
        label = f"override {shown(override)}"
        key, equals, value = override.partition("=") if isinstance(override, str) else ("", "", "")
        if not equals or not key.strip():
            form = '"key.path=value", such as "options.enable_async=true"'
            self.problems.append(Problem((), f"expected {form}, got {got(override)}", label))
            return
        path = self._overridden_path(key)
        if path is None:
            self._refuse_long(key, label)
            return
        if not value.strip():
            hint = "write null to mean null, '' to mean empty text"
            self.problems.append(Problem(path, f"expected a value behind the =, got nothing; {hint}", label))
            return
        text = YamlText(value.strip(), lambda line: label, path)
        rest = value.strip()[text.end :].strip()
        if text.valid and rest:
            hint = "YAML takes it for a comment; put the value in quotes"
            self.problems.append(Problem(path, f"expected one value, got {shown(rest)} behind it; {hint}", label))
            return
        self.problems += text.problems
        self._set(path, text.value, label, text)

    def _overridden_path(self, key: object) -> KeyPath | None:
        """Returns the path that an override replaces. A value of a mapping that could not be read no longer matters.

        None for a path that is too long.
        """
        path = (*self.section, *_key_path(key))
        if len(path) > MAX_DEPTH:
            return None
        self.problems = [item for item in self.problems if item.where or item.path[: len(path)] != path]
        return path

    def _set(self, path: KeyPath, value: object, label: str, text: YamlText | None) -> None:
        """Puts one value in its place. It replaces what was there: mappings and lists are not merged."""
        section = self.data
        for depth in range(len(self.section), len(path) - 1):
            part = path[depth]
            if section.get(part) is None:
                section[part] = {}
            inside = section[part]
            if not isinstance(inside, dict):
                if inside is not UNUSABLE:
                    above = dotted(path[: depth + 1])
                    self.problems.append(
                        Problem(path, f"expected a key inside a mapping, got {above} = {got(inside)}", label)
                    )
                return
            section = inside
        section[path[-1]] = value
        self._overridden.append((path, label, text))


def _content(path: Path) -> bytes:
    """Returns the bytes of a config file.

    Raises:
      ConfigError: it is a pipe or a device, which may have no end, or too long.
      OSError: it cannot be read, or is a directory.
    """
    # First by name: opening a device may do something.
    _require_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        _require_regular(path, os.fstat(descriptor).st_mode)
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a config file of at most {MAX_BYTES:,} bytes, got a longer one")
    return content


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise ConfigError(f"{path}: expected a config file, got {kind}")


def is_mapping(value: object) -> bool:
    """Whether `value` is a mapping, or behaves as one (ConfigDict, OmegaConf, or an object with `to_dict`)."""
    if isinstance(value, Mapping):
        return True
    if isinstance(value, type) or callable(value):
        return False
    return (hasattr(value, "keys") and hasattr(value, "__getitem__")) or any(
        callable(getattr(value, name, None)) for name in ("items", "to_dict")
    )


def _key_path(key: object) -> KeyPath:
    return tuple(part.strip() for part in key.split(".")) if isinstance(key, str) else (key,)
