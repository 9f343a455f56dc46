"""Names a function for another process, and finds it there."""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HOW = "give a function at the top level of a module, 'module:name', or 'path/to/file.py:name'"


@dataclass(frozen=True)
class Target:
    """A function of a module.

    Attributes:
      module: the module's name.
      file: path of the module's file, in case the module cannot be imported by its name; None if it is known that it can.
      name: the function's name in the module, with dots for a static method.
    """

    module: str
    file: str | None
    name: str


def describe(function: Callable[..., Any] | str) -> Target:
    """Returns the name by which another process with the same ``sys.path`` finds a function.

    Args:
      function: the function, ``"module:name"`` or ``"path/to/file.py:name"``.

    Raises:
      ValueError: another process cannot find the function by a name.
    """
    if isinstance(function, str):
        place, colon, name = function.rpartition(":")
        if not (colon and place and name):
            raise ValueError(f"{function!r} does not name a function; {_HOW}.")
        if not place.endswith(".py"):
            return Target(place, None, name)
        file = os.path.abspath(place)
        if not os.path.isfile(file):
            raise ValueError(f"{function!r}: the file {file} does not exist.")
        return Target(os.path.basename(file).removesuffix(".py"), file, name)
    name = getattr(function, "__qualname__", "<no name>")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or "<" in name or not _is(function, module, name):
        raise ValueError(f"{function!r} cannot be found by its name in another process; {_HOW}.")
    given = getattr(module, "__file__", None)
    if module.__name__ == "__main__" and given is None:
        raise ValueError(f"{function!r} was defined interactively; {_HOW}.")
    return Target(module.__name__, None if given is None else os.path.abspath(given), name)


def _is(function: object, module: types.ModuleType, name: str) -> bool:
    try:
        return find(module, name) is function
    except AttributeError:
        return False


def find(module: types.ModuleType, name: str) -> Any:
    """Returns the object with a dotted name in a module.

    Args:
      module: the module.
      name: the dotted name.
    """
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def load(target: Target) -> Callable[..., Any]:
    """Returns the function of a `Target` that `describe` made in another process."""
    function = find(_module(target), target.name)
    if not callable(function):
        raise TypeError(f"{target.module}:{target.name} is not a function but {function!r}")
    return function  # type: ignore[no-any-return]


def _module(target: Target) -> types.ModuleType:
    loaded = sys.modules.get(target.module)
    if loaded is not None and (target.file is None or _same(getattr(loaded, "__file__", None), target.file)):
        return loaded
    if target.file is None:
        return importlib.import_module(target.module)
    if target.module != "__main__":
        try:
            found = importlib.util.find_spec(target.module)
        except (ImportError, ValueError):
            # The module's package cannot be imported, or the module has no spec.
            found = None
        if found is not None and _same(found.origin, target.file):
            return importlib.import_module(target.module)
    # The file is not on sys.path, or is the parent's program. The latter's `if __name__ == "__main__":` must not run here.
    name = "__mp_main__" if target.module == "__main__" else target.module
    spec = importlib.util.spec_from_file_location(name, target.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{target.file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = sys.modules[target.module] = module
    spec.loader.exec_module(module)
    return module


def _same(one: str | None, other: str) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)
