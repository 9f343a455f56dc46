"""Converts objects that hold a config (dict, ConfigDict, OmegaConf, ...) into dicts, lists and plain values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxckpt.config.bounds import ITSELF, MAX_DEPTH, MAX_VALUES, TOO_DEEP, Counter, TooMuchError
from jaxckpt.config.problems import UNUSABLE, KeyPath, Problem


def is_mapping(value: object) -> bool:
    """Whether `value` is a mapping, or behaves as one (ConfigDict, OmegaConf, or an object with `to_dict`)."""
    if isinstance(value, Mapping):
        return True
    if isinstance(value, type) or callable(value):
        return False
    return (hasattr(value, "keys") and hasattr(value, "__getitem__")) or any(
        callable(getattr(value, name, None)) for name in ("items", "to_dict")
    )


class PlainValues:
    """Converts the objects of one source into plain values, and limits their total number."""

    def __init__(self) -> None:
        self._counter = Counter()
        # The problems of the running call.
        self._problems: list[Problem] = []

    def of(self, value: object, path: KeyPath, where: str = "") -> tuple[object, list[Problem]]:
        """Converts mappings and sequences of any kind into dicts and lists. Other objects stay as they are.

        Args:
          value: the object.
          path: key path of the object in the source.
          where: names the source in messages.

        Returns:
          The plain value, in which unusable parts are `UNUSABLE`; and the problems.
        """
        problems: list[Problem] = []
        self._problems = problems
        try:
            return self._plain(value, path, ()), problems
        except TooMuchError as error:
            problems.append(Problem(path, str(error), where))
        except RecursionError:
            problems.append(Problem(path, TOO_DEEP))
        return UNUSABLE, problems

    def items(self, mapping: object) -> tuple[list[tuple[object, object]], list[Problem]]:
        """Returns the items of a mapping, in which unreadable values are `UNUSABLE`; and the problems."""
        problems: list[Problem] = []
        self._problems = problems
        return self._items(mapping, ()), problems

    def _plain(self, value: object, path: KeyPath, above: tuple[int, ...]) -> object:
        self._counter.add()
        if len(above) >= MAX_DEPTH:
            raise TooMuchError(TOO_DEEP)
        try:
            if id(value) in above:
                self._problems.append(Problem(path, ITSELF))
                return UNUSABLE
            inside = (*above, id(value))
            if is_mapping(value):
                return {key: self._plain(item, (*path, key), inside) for key, item in self._items(value, path)}
            if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
                return [self._plain(item, (*path, index), inside) for index, item in enumerate(value)]
        except (TooMuchError, RecursionError):
            # `of` reports these errors once.
            raise
        except Exception as error:
            return self._unreadable(path, error)
        return value.item() if isinstance(value, np.generic) else value

    def _items(self, value: Any, path: KeyPath) -> list[tuple[object, object]]:
        """Returns the items of a mapping. Values are fetched by key if possible, because that resolves interpolations."""
        if not (hasattr(value, "keys") and hasattr(value, "__getitem__")):
            pairs = value.items() if hasattr(value, "items") else value.to_dict().items()
            return list(itertools.islice(pairs, MAX_VALUES + 1))
        items: list[tuple[object, object]] = []
        # This iterates over keys(), because an object that is not a dict may iterate over something else.
        for key in itertools.islice(value.keys(), MAX_VALUES + 1):
            try:
                items.append((key, value[key]))
            except Exception as error:
                # For example, a mandatory value is missing, or an interpolation refers to a missing key.
                items.append((key, self._unreadable((*path, key), error)))
        return items

    def _unreadable(self, path: KeyPath, error: Exception) -> object:
        reason = str(error).partition("\n")[0]
        self._problems.append(Problem(path, f"expected a value, got {type(error).__name__}: {reason}", cause=error))
        return UNUSABLE
