"""Import paths in configs: finds the object that ``"package.module:function"`` names, or reports why there is none."""

import importlib
import pkgutil
import sys

from jaxckpt.config.problems import UNUSABLE, KeyPath, close_name, got
from jaxckpt.config.sources import Source

IMPORTED = '"package.module:function", or {call: "package.module:factory", with: {...}}'


class ImportPathError(Exception):
    """An import path does not lead to an object. The cause is the exception of the user's module, if it raised one."""


def imported(reading: Source, path: KeyPath, value: object) -> object:
    """Returns the object that a value in a config names.

    Args:
      reading: the source, which collects problems.
      path: key path of the value.
      value: an import path, or ``{call: factory, with: arguments}``. A value that is not plain data is taken as the object itself.

    Returns:
      The object; `UNUSABLE` if there is none and the problem has been reported.
    """
    if isinstance(value, str):
        return _import(reading, path, value)
    if isinstance(value, dict):
        return _called(reading, path, value)
    if value is None or isinstance(value, (bool, int, float, list)):
        reading.add(path, f"expected {IMPORTED}, got {reading.got(path, value)}")
        return UNUSABLE
    return value


def _import(reading: Source, path: KeyPath, text: str) -> object:
    try:
        return import_object(text)
    except ImportPathError as error:
        reading.add(path, f"expected an import path, got {got(text)}: {error}", error.__cause__)
        return UNUSABLE


def _called(reading: Source, path: KeyPath, value: dict[object, object]) -> object:
    """Calls the factory of ``{call: factory, with: arguments}`` and returns its result; `UNUSABLE` after a problem."""
    reading.refuse_unknown(path, value, ("call", "with"))
    target = value.get("call")
    arguments = value.get("with")
    arguments = {} if arguments is None else arguments
    factory: object = UNUSABLE
    if isinstance(target, str):
        factory = _import(reading, (*path, "call"), target)
    elif target is not UNUSABLE:
        found = got(target) if "call" in value else "nothing"
        reading.add((*path, "call"), f'expected "package.module:factory", got {found}')
    if factory is not UNUSABLE and not callable(factory):
        reading.add((*path, "call"), f"expected a callable, got {target}, which is {got(factory)}")
    if arguments is not UNUSABLE and not _are_arguments(arguments):
        reading.add((*path, "with"), f"expected a mapping from argument names to values, got {got(arguments)}")
    if not (callable(factory) and isinstance(arguments, dict) and reading.usable(path)):
        return UNUSABLE
    try:
        result: object = factory(**arguments)
    except (Exception, SystemExit) as error:
        reading.add(path, f"expected an object from {target}, got {_describe(error)}", error)
        return UNUSABLE
    if result is None:
        reading.add(path, f"expected an object from {target}, got None")
        return UNUSABLE
    return result


def _are_arguments(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def import_object(path: str) -> object:
    """Imports the object that an import path names.

    Args:
      path: ``"package.module:name"`` or ``"package.module:Class.name"``.

    Raises:
      ImportPathError: the path has another form, the object does not exist, or importing the module raised.
    """
    module_name, colon, attributes = path.partition(":")
    if not colon or not _is_dotted_name(module_name) or not _is_dotted_name(attributes):
        fixed = ":".join(path.rpartition(".")[::2])
        hint = f"; did you mean {fixed}?" if _is_dotted_name(path) and "." in path else ""
        raise ImportPathError(f'it does not have the form "package.module:function"{hint}')
    found: object = _import_module(module_name)
    below = module_name
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ImportPathError(f"{below} has no attribute {name!r}{close_name(name, dir(found))}") from None
        except Exception as error:
            raise ImportPathError(f"reading {below}.{name} raised {_describe(error)}") from error
        below = f"{below}.{name}"
    return found


def _import_module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ImportPathError(f"there is no module {missing!r}{_close_module(missing)}") from None
        raise ImportPathError(f"importing {name} raised {_describe(error)}") from error
    except (Exception, SystemExit) as error:
        # A script without a main guard may call sys.exit.
        raise ImportPathError(f"importing {name} raised {_describe(error)}") from error


def _close_module(name: str) -> str:
    """Returns the suggestion of a module with a similar name in the same package; empty if there is none."""
    parent, _, last = name.rpartition(".")
    try:
        places = sys.modules[parent].__path__ if parent else None
        names = [module.name for module in pkgutil.iter_modules(places)]
    except Exception:
        # An import hook of another package failed. The error has no suggestion then.
        return ""
    prefix = f"{parent}." if parent else ""
    return close_name(f"{prefix}{last}", [f"{prefix}{other}" for other in [*names, *sys.builtin_module_names]])


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
