"""The page of ``jaxckpt inspect --html``: sizes as a treemap, statistics, and the leaves. `layout_pictures` has the rest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxckpt._lib.output import count, human_bytes, human_count
from jaxckpt.cli import layout_pictures
from jaxckpt.cli.folding import Node, paths, shown
from jaxckpt.cli.leaf_text import combined, number_text, saved_as
from jaxckpt.cli.page import FONT, Section, Table, graphs, safe, short, write_page
from jaxckpt.cli.statistics import Statistics
from jaxckpt.leaf_kinds.described import LeafMetadata

_COLOURS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#b279a2",
    "#72b7b2",
    "#e45756",
    "#eeca3b",
    "#9d755d",
    "#bab0ac",
    "#ff9da6",
)
_BRANCH = "#eef1f6"
# Most rows of the picture of statistics.
_MOST_ROWS = 120
# Nodes up to which a treemap is open at first.
_MOST_NODES = 600


def write(
    path: str,
    checkpoint: str,
    about: str,
    leaves: Sequence[LeafMetadata],
    root: Node,
    statistics: Mapping[str, Statistics],
) -> None:
    """Writes the page.

    Args:
      path: path of the page.
      checkpoint: path of the checkpoint.
      about: a line about it.
      leaves: its leaves.
      root: the tree of the leaves.
      statistics: the statistics of arrays, by name.
    """
    sections = [
        Section(
            "Bytes",
            "The area of a box is its size in the checkpoint, the colour its dtype. Click a branch to open it, and the bar on top to go "
            "back.",
            [_treemap(root, statistics)],
        )
    ]
    rows = [(node, name) for node, name in paths(root) if node.leaves]
    known = [(node, name, found) for node, name in rows if (found := combined(node, statistics)) is not None]
    bad = [name for _, name, found in known if found.nans or found.infs]
    if known:
        text = "Each line reaches from the root mean square of an array (dot) to its largest magnitude (bar), on a logarithmic axis."
        if len(known) > _MOST_ROWS:
            text += f" The {_MOST_ROWS} largest arrays; the table has all of them."
        warning = f" NaN or infinite numbers are in: {', '.join(bad)}." if bad else " No number is NaN or infinite."
        largest = sorted(known, key=lambda row: -row[0].nbytes)[:_MOST_ROWS]
        drawn = [row for row in known if any(row[0] is each[0] for each in largest)]
        sections.append(Section("Statistics", text + warning, [_ranges(drawn)], [_statistics_table(known)]))
    sections += layout_pictures.sections(leaves)
    sections.append(Section("Leaves", tables=[_tree_table(root), _leaf_table(leaves)]))
    write_page(path, f"inspect {checkpoint}", about, sections)


def _treemap(root: Node, statistics: Mapping[str, Statistics]) -> Any:
    go = graphs()
    ids, labels, above, values, colours, texts = ["root"], ["all leaves"], [""], [root.nbytes], [_BRANCH], [""]
    dtypes = [str(node.leaf.dtype) for node, _ in paths(root) if node.leaf is not None]
    colour_of = {
        name: _COLOURS[index % len(_COLOURS)]
        for index, name in enumerate(dict.fromkeys(sorted(dtypes, key=dtypes.count)[::-1]))
    }
    id_of = {id(root): "root"}
    parents = {id(child): id(node) for node in [root, *[node for node, _ in paths(root)]] for child in node.children}
    for number, (node, name) in enumerate(paths(root)):
        key = id_of[id(node)] = f"n{number}"
        ids.append(key)
        labels.append(safe(node.name))
        above.append(id_of[parents[id(node)]])
        values.append(node.nbytes)
        colours.append(_BRANCH if node.leaf is None else colour_of[str(node.leaf.dtype)])
        texts.append(_hover(node, name, statistics))
    figure = go.Figure(
        go.Treemap(
            ids=ids,
            labels=labels,
            parents=above,
            values=values,
            branchvalues="total",
            marker={"colors": colours, "line": {"width": 1, "color": "white"}},
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            texttemplate="%{label}<br>%{percentRoot:.1%}",
            maxdepth=-1 if len(ids) <= _MOST_NODES else 5,
            tiling={"pad": 2},
            pathbar={"visible": True, "thickness": 24},
        )
    )
    # The legend: a treemap has none of its own.
    for name, colour in colour_of.items():
        if name != "None":
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                marker={"color": colour, "size": 11},
                name=safe(name),
            )
    hidden = {"visible": False, "fixedrange": True}
    figure.update_layout(
        height=560,
        margin={"l": 0, "r": 0, "t": 30, "b": 0},
        font=FONT,
        xaxis=hidden,
        yaxis=hidden,
        plot_bgcolor="white",
        showlegend=True,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    return figure


def _hover(node: Node, name: str, statistics: Mapping[str, Statistics]) -> str:
    lines = [f"<b>{safe(name)}</b>"]
    if node.leaf is not None:
        lines.append(safe(f"{node.leaf.dtype}{list(node.leaf.shape)}, {saved_as(node.leaf)}"))
    times = f" in {node.folded:,} equal ones" if node.folded > 1 else ""
    lines.append(safe(f"{human_bytes(node.nbytes)}, {human_count(node.parameters)} parameters{times}"))
    found = combined(node, statistics)
    if found is not None:
        numbers = ((word, getattr(found, word)) for word in ("min", "max", "mean", "rms"))
        lines.append(safe(", ".join(f"{word} {number_text(value)}" for word, value in numbers)))
        if found.nans or found.infs:
            lines.append(safe(f"{found.nans:,} NaN, {found.infs:,} infinite"))
    return "<br>".join(lines)


def _ranges(rows: Sequence[tuple[Node, str, Statistics]]) -> Any:
    go = graphs()
    names = [short(name) for _, name, _ in rows]
    labels = [safe(name) for name in names]
    rms = [found.rms if found.rms > 0 else None for _, _, found in rows]
    most = [max(abs(found.min), abs(found.max)) if found.finite else math.nan for _, _, found in rows]
    bad = [bool(found.nans or found.infs) for _, _, found in rows]
    places = list(range(len(rows)))
    lines_x: list[float | None] = []
    lines_y: list[int | None] = []
    for place, low, high in zip(places, rms, most, strict=True):
        if low is not None:
            lines_x += [low, high, None]
            lines_y += [place, place, None]
    hover = [_hover(node, name, {leaf.name: found for leaf in node.leaves[:1]}) for node, name, found in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=lines_x, y=lines_y, mode="lines", line={"color": "#b9c4d6", "width": 2}, hoverinfo="skip", showlegend=False
    )
    for title, values, symbol in (("root mean square", rms, "circle"), ("largest magnitude", most, "line-ns")):
        figure.add_scatter(
            x=[value if value and math.isfinite(value) else None for value in values],
            y=places,
            mode="markers",
            name=title,
            marker={
                "size": 9,
                "symbol": symbol,
                "color": ["#d92d20" if each else "#2a6fdb" for each in bad],
                "line": {"width": 2, "color": ["#d92d20" if each else "#2a6fdb" for each in bad]},
            },
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_xaxes(
        title="magnitude",
        type="log",
        gridcolor="#e4e7ec",
        side="top",
        exponentformat="power",
        dtick=_decades(rms, most),
    )
    figure.update_yaxes(
        title="array",
        tickvals=places,
        ticktext=labels,
        range=[len(rows) - 0.4, -0.6],
        gridcolor="#f2f4f7",
        zeroline=False,
    )
    figure.update_layout(
        height=90 + 22 * len(rows),
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        font=FONT,
        plot_bgcolor="white",
        legend={"orientation": "h", "y": 0, "yanchor": "top", "x": 0},
    )
    figure.update_yaxes(automargin=True)
    return figure


def _decades(*numbers: Sequence[float | None]) -> int:
    """Returns how many powers of ten lie between two lines of an axis."""
    known = [math.log10(value) for values in numbers for value in values if value and math.isfinite(value)]
    return max(1, math.ceil((max(known) - min(known)) / 12)) if known else 1


def _statistics_table(rows: Sequence[tuple[Node, str, Statistics]]) -> Table:
    cells = [
        (
            name,
            "" if node.leaf is None else f"{node.leaf.dtype}{list(node.leaf.shape)}",
            *map(number_text, (found.min, found.max, found.mean, found.rms)),
            f"{found.nans:,}",
            f"{found.infs:,}",
        )
        for node, name, found in rows
    ]
    header = ("array", "type", "min", "max", "mean", "rms", "NaN", "infinite")
    return Table(header, cells, range(2, 8), f"statistics of {count(len(rows), 'array')}", is_open=False)


def _tree_table(root: Node) -> Table:
    rows = []
    for node, level, name in shown(root):
        leaf = node.leaf
        shape, dtype = ("", "") if leaf is None or leaf.dtype is None else (str(leaf.shape), str(leaf.dtype))
        parameters = human_count(node.parameters) if node.parameters else ""
        about = "" if leaf is None else saved_as(leaf)
        rows.append(("  " * (level - 1) + name, shape, dtype, parameters, human_bytes(node.nbytes), about))
    return Table(("leaf", "shape", "dtype", "params", "bytes", "saved as"), rows, (3, 4), "the tree", is_open=True)


def _leaf_table(leaves: Sequence[LeafMetadata]) -> Table:
    rows = [(leaf.name, str(leaf.shape), str(leaf.dtype or ""), f"{leaf.nbytes:,}", saved_as(leaf)) for leaf in leaves]
    title = f"{count(len(leaves), 'leaf', 'leaves')}, one by one"
    return Table(("name", "shape", "dtype", "bytes", "saved as"), rows, (3,), title, is_open=False)
