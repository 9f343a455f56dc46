"""Measurements → tables, a plot, and RESULTS.md."""

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.states import Facts

_SERIES = defaultdict[tuple[str, str, str, str], list[float]]
_EMPTY = "–"
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}

# Heading, key, digits, what to divide by to compare with `raw`, or None.
_COLUMNS: Sequence[tuple[str, str, int, str | None]] = (
    ("save s", "save_secs", 3, "save_secs"),
    ("async save s", "async_secs", 3, None),
    ("blocked ms", "blocked_secs", 1, None),
    ("restore s", "restore_secs", 3, "restore_secs"),
    ("save peak MB", "save_peak_mb", 0, None),
    ("async peak MB", "async_peak_mb", 0, None),
    ("restore peak MB", "restore_peak_mb", 0, None),
    ("disk MB", "disk_mb", 1, None),
)
_STEPS: Sequence[tuple[str, str]] = (
    ("p50 alone ms", "p50_alone_ms"),
    ("p50 saving ms", "p50_saving_ms"),
    ("p99 alone ms", "p99_alone_ms"),
    ("p99 saving ms", "p99_saving_ms"),
    ("save s while training", "saving_secs"),
    ("lost ms", "lost_ms"),
)


def positive(text: str) -> int:
    """Returns a number that is given on the command line. Raises argparse.ArgumentTypeError unless it is positive."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


class Results:
    """What was measured, by file system, state, contender and quantity."""

    def __init__(
        self, contenders: Sequence[tuple[str, str, bool]], missing: Sequence[str], states: dict[str, Facts]
    ) -> None:
        """Begins an empty collection.

        Args:
          contenders: name, version, and whether restore detects damage, in the order of the tables.
          missing: names of those that are not installed.
          states: the states and their sizes.
        """
        self.contenders = contenders
        self.missing = missing
        self.states = states
        self.failures: list[str] = []
        self._values: _SERIES = defaultdict(list)

    def add(self, disk: str, state: str, contender: str, values: dict[str, float]) -> None:
        """Adds one measurement."""
        for key, value in values.items():
            self._values[disk, state, contender, key].append(value)

    def value(self, disk: str, state: str, contender: str, key: str) -> float | None:
        """Returns the median of a quantity, or None if it was not measured."""
        values = self._values.get((disk, state, contender, key))
        return median(values) if values else None

    @property
    def disks(self) -> list[str]:
        """The file systems, in the order of their first measurement."""
        return list(dict.fromkeys(disk for disk, *_ in self._values))

    def text(self) -> str:
        """Returns all tables, for a terminal."""
        return "\n".join(f"\n{title}\n{_plain(table)}" for title, table in self._tables())

    def markdown(self, plot: str) -> str:
        """Returns the content of RESULTS.md.

        Args:
          plot: file name of the plot.
        """
        lines = [
            "# Results",
            "",
            "Made by `python -m benchmarks.peers`; what is measured, and how, is in [README.md](README.md).",
            "",
        ]
        lines += [f"* {fact}" for fact in machine()]
        lines += [f"* {name} {version}" for name, version, _ in self.contenders if version]
        lines += [f"* left out, not installed: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"* failed: {failure}" for failure in self.failures]
        lines += ["", f"![Seconds to save and restore, and milliseconds that the caller was blocked]({plot})", ""]
        for title, table in self._tables():
            lines += [f"## {title}", "", *_markdown(table), ""]
        return "\n".join(lines)

    def _tables(self) -> Iterable[tuple[str, list[list[str]]]]:
        for disk in self.disks:
            for state, facts in self.states.items():
                title = f"{state} on {disk}: {facts.leaves:,} leaves, {facts.nbytes / 1e6:,.2f} MB"
                yield title, self._table(disk, state)
                steps = self._steps_table(disk, state)
                if len(steps) > 1:
                    yield f"Training steps while {state} is saved on {disk}", steps

    def _table(self, disk: str, state: str) -> list[list[str]]:
        header = [""]
        for heading, _, _, base in _COLUMNS:
            header += [heading] + ([f"× raw {heading.split()[0]}"] if base else [])
        rows = [[*header, "detects damage"]]
        for name, _, verifies in self.contenders:
            row = [name]
            for _, key, digits, base in _COLUMNS:
                value = None if (name, key) == ("raw", "blocked_secs") else self.value(disk, state, name, key)
                scale = 1e3 if key == "blocked_secs" else 1
                row.append(_EMPTY if value is None else f"{value * scale:,.{digits}f}")
                if base is not None:
                    raw = self.value(disk, state, "raw", base)
                    row.append(_EMPTY if value is None or not raw else f"{value / raw:.2f}")
            rows.append([*row, _EMPTY if name in ("raw", "memcpy") else "yes" if verifies else "no"])
        return rows

    def _steps_table(self, disk: str, state: str) -> list[list[str]]:
        rows = [["", *(heading for heading, _ in _STEPS)]]
        for name, _, _ in self.contenders:
            values = [self.value(disk, state, name, key) for _, key in _STEPS]
            if any(value is not None for value in values):
                rows.append([name, *(_EMPTY if value is None else f"{value:.1f}" for value in values)])
        return rows

    def write_plot(self, path: Path) -> None:
        """Draws a row of panels for every state and file system. Without Matplotlib nothing is drawn."""
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = [(disk, state) for disk in self.disks for state in self.states]
        if not rows:
            return
        panels = (
            ("save_secs", "save until committed (s)", 1.0),
            ("restore_secs", "restore (s)", 1.0),
            ("blocked_secs", "caller blocked (ms)", 1e3),
        )
        height = 0.62 + 0.235 * len(self.contenders)
        figure, axes = plt.subplots(
            len(rows), len(panels), figsize=(12, height * len(rows) + 0.4), squeeze=False, layout="constrained"
        )
        for line, (disk, state) in zip(axes, rows, strict=True):
            for axis, (key, label, scale) in zip(line, panels, strict=True):
                self._draw(axis, disk, state, key, scale)
                axis.set_xlabel(label, fontsize=9)
            line[0].set_title(f"{state} on {disk}", loc="left", fontweight="bold", fontsize=11)
        figure.savefig(path, dpi=130)
        plt.close(figure)

    def _draw(self, axis: Any, disk: str, state: str, key: str, scale: float) -> None:
        """Draws bars of medians, with a line from the smallest to the largest value, and raw as a dashed line."""
        shown = [
            (name, values) for name, _, _ in self.contenders if (values := self._values.get((disk, state, name, key)))
        ]
        shown = [(name, values) for name, values in shown if not (name == "raw" and key == "blocked_secs")]
        shown.reverse()
        for position, (name, values) in enumerate(shown):
            middle = median(values) * scale
            color = "#d1495b" if name == "jaxckpt" else "#9aa5b1" if name in ("raw", "memcpy") else "#4a7fb5"
            axis.barh(position, middle, color=color, height=0.68)
            axis.plot([min(values) * scale, max(values) * scale], [position] * 2, color="#222222", linewidth=1)
            end = max(max(values) * scale, middle)
            axis.annotate(
                _number(middle), (end, position), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=_BOX
            )
        axis.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=9)
        raw = self.value(disk, state, "raw", key)
        if raw is not None and key != "blocked_secs":
            axis.axvline(raw * scale, color="#5f6b76", linestyle="--", linewidth=0.9, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", labelsize=8)
        axis.margins(x=0.14)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _plain(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return "\n".join(
        "  ".join(a(cell, width) for a, cell, width in zip(align, row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * 1 + "|" + "---:|" * (len(rows[0]) - 1), *lines[1:]]


def table(rows: list[list[str]]) -> str:
    """Returns rows of cells as aligned text; the first row is the heading."""
    return _plain(rows)


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table; the first row is the heading."""
    return _markdown(rows)


def filesystem(directory: str) -> str:
    """Returns the type of the file system of a directory, such as ext4 or tmpfs."""
    best, kind = "", "disk"
    real = os.path.realpath(directory)
    try:
        with open("/proc/mounts", encoding="utf-8") as file:
            for line in file:
                _, point, found, *_ = line.split()
                if len(point) > len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                    best, kind = point, found
    except OSError:
        pass
    return kind


def remove(path: str) -> None:
    """Removes a file or a directory."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def machine() -> list[str]:
    """Returns the facts of this machine that explain numbers; nothing that identifies it."""
    import jax

    facts = [
        f"{os.cpu_count()} cores{_processor()}",
        f"{_memory_gib():.0f} GiB of memory",
        f"{platform.system()} {platform.release().split('-')[0]}",
    ]
    facts.append(f"Python {platform.python_version()}, JAX {jax.__version__} on {jax.default_backend()}")
    packages = ("orbax-checkpoint", "tensorstore", "numpy")
    facts.append(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((f" ({line.partition(':')[2].strip()})" for line in file if line.startswith("model name")), "")
    except OSError:
        return ""


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
