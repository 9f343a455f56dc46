"""What calls work out about the structure of a state, kept for later calls: a training loop saves the same structure again and again.

The *structure* is all that processes agree about: paths, kinds, shapes, dtypes, shardings and weak types of the leaves, but not their
values. Each call describes its leaves anew, and compares the descriptions with those of the last structures, leaf by leaf. So a
structure that has changed is never mistaken for an earlier one.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from jaxckpt._lib.quiet_gc import quiet_gc
from jaxckpt.job.plan import Plan
from jaxckpt.leaf_kinds.kind import LeafKind, Texts
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.names import Path

# Most structures, and most leaves of all of them together, that are kept.
_STRUCTURES = 8
_LEAVES = 200_000
# Most forms that are remembered by their origins.
_FORMS = 4096

_lock = threading.Lock()
# The one that was used last comes last.
_known: list["_Structure"] = []
# By kind and the ids of the two objects of `LeafKind.origin` the form, with these objects, so that others cannot get their ids.
_forms: dict[tuple[Any, int, int], tuple[Any, tuple[Any, Any]]] = {}


class _Structure:
    """A structure, and the plan that has been made for it."""

    __slots__ = ("forms", "paths", "plan")

    def __init__(self, paths: Sequence[Path], forms: Sequence[Any], plan: Plan) -> None:
        self.paths = paths
        self.forms = forms
        self.plan = plan

    def fits(self, paths: Sequence[Path], forms: Sequence[Any], process: int, center: int | None) -> bool:
        """Whether a plan for this process and center is one for leaves of these paths and forms."""
        if self.plan.process != process or self.plan.center != center:
            return False
        # Both are lists. Most often their items are the same objects, which makes the comparison fast.
        return self.paths == paths and self.forms == forms


@quiet_gc()
def plan_for(leaves: Sequence[Leaf], process: int, center: int | None) -> Plan:
    """Returns the plan for leaves. Calls whose leaves have the same structure get the same plan, with all that it has worked out.

    Args:
      leaves: the leaves.
      process: index of this process.
      center: index of the process that writes everything; None if every process writes.

    Raises:
      Exception: JAX's error about a leaf. The message names the leaf.
    """
    new = Plan(process, center, kept={})
    paths = [leaf.path for leaf in leaves]
    with leaf_errors.Walk(leaves) as walk:
        forms = _forms_of(walk, Texts(new.text))
    with _lock:
        for structure in reversed(_known):
            if structure.fits(paths, forms, process, center):
                _known.remove(structure)
                _known.append(structure)
                return structure.plan
        _known.append(_Structure(paths, forms, new))
        while len(_known) > _STRUCTURES or (len(_known) > 1 and sum(len(each.paths) for each in _known) > _LEAVES):
            del _known[0]
    return new


def forget() -> None:
    """Forgets all structures."""
    with _lock:
        _known.clear()
        _forms.clear()


def _forms_of(leaves: Iterable[Leaf], texts: Texts) -> list[Any]:
    """Returns what must be equal for leaves to have the same places in a structure. Most often it is the same objects as at the last call.

    Args:
      leaves: the leaves.
      texts: the cache of descriptions.
    """
    # The texts of shardings by their ids, each with the sharding, so that another one cannot get its id.
    spelled: dict[int, tuple[Any, str]] = {}
    found: list[Any] = []
    last: Any = None
    kind: Any = None
    # A save spends a third of the time of its caller here, so a leaf costs one call.
    for leaf in leaves:
        value = leaf.value
        if type(value) is not last:
            kind, last = kind_of(value), type(value)
        origin = kind.origin(value)
        if origin is None:
            found.append(_new_form(kind, value, texts, spelled))
            continue
        key = kind, id(origin[0]), id(origin[1])
        known = _forms.get(key)
        if known is None:
            known = _new_form(kind, value, texts, spelled), origin
            if len(_forms) >= _FORMS:
                _forms.clear()
            _forms[key] = known
        found.append(known[0])
    return found


def _new_form(kind: LeafKind, value: Any, texts: Texts, spelled: dict[int, tuple[Any, str]]) -> Any:
    form = kind.form(value)
    if form is None:
        return kind, kind.describe(value, texts)
    sharding = form[-1]
    found = spelled.get(id(sharding))
    if found is None:
        # Equal shardings may have different texts, and the texts are what processes compare.
        found = spelled[id(sharding)] = sharding, str(sharding)
    return kind, form, found[1]
