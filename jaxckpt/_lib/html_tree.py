"""Named leaves as a tree of HTML that folds, for notebooks. Siblings that are alike, such as the layers of a model, are shown once."""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxckpt._lib.output import count, printable

# Browsers are slow with more.
_LEAVES = 10_000
# A stranger's tree may be deeper than Python's stack. What lies deeper is shown in one line.
_LEVELS = 40


@dataclass
class _Node:
    """A leaf, a container, or both (TensorFlow has leaves below leaves).

    Attributes:
      cells: texts about the leaf; None if there is none here.
      below: the nodes below, by key.
      leaves: number of leaves here and below.
    """

    cells: tuple[str, ...] | None = None
    below: dict[str, "_Node"] = field(default_factory=dict)
    leaves: int = 0


def of(title: str, rows: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Returns the HTML of a tree. It needs no script and no style sheet.

    Args:
      title: text above the tree.
      rows: name of each leaf, with ``/`` between its keys, and texts to show beside it.
    """
    root = _Node()
    for name, cells in rows[:_LEAVES]:
        node = root
        node.leaves += 1
        for key in name.split("/", _LEVELS):
            node = node.below.setdefault(key, _Node())
            node.leaves += 1
        node.cells = cells
    more = f"<div>and {len(rows) - _LEAVES:,} more leaves</div>" if len(rows) > _LEAVES else ""
    items = "".join(_items(root, {}))
    return (
        f'<details open style="line-height: 1.4"><summary><b>{_text(title)}</b></summary>{_list(items)}{more}</details>'
    )


def _items(node: _Node, known: dict[tuple[object, ...], int]) -> Iterator[str]:
    """Yields the HTML of the nodes below a node.

    Args:
      node: the node.
      known: a number for each form of a subtree that has been met.
    """
    for keys, child in _runs(sorted(node.below.items(), key=_order), known):
        label = keys[0] if len(keys) == 1 else f"{keys[0]}..{keys[-1]}"
        name = f"<code>{_text(label)}</code>"
        alike = f" × {len(keys)}" if len(keys) > 1 else ""
        told = "" if child.cells is None else "  " + _text(" · ".join(filter(None, child.cells)))
        if not child.below:
            yield f"<li>{name}{alike}{told}</li>"
            continue
        size = count(child.leaves, "leaf", "leaves")
        inside = _list("".join(_items(child, known)))
        yield f"<li><details><summary>{name}{alike}{told} ({size})</summary>{inside}</details></li>"


def _runs(
    items: Iterable[tuple[str, _Node]], known: dict[tuple[object, ...], int]
) -> Iterator[tuple[list[str], _Node]]:
    """Groups siblings whose keys are consecutive numbers and whose subtrees are alike."""
    keys: list[str] = []
    last: _Node | None = None
    form = -1
    for key, node in items:
        own = _form(node, known)
        if last is not None and own == form and _is_number(key) and key == str(_number(keys[-1]) + 1):
            keys.append(key)
            continue
        if last is not None:
            yield keys, last
        keys, last, form = [key], node, own
    if last is not None:
        yield keys, last


def _form(node: _Node, known: dict[tuple[object, ...], int]) -> int:
    """Returns a number that is the same for subtrees that are alike."""
    form = (node.cells, *((key, _form(child, known)) for key, child in node.below.items()))
    return known.setdefault(form, len(known))


def _order(item: tuple[str, _Node]) -> tuple[bool, int, str]:
    key, _ = item
    return not _is_number(key), _number(key), key


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 10


def _number(key: str) -> int:
    return int(key) if _is_number(key) else -2


def _list(items: str) -> str:
    return f'<ul style="margin: 0; list-style: none; padding-left: 1.5em">{items}</ul>'


def _text(text: str) -> str:
    return html.escape(printable(text))
