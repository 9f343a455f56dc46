"""Measurements of jobs of several processes → tables, goals, and RESULTS_MULTIHOST.md."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks import report

_EMPTY = "–"
_TIMES = (
    ("save s", "save_secs", 1.0, 3),
    ("async save s", "async_secs", 1.0, 3),
    ("restore s", "restore_secs", 1.0, 3),
    ("again s", "again_secs", 1.0, 3),
)
# Of these, processor time and messages are shown too.
_COUNTED = ("save", "restore")
_MEMORY = (("save", "save_peak_mb"), ("async", "async_peak_mb"), ("restore", "restore_peak_mb"))
_MAX_RATIO = 1.3
# Of thousands of small leaves, which cost every process time for each leaf.
_MAX_RATIOS_OF_LEAVES = (("save", "save_secs", 1.5), ("restore", "restore_secs", 2.0), ("blocked", "blocked_secs", 2.0))
_IO_MB = 128.0
_PEER_MB = 64.0
# For meeting the other processes.
_BLOCKED_SLACK_SECS = 0.1


class Results:
    """What was measured.

    Attributes:
      disk: type of the file system.
      failures: what went wrong, a line each.
    """

    def __init__(self, names: Sequence[str], processes: int, gigabytes: float) -> None:
        """Args: the contenders, in the order of the tables; the number of processes; the size of the state."""
        self.disk = ""
        self.failures: list[str] = []
        self._names = list(names)
        self._processes = processes
        self._gigabytes = gigabytes
        self._values: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._memory: dict[tuple[str, float, int], dict[str, float]] = {}

    def add(self, kind: str, name: str, values: dict[str, float]) -> None:
        """Adds one measurement of a contender, with the state ``large`` or ``leaves``."""
        for key, value in values.items():
            self._values[kind, name, key].append(value)

    def add_memory(self, name: str, gigabytes: float, process: int, values: dict[str, float]) -> None:
        """Adds by how much the memory of one process rose."""
        self._memory[name, gigabytes, process] = values

    def _value(self, kind: str, name: str, key: str) -> float | None:
        values = self._values.get((kind, name, key))
        return median(values) if values else None

    def text(self) -> str:
        """Returns all tables, for a terminal."""
        return "\n".join(f"\n{title}\n{report.table(table)}" for title, table in self._tables())

    def markdown(self) -> str:
        """Returns the content of RESULTS_MULTIHOST.md."""
        lines = [
            "# Results with several processes",
            "",
            "Made by `python -m benchmarks.multihost`; what is measured, and how, is in [README.md](README.md).",
            "",
        ]
        lines += [f"* {fact}" for fact in report.machine()]
        lines += [f"* {self._processes} processes on this machine, connected by its loopback interface; {self.disk}"]
        lines += [f"* load average over the last 15 minutes of the run: {os.getloadavg()[2]:.0f}"]
        lines += [f"* failed: {failure}" for failure in self.failures]
        for title, table in self._tables():
            lines += ["", f"## {title}", "", *report.markdown_table(table)]
        return "\n".join([*lines, ""])

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        for kind, title in (("large", f"A state of {self._gigabytes:g} GB"), ("leaves", "A state of small leaves")):
            if any(measured == kind for measured, _, _ in self._values):
                yield title, self._times(kind)
        for gigabytes in dict.fromkeys(size for _, size, _ in self._memory):
            yield f"Memory that a state of {gigabytes:g} GB took besides itself, MB", self._memory_table(gigabytes)
        yield "Goals", self._goals()

    def _times(self, kind: str) -> list[list[str]]:
        rows = [
            [
                "",
                *(cell for heading, *_ in _TIMES for cell in (heading, "× engine")),
                "blocked ms",
                "× engine",
                *(cell for what in _COUNTED for cell in (f"{what} CPU s", "× engine", f"{what} messages")),
            ]
        ]
        for name in self._names:
            if not any((measured, who) == (kind, name) for measured, who, _ in self._values):
                continue
            row = [name]
            for _, key, scale, digits in _TIMES:
                value = self._value(kind, name, key)
                row.append(_EMPTY if value is None else f"{value * scale:,.{digits}f}")
                row.append(self._ratio(kind, name, key))
            blocked = self._value(kind, name, "blocked_secs")
            row.append(_EMPTY if blocked is None else f"{blocked * 1e3:,.1f}")
            row.append(self._ratio(kind, name, "blocked_secs"))
            for what in _COUNTED:
                used = self._value(kind, name, f"{what}_cpu_secs")
                row.append(_EMPTY if used is None else f"{used:,.2f}")
                row.append(self._ratio(kind, name, f"{what}_cpu_secs"))
                messages = self._value(kind, name, f"{what}_messages")
                row.append(_EMPTY if messages is None else f"{messages:,.0f}")
            rows.append(row)
        snapshot = self._value(kind, "snapshot", "snapshot_secs")
        if snapshot is not None:
            rows.append(
                ["copy of a part in memory", *[_EMPTY] * 2 * len(_TIMES), f"{snapshot * 1e3:,.1f}", *[_EMPTY] * 7]
            )
        return rows

    def _ratio(self, kind: str, name: str, key: str) -> str:
        value, engine = self._value(kind, name, key), self._value(kind, "engine", key)
        return _EMPTY if value is None or not engine else f"{value / engine:.2f}"

    def _memory_table(self, gigabytes: float) -> list[list[str]]:
        rows = [["", "process", "its part", *(heading for heading, _ in _MEMORY)]]
        for name in self._names:
            if not any(who == name for who, _, _ in self._memory):
                continue
            writer = _writer(name)
            found = {process: self._memory.get((name, gigabytes, process)) for process in range(self._processes)}
            peers = [values for process, values in found.items() if values is not None and process != writer]
            if (own := found[writer]) is not None:
                rows.append([name, "IO" if peers else "only", *self._memory_cells([own])])
            if peers:
                rows.append([name, "others, most", *self._memory_cells(peers)])
        return rows

    @staticmethod
    def _memory_cells(found: Sequence[dict[str, float]]) -> list[str]:
        return [f"{max(values[key] for values in found):,.0f}" for key in ("part_mb", *(key for _, key in _MEMORY))]

    def _goals(self) -> list[list[str]]:
        rows = [["goal", "measured", "limit", ""]]
        for name in self._names:
            if not (name.startswith("io-") or name == "shared"):
                continue
            for what in ("save", "restore"):
                value, engine = (self._value("large", who, f"{what}_secs") for who in (name, "engine"))
                if value and engine:
                    rows.append(_goal(f"{name}: {what}, × engine", value / engine, _MAX_RATIO, 2))
            blocked, copy = (
                self._value("large", name, "blocked_secs"),
                self._value("large", "snapshot", "snapshot_secs"),
            )
            if blocked and copy:
                rows.append(_goal(f"{name}: blocked, ms", blocked * 1e3, (copy + _BLOCKED_SLACK_SECS) * 1e3, 0))
            for what, key, limit in _MAX_RATIOS_OF_LEAVES:
                value, engine = self._value("leaves", name, key), self._value("leaves", "engine", key)
                if value and engine:
                    rows.append(_goal(f"{name}: {what} of small leaves, × engine", value / engine, limit, 2))
            rows += self._memory_goals(name)
        return rows

    def _memory_goals(self, name: str) -> Iterator[list[str]]:
        for gigabytes in dict.fromkeys(size for who, size, _ in self._memory if who == name):
            for what, key in _MEMORY:
                for side in ("IO process", "others"):
                    found = [
                        values
                        for (who, size, process), values in self._memory.items()
                        if (who, size) == (name, gigabytes) and (process == _writer(name)) == (side == "IO process")
                    ]
                    own = max(values["part_mb"] for values in found)
                    limit = {"IO process": own + _IO_MB, "others": {"save": 0.0}.get(what, own) + _PEER_MB}[side]
                    value = max(values[key] for values in found)
                    yield _goal(f"{name}: {what} of {gigabytes:g} GB, {side}, MB", value, limit, 0)


def _writer(name: str) -> int:
    return int(name.removeprefix("io-")) if name.startswith("io-") else 0


def _goal(what: str, value: float, limit: float, digits: int) -> list[str]:
    return [what, f"{value:,.{digits}f}", f"{limit:,.{digits}f}", "" if value <= limit else "missed"]
