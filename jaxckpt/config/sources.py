"""Where a config comes from: a YAML or TOML file or a mapping, and overrides on top, as plain values."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from jaxckpt.config import files
from jaxckpt.config.bounds import MAX_PROBLEMS
from jaxckpt.config.overrides import Override, key_path, read_overrides
from jaxckpt.config.plain import PlainValues, is_mapping
from jaxckpt.config.problems import (
    UNUSABLE,
    ArgumentError,
    KeyPath,
    Problem,
    close_name,
    config_error,
    did_you_mean,
    dotted,
    got,
)
from jaxckpt.config.yaml_text import YamlText
from jaxckpt.errors import ConfigError


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
        self._plain = PlainValues()
        if isinstance(source, (str, os.PathLike)):
            data = self._read(Path(source))
        elif is_mapping(source):
            data = self._from_object(source)
        else:
            raise ArgumentError(f"expected the path of a YAML or TOML file, or a mapping, as config, got {got(source)}")
        self.data = self._mapping(data)
        for part in key_path(section) if section else ():
            if part not in self.data:
                hint = close_name(str(part), [key for key in self.data if isinstance(key, str)])
                self.add((part,), f"expected a section of that name, got nothing{hint}")
                raise config_error(self.problems, self.name)
            self.section = (*self.section, part)
            self.data = self._mapping(self.data[part])
        # The rest of a larger file is none of our business: it may use tags, or values, that mean something to its reader.
        self.problems = [item for item in self.problems if self._concerns(item.path)]
        for override in read_overrides(overrides, self._plain, self.section, self._file()):
            self._override(override)

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
        # For a key that is missing, the line of the mapping that should have it.
        for length in range(len(path), 0, -1):
            line = None if self._text is None else self._text.line(path[:length])
            if line is not None:
                return f"{self.name}:{line + 1}"
            if made is not None:
                return made
        return self._file()

    def _file(self) -> str:
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
        content = files.content(path)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.problems.append(Problem((), f"expected text in UTF-8, got other bytes ({error})", self.name))
            return UNUSABLE
        if kind == ".toml":
            value, problems = files.parse_toml(text, self.name)
            self.problems += problems
            return self._from_object(value)
        self._text = YamlText(text, lambda line: f"{path}:{line + 1}" if line >= 0 else str(path))
        self.problems += self._text.problems
        return self._text.value

    def _from_object(self, value: object) -> object:
        plain, problems = self._plain.of(value, (), self._file())
        self.problems += problems
        return plain

    def _override(self, override: Override) -> None:
        if override.path is not None:
            # A value of a mapping that could not be read no longer matters.
            length = len(override.path)
            self.problems = [item for item in self.problems if item.where or item.path[:length] != override.path]
        self.problems += override.problems
        if override.path is not None and override.replaces:
            self._set(override.path, override.value, override.label, override.text)

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
