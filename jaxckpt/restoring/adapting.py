"""The differences between targets and stored leaves that the caller of a restore allows, and the stored names of renamed targets."""

import difflib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jaxckpt._lib.arguments import type_name
from jaxckpt.tree import leaf_errors
from jaxckpt.tree.flatten import Leaf
from jaxckpt.tree.names import Path, leaf_name, leaf_names
from jaxckpt.tree.renaming import Rule, path_of

# `{target prefix: stored prefix}`, or a function of a target's name.
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class Adaptation:
    """The differences that a caller allows. The attributes are the arguments of `Checkpoint.restore`.

    Attributes:
      rename: the stored names of targets that have other names.
      cast: whether numbers of another dtype of the same kind are converted.
      skip_mismatched: whether a target keeps its value if the stored leaf has another shape.
    """

    rename: Rename | None = None
    cast: bool = False
    skip_mismatched: bool = False

    def __post_init__(self) -> None:
        for name in ("cast", "skip_mismatched"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {type_name(getattr(self, name))}.")
        rename: Any = self.rename
        if isinstance(rename, Mapping):
            _rules(rename)
        elif rename is not None and not callable(rename):
            raise TypeError(
                f"rename must map names of targets to stored names, or be a function of a target's name; got {type_name(rename)}."
            )

    def details(self) -> dict[str, Any]:
        """Returns the values that must be the same on every process of a job. The names are compared when they are known."""
        return {"cast": self.cast, "skip_mismatched": self.skip_mismatched}


AS_IT_IS = Adaptation()


@dataclass(frozen=True)
class Sought:
    """Targets, as they are called in the checkpoint.

    Attributes:
      leaves: for each target a leaf with its value, at the path where it is looked for.
      renamed: the stored names of the targets that have another name there, by the target's name.
      groups: for each rule the names of the targets that it renames; for a function one group, under None.
    """

    leaves: Sequence[Leaf]
    renamed: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[Rule | None, Sequence[str]] = field(default_factory=dict)

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """The names under which the targets are looked for."""
        return leaf_names([leaf.path for leaf in self.leaves])

    def require_hits(self, missing: Collection[str], path: str) -> None:
        """Requires that each rule, or the function, led to at least one leaf of the checkpoint.

        Args:
          missing: names of targets that are not in the checkpoint.
          path: path of the checkpoint, for the error.

        Raises:
          ValueError: the targets of a rule, or all that the function renames, are missing.
        """
        absent = set(missing)
        for rule, names in self.groups.items():
            if absent.issuperset(names):
                raise ValueError(
                    f"{_described(rule)}: {path} has no leaf of such a name. {names[0]} is looked for as {self.renamed[names[0]]!r}. "
                    "`jaxckpt inspect` and load_checkpoint(path).keys() list the names."
                )


def sought(targets: Sequence[Leaf], rename: Rename | None) -> Sought:
    """Returns the targets under their stored names.

    Args:
      targets: the leaves of the current values.
      rename: as `Adaptation.rename`.

    Raises:
      ValueError: a rule applies to none of the targets, the function changes no name, or two targets get one stored name.
      TypeError: the function does not return text.
      Exception: the function's own error; the message names the target.
    """
    if rename is None or (isinstance(rename, Mapping) and not rename):
        return Sought(targets)
    leaves: list[Leaf] = []
    groups: dict[Rule | None, list[str]]
    if isinstance(rename, Mapping):
        rules = _rules(rename)
        groups = {rule: [] for rule in rules}
        for target in targets:
            leaf, rule = _by_rule(target, rules)
            leaves.append(leaf)
            if rule is not None:
                groups[rule].append(target.name)
    else:
        leaves = [_by_function(target, rename) for target in targets]
        groups = {None: [target.name for target, leaf in zip(targets, leaves, strict=True) if leaf is not target]}
    names = [target.name for target in targets]
    stored = [leaf.name for leaf in leaves]
    for rule, group in groups.items():
        if not group:
            _refuse_unused(rule, names)
    _refuse_twice(names, stored)
    renamed = {name: new for name, new in zip(names, stored, strict=True) if name != new}
    # A rule may also say that names stay, where a shorter prefix would change them.
    changing = {rule: [name for name in group if name in renamed] for rule, group in groups.items()}
    return Sought(leaves, renamed, {rule: group for rule, group in changing.items() if group})


def _rules(rename: Mapping[str, str]) -> list[Rule]:
    """Returns the rules of a mapping, the longest prefix first."""
    rules: dict[tuple[str, ...], Rule] = {}
    for old, new in rename.items():
        if not (isinstance(old, str) and isinstance(new, str)):
            raise TypeError(f"rename must map text to text, got {old!r}: {new!r}.")
        rule = Rule.of(old, new)
        if rule.old in rules:
            raise ValueError(f"rename names the prefix {old!r} twice.")
        rules[rule.old] = rule
    return sorted(rules.values(), key=lambda rule: -len(rule.old))


def _described(rule: Rule | None) -> str:
    return "rename" if rule is None else f"rename {{{rule.text}}}"


def _by_rule(target: Leaf, rules: Sequence[Rule]) -> tuple[Leaf, Rule | None]:
    for rule in rules:
        path = rule.apply(target.path)
        if path is not None:
            return _moved(target, path), rule
    return target, None


def _by_function(target: Leaf, rename: Callable[[str], str]) -> Leaf:
    name = target.name
    with leaf_errors.naming(name):
        new: Any = rename(name)
    if not isinstance(new, str):
        raise TypeError(f"{name}: the function given as rename must return a stored name, got {type_name(new)}.")
    return target if new == name else _moved(target, path_of(new))


def _moved(target: Leaf, path: Path) -> Leaf:
    """Returns a target at another path. If it is a part of an NNX Variable, its path inside the Variable stays."""
    inside = len(target.path) - target.variable_depth
    depth = len(path) - inside if target.variable_depth else 0
    return target._replace(path=path, variable_depth=max(0, depth))


def _refuse_unused(rule: Rule | None, names: Sequence[str]) -> None:
    """Raises, because a rule, or the function, renames none of the targets.

    Args:
      rule: the rule; None for the function.
      names: names of the targets.
    """
    if rule is None:
        raise ValueError("rename: the function changes the name of no target.")
    prefixes = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
    old = leaf_name([(text, False) for text in rule.old])
    if old in prefixes:
        raise ValueError(
            f"{_described(rule)}: longer prefixes apply to all targets below {old!r}, so this one renames nothing. Remove it."
        )
    close = difflib.get_close_matches(old, sorted(prefixes), n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"{_described(rule)}: no target has the name {old!r}, or lies below it. A rename gives names of targets first, and a prefix "
        f"consists of whole keys.{hint}"
    )


def _refuse_twice(names: Sequence[str], stored: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name, new in zip(names, stored, strict=True):
        other = seen.setdefault(new, name)
        if other != name:
            raise ValueError(f"rename: {other} and {name} would both be restored from {new!r}. Rename one of them.")
