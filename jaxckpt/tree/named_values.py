"""The named values of a Checkpoint: the values it was given, the fields of its root, and restored values that replace fields."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxckpt.tree import flatten, nnx_objects, objects, roots
from jaxckpt.tree.builders import Change, Undo, together
from jaxckpt.tree.rebuilding import IsSame, rebuild_values


class NamedValues:
    """Values by name. A value that was given by name hides a field of the root.

    This object does not refer to its Checkpoint. Such a cycle would keep large arrays alive until Python's cycle collector runs.

    Attributes:
      root: the object whose fields are values too, read anew each time; None if there is not one.
      inner: the values of `root` if that is a Checkpoint; else None.
    """

    def __init__(
        self,
        root: Any,
        named: Mapping[str, Any],
        *,
        inner: "NamedValues | None",
        check_name: Callable[[str], None],
    ) -> None:
        """Starts with the arguments of a Checkpoint.

        Args:
          root: the root, or None.
          named: values by name.
          inner: the values of `root` if that is a Checkpoint; else None.
          check_name: raises ValueError for a reserved or invalid name.

        Raises:
          TypeError: `root` does not have named fields.
          ValueError: a name is not allowed, or has different values in `root` and in `named`.
        """
        self.root = root
        self.inner = inner
        self._check_name = check_name
        self._own: dict[str, Any] = {}
        # By a field's name: the value that the field had at the restore, and the restored value. The restored value counts until the
        # program assigns another value to the field.
        self._restored: dict[str, tuple[Any, Any]] = {}
        fields = self._fields()
        for name in (*fields, *named):
            check_name(name)
        for name, value in named.items():
            if name in fields and fields[name] is not value:
                raise ValueError(f"{name!r} is in root and among the keywords, with different values; give it once.")
            if name not in fields:
                self._own[name] = value

    def copy(self) -> "NamedValues":
        """Returns a copy with the same values and the same root. Assigning to a name of one does not change the other."""
        other = NamedValues.__new__(NamedValues)
        other.__dict__.update(self.__dict__, _own=dict(self._own), _restored=dict(self._restored))
        return other

    def current(self) -> dict[str, Any]:
        """Returns the values by name as they are now.

        Raises:
          ValueError: the root now has a field whose name is not allowed.
        """
        fields = self._fields()
        for name in fields:
            self._check_name(name)
        for name, (replaced, restored) in self._restored.items():
            if name not in fields or nnx_objects.is_same(fields[name], replaced):
                fields[name] = restored
        return {**fields, **self._own}

    def _fields(self) -> dict[str, Any]:
        return {} if self.root is None else roots.expand_root(self.root)

    def set(self, name: str, value: Any) -> None:
        """Assigns a value to a name. Raises ValueError for a name that is not allowed."""
        self._check_name(name)
        self._restored.pop(name, None)
        self._own[name] = value

    def delete(self, name: str) -> bool:
        """Removes a given or restored value. Returns whether there was one; a field of the root cannot be removed."""
        found = self.has_own(name) or name in self._restored
        self._own.pop(name, None)
        self._restored.pop(name, None)
        return found

    def has_own(self, name: str) -> bool:
        """Whether the value was given by name, and is not a field of the root."""
        return name in self._own

    def is_in_state(self, name: str) -> bool:
        """Whether a value is a field of an `nnx.State`, the root or the root of the root. Its Variables are replaced, not changed."""
        if self.has_own(name):
            return False
        return nnx_objects.is_state(self.root) if self.inner is None else self.inner.is_in_state(name)

    def flats(self, parent: int, values: Mapping[str, Any]) -> dict[str, flatten.Flat]:
        """Takes values apart.

        Args:
          parent: `id` of the Checkpoint. Its values must not contain it.
          values: the result of `current`.

        Returns:
          The values, taken apart, by name.
        """
        return {
            name: flatten.flatten(name, value, (parent,), in_state=self.is_in_state(name))
            for name, value in values.items()
        }

    def changes(
        self, values: Mapping[str, Any], flats: Mapping[str, flatten.Flat], new: Mapping[str, Any], is_same: IsSame
    ) -> Iterator[Change]:
        """Yields the changes that put new leaves into the values. Calling a change carries it out and returns its undo.

        Args:
          values: the result of `current`.
          flats: the same values, taken apart.
          new: new leaves by name.
          is_same: compares two new values that were stored for one object.
        """
        rebuilt, found = rebuild_values(flats, new, is_same)
        yield from found
        replaced = {name: value for name, value in rebuilt.items() if value is not values[name]}
        # This is a change too, because a root may refuse a value.
        yield lambda: self.replace(replaced)

    def replace(self, new: Mapping[str, Any]) -> Undo:
        """Replaces current values by restored ones. If one is refused, all stay as they were.

        Args:
          new: restored values by name.

        Returns:
          The undo, which puts the old values back.
        """
        undos: list[Undo] = []
        put_back = together(undos)
        named = {name: value for name, value in new.items() if name in self._own}
        fields = {name: value for name, value in new.items() if name not in named}
        adapter = objects.root_adapter(self.root)
        restored = {}
        if fields and adapter is None:
            expanded = roots.expand_root(self.root)
            restored = {name: (expanded[name], value) for name, value in fields.items()}
        old_own = {name: self._own[name] for name in named}
        old_restored = {name: self._restored[name] for name in restored if name in self._restored}

        def put_back_own() -> None:
            self._own.update(old_own)
            for name in restored:
                self._restored.pop(name, None)
            self._restored.update(old_restored)

        try:
            undos.append(put_back_own)
            # Each update is one step. An interrupt in a loop would leave some values old and some new.
            self._own.update(named)
            self._restored.update(restored)
            if adapter is not None:
                for name, value in fields.items():
                    undos.append(adapter.set_child(self.root, name, value))
        except BaseException:
            put_back()
            raise
        return put_back
