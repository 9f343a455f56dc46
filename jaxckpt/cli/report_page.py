"""The page of ``jaxckpt report --html``: a timeline of the saves, their times and sizes, and the metrics of their checkpoints."""

import datetime
import os
from collections.abc import Sequence
from typing import Any

from jaxckpt._lib.output import human_bytes, human_seconds
from jaxckpt.cli.listed import Listed, metrics_of, versions
from jaxckpt.cli.page import Section, Table, check, graphs, safe, write_page
from jaxckpt.storage.item.account import Account

__all__ = ["check", "write"]

_WRITTEN, _BLOCKED, _WAITED, _LINE = "#9cc1f7", "#e8710a", "#b3261e", "#2a6fdb"


def write(path: str, directory: str, headline: str, saves: Sequence[Listed]) -> None:
    """Writes the page.

    Args:
      path: path of the page.
      directory: the directory of the checkpoints.
      headline: the report in a sentence.
      saves: the checkpoints, oldest first.

    Raises:
      ImportError: plotly is not installed.
      OSError: the page cannot be written.
    """
    known = [(checkpoint, checkpoint.save) for checkpoint in saves if checkpoint.save is not None]
    sections = []
    if known:
        sections = [
            Section(
                "Timeline",
                "When each checkpoint was written, and when its save blocked the program. The program ran on in between, and while a "
                "save was only written. A triangle marks where a save began.",
                [_timeline(known)],
            ),
            Section(
                "How long each save took",
                "Seconds, on a scale in which each step is ten times the one before.",
                [_durations(known)],
            ),
            Section("Size of the arrays", figures=[_sizes(known)]),
        ]
    names = sorted(
        {name for checkpoint in saves for name, value in (checkpoint.metrics or {}).items() if _plain(value)}
    )
    if names:
        sections.append(
            Section("Metrics", "As the program gave them to save().", [_metric(saves, name) for name in names])
        )
    sections.append(Section("All saves", tables=[_table(saves)]))
    write_page(path, f"Saves in {directory}", headline, sections)


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(checkpoint: Listed) -> str:
    return safe(os.path.basename(checkpoint.path))


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds)


def _layout(figure: Any, height: int, **more: Any) -> Any:
    figure.update_layout(
        height=height,
        template="plotly_white",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        **more,
    )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(automargin=True)
    return figure


def _timeline(known: Sequence[tuple[Listed, Account]]) -> Any:
    go = graphs()
    names = [_name(checkpoint) for checkpoint, _ in known]
    figure = go.Figure()
    parts = (
        ("being written", _WRITTEN, [(0.0, save.written_secs) for _, save in known]),
        ("program blocked", _BLOCKED, [(save.waited_secs, save.blocked_secs) for _, save in known]),
        ("blocked, waiting for the save before", _WAITED, [(0.0, save.waited_secs) for _, save in known]),
    )
    for title, color, spans in parts:
        figure.add_bar(
            name=title,
            orientation="h",
            y=names,
            base=[_moment(save.began + first) for (_, save), (first, _) in zip(known, spans, strict=True)],
            x=[1000 * (last - first) for first, last in spans],
            marker_color=color,
            text=[human_seconds(last - first) for first, last in spans],
            textposition="none",
            hovertemplate="%{y}: %{text}<extra>" + title + "</extra>",
        )
    # A save of a second cannot be seen in a day.
    figure.add_scatter(
        name="save began",
        x=[_moment(save.began) for _, save in known],
        y=names,
        mode="markers",
        marker={"symbol": "triangle-right", "size": 9, "color": _LINE},
        hovertemplate="%{y} began at %{x}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", title="checkpoint")
    figure.update_xaxes(type="date", title="time on this machine's clock")
    return _layout(figure, min(2400, 140 + 24 * len(known)), barmode="overlay")


def _durations(known: Sequence[tuple[Listed, Account]]) -> Any:
    go = graphs()
    names = [_name(checkpoint) for checkpoint, _ in known]
    figure = go.Figure()
    for title, color, symbol, values in (
        ("until written", _LINE, "circle", [save.written_secs for _, save in known]),
        ("program blocked", _BLOCKED, "triangle-down", [save.blocked_secs for _, save in known]),
    ):
        # Points and not bars: a bar on a logarithmic scale has no beginning.
        figure.add_scatter(
            name=title,
            x=names,
            y=values,
            mode="markers+text" if len(known) <= 16 else "markers",
            marker={"color": color, "symbol": symbol, "size": 11},
            text=[human_seconds(value) for value in values],
            textposition="top center",
            cliponaxis=False,
            hovertemplate="%{x}: %{text}<extra>" + title + "</extra>",
        )
    figure.update_xaxes(type="category", title="checkpoint")
    figure.update_yaxes(type="log", title="seconds", dtick=1)
    return _layout(figure, 380)


def _sizes(known: Sequence[tuple[Listed, Account]]) -> Any:
    go = graphs()
    sizes = [save.bytes for _, save in known]
    power = min(4, max(0, (max(sizes).bit_length() - 1) // 10))
    figure = go.Figure()
    figure.add_bar(
        x=[_name(checkpoint) for checkpoint, _ in known],
        y=[size / 1024**power for size in sizes],
        marker_color=_LINE,
        text=[human_bytes(size) for size in sizes],
        textposition="outside" if len(known) <= 16 else "none",
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    figure.update_xaxes(type="category", title="checkpoint")
    figure.update_yaxes(title=("bytes", "KiB", "MiB", "GiB", "TiB")[power], rangemode="tozero")
    return _layout(figure, 300, showlegend=False)


def _metric(saves: Sequence[Listed], name: str) -> Any:
    go = graphs()
    points = [
        (checkpoint, checkpoint.metrics[name])
        for checkpoint in saves
        if checkpoint.metrics is not None and _plain(checkpoint.metrics.get(name))
    ]
    has_steps = all(checkpoint.step is not None for checkpoint, _ in points)
    figure = go.Figure()
    figure.add_scatter(
        x=[checkpoint.step if has_steps else _name(checkpoint) for checkpoint, _ in points],
        y=[value for _, value in points],
        text=[_name(checkpoint) for checkpoint, _ in points],
        mode="lines+markers",
        line_color=_LINE,
        hovertemplate="%{text}: %{y}<extra></extra>",
    )
    figure.update_xaxes(title="step" if has_steps else "checkpoint")
    figure.update_yaxes(title=safe(name))
    return _layout(figure, 300, width=580, showlegend=False)


def _table(saves: Sequence[Listed]) -> Table:
    rows = []
    for checkpoint in saves:
        save = checkpoint.save
        rows.append(
            [
                os.path.basename(checkpoint.path),
                "" if checkpoint.step is None else str(checkpoint.step),
                _moment(checkpoint.saved if save is None else save.began).isoformat(" ", "seconds"),
                human_bytes(checkpoint.bytes if save is None else save.bytes),
                *(
                    ["?"] * 3
                    if save is None
                    else map(human_seconds, (save.written_secs, save.blocked_secs, save.waited_secs))
                ),
                "?" if save is None else "async" if save.asynchronous else "sync",
                "?" if save is None else str(save.processes),
                " ".join(metrics_of(checkpoint)),
                "" if save is None else versions(save),
            ]
        )
    header = [
        "checkpoint",
        "step",
        "saved at",
        "arrays",
        "written",
        "blocked",
        "waited",
        "kind",
        "processes",
        "metrics",
        "saved with",
    ]
    return Table(header, rows, right=(1, 3, 4, 5, 6, 7, 8))
