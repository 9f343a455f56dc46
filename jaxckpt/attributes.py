"""Attributes of an object that are named values: what makes ``checkpoint.step = 100`` set the value `step`."""

from collections.abc import Iterable
from typing import Any

from jaxckpt.saver import Saver

# The only attribute that is not a value.
SAVER = "_saver"


class ValueAttributes:
    """The base of `Checkpoint`: an object whose attributes are the values of its saver."""

    _saver: Saver

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == SAVER:
            raise AttributeError(name)
        values = self._saver.values.current()
        if name in values:
            return values[name]
        raise AttributeError(f"This Checkpoint has no value {name!r}; it has {', '.join(sorted(values)) or 'none'}")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
            return
        self._saver.values.set(name, value)

    def __delattr__(self, name: str) -> None:
        if not self._saver.values.delete(name):
            raise AttributeError(f"This Checkpoint has no value {name!r} of its own to delete.")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._saver.values.current()]


def set_saver(owner: ValueAttributes, saver: Saver) -> None:
    """Gives an object its saver. Without one it has no values."""
    object.__setattr__(owner, SAVER, saver)


def check_name(owner: type, name: str) -> None:
    """Refuses a name of a value that stands for something else.

    Args:
      owner: the class of the object.
      name: the name.

    Raises:
      ValueError: the class has a method or a property of that name.
    """
    if any(name in vars(kind) for kind in owner.__mro__) or name == SAVER:
        raise ValueError(
            f"{name!r} is a reserved name: Checkpoint has a method or property of that name. Use another name."
        )
