"""Reads the source of a config (a YAML or TOML file, or a mapping) and its overrides into plain values."""

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
    """The plain values of a config, with their origins. The key paths that its methods take start at the section.

    Attributes:
      data: nested dicts and lists. The keys of a dict may be anything that a YAML key can be.
      name: name of the source in messages.
      section: key path of `data` in the source; empty if `data` is the whole source.
      problems: the problems so far, to which later stages append. Their key paths start at the top of the source.
    """

    def __init__(self, source: object, overrides: object, section: str = "") -> None:
        """Reads a source and applies the overrides.

        Args:
          source: path of a YAML or TOML file, or a mapping.
          overrides: ``"key.path=value"`` strings, or a mapping from key paths to values.
          section: key path of the part that is the config; empty for the whole source.

        Raises:
          ArgumentError: an argument has a wrong type.
          ConfigError: the file is not valid YAML or TOML, is not a mapping, or does not have the section.
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
        # Problems outside of the section do not count: there the file may use tags or values that another reader understands.
        self.problems = [item for item in self.problems if self._concerns(item.path)]
        for override in read_overrides(overrides, self._plain, self.section, self._file()):
            self._override(override)

    def _concerns(self, path: KeyPath) -> bool:
        """Whether a key path is inside the section, or leads to it."""
        length = min(len(path), len(self.section))
        return path[:length] == self.section[:length]

    def _mapping(self, data: object) -> dict[object, object]:
        """Returns `data` if it is a mapping. None counts as an empty one: in a file, all lines may be commented out."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            if data is not UNUSABLE:
                self.add((), f"expected a mapping of keys to values, got {self.got((), data)}")
            raise config_error(self.problems, self.name)
        return data

    def where(self, path: KeyPath) -> str:
        """Returns where the value at `path` was written: file and line, or the override; empty for a mapping."""
        path = (*self.section, *path)
        for prefix, label, _ in reversed(self._overridden):
            if path[: len(prefix)] == prefix:
                return label
        # If a section is not in the file, an override of one of its keys has made it.
        made = next((label for inside, label, _ in self._overridden if inside[: len(path)] == path), None)
        # For a missing key, the line of the mapping that should have it is returned.
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
        """Describes the value at `path` in the words of config files, with its spelling if that explains it.

        Args:
          path: key path of the value.
          value: the value.
        """
        path = (*self.section, *path)
        text, rest = self._text, path
        for prefix, _, override in reversed(self._overridden):
            if path[: len(prefix)] == prefix:
                text, rest = override, path[len(prefix) :]
                break
        return got(value, None if text is None else text.written(rest))

    def add(self, path: KeyPath, text: str, cause: BaseException | None = None) -> None:
        """Adds a problem.

        Args:
          path: key path of the value.
          text: what was expected and what was found.
          cause: the exception that the user's code raised, if it did.
        """
        # One more problem than are listed is kept, so that the error can tell that there are more. Others are dropped at once, because
        # finding the place of each takes time.
        if len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(Problem((*self.section, *path), text, self.where(path), cause))

    def refuse_unknown(
        self, section: KeyPath, data: Iterable[object], names: Collection[str], known: Iterable[KeyPath] = ()
    ) -> None:
        """Adds a problem for each unknown key of a section.

        Args:
          section: key path of the section.
          data: the keys in the section.
          names: the allowed keys.
          known: key paths of all keys, for suggestions from other sections.
        """
        paths = list(known) or [(*section, name) for name in names]
        for key in data:
            if len(self.problems) > MAX_PROBLEMS:
                return
            if key is not UNUSABLE and key not in names:
                hint = did_you_mean(key, section, paths) or f"; the keys here are {', '.join(names)}"
                self.add((*section, key), f"unknown key{hint}")

    def usable(self, path: KeyPath) -> bool:
        """Whether there is no problem at or below `path`. False if there are so many problems that some were dropped."""
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
            # The override replaces a value of a mapping, so it no longer matters if that value could not be read.
            length = len(override.path)
            self.problems = [item for item in self.problems if item.where or item.path[:length] != override.path]
        self.problems += override.problems
        if override.path is not None and override.replaces:
            self._set(override.path, override.value, override.label, override.text)

    def _set(self, path: KeyPath, value: object, label: str, text: YamlText | None) -> None:
        """Sets one value. It replaces the old one: mappings and lists are not merged.

        Args:
          path: key path from the top of the source.
          value: the new value.
          label: names the override in messages.
          text: the YAML text of the value, if it was given as text.
        """
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
