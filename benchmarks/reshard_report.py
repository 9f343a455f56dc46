"""Measurements of moved bytes → tables, a plot, and RESULTS_RESHARD.md."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.reshard_plan import Figures

_MIB = 2**20
_MAX_RATIO = 1.10
_EMPTY = "–"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      name: what it is, in words.
      processes: processes of the job.
      devices: devices of each process.
      saved_as: the layout that is saved.
      restored_as: the layout that is restored; empty if only the save counts.
      counted: "read" or "written".
      by: whether the goal is about the bytes of the whole job ("job") or of the busiest process ("process").
      goal: most bytes, as a multiple of `needed`; None if there is no goal.
      needed: MiB that the job, or each process, needs.
      options: options of jaxckpt. Other contenders do not have them.
    """

    name: str
    processes: int
    devices: int
    saved_as: str
    restored_as: str
    counted: str
    by: str
    goal: float | None
    needed: float
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Results:
    """What was measured.

    Attributes:
      disk: type of the file system.
      plans: plans of simulated jobs.
    """

    def __init__(self, mebibytes: int) -> None:
        """Begins an empty collection, for an array of so many MiB."""
        self.disk = ""
        self.plans: list[Figures] = []
        self._mebibytes = mebibytes
        self._values: defaultdict[tuple[Case, str, str], list[float]] = defaultdict(list)
        self._cases: dict[Case, None] = {}
        self._scale: list[tuple[str, list[Mapping[str, float]]]] = []

    def add(self, case: Case, name: str, found: Sequence[Mapping[str, float]]) -> None:
        """Adds one measurement: what each process took."""
        self._cases[case] = None
        counted = [each[case.counted] / _MIB for each in found]
        self._values[case, name, "job"].append(sum(counted))
        self._values[case, name, "process"].append(max(counted))
        self._values[case, name, "secs"].append(max(each["secs"] for each in found))

    def add_scale(self, what: str, found: Sequence[Mapping[str, float]]) -> None:
        """Adds a measurement of something large."""
        self._scale.append((what, list(found)))

    def value(self, case: Case, name: str, key: str) -> float | None:
        """Returns the median of a quantity, or None if it was not measured."""
        values = self._values.get((case, name, key))
        return median(values) if values else None

    def misses(self) -> list[str]:
        """Returns the goals that jaxckpt misses, in words."""
        found = []
        for case in self._cases:
            value = self.value(case, "jaxckpt", case.by)
            if value is not None and case.goal is not None and value > case.goal * case.needed:
                found.append(f"{case.name}: {value:.1f} MiB, goal {case.goal * case.needed:.1f}")
        found += [f"plan of {plan.name}: {plan.ratio:.2f}" for plan in self.plans if plan.ratio > _MAX_RATIO]
        return found

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        names = list(dict.fromkeys(name for _, name, _ in self._values))
        moved = [["", "needed", "goal", *(f"{name} {what}" for name in names for what in ("job", "busiest", "s"))]]
        for case in self._cases:
            row = [
                case.name,
                f"{case.needed:g}",
                _EMPTY if case.goal is None else f"≤ {case.goal * case.needed:.1f} ({case.by})",
            ]
            for name in names:
                for key, digits in (("job", 1), ("process", 1), ("secs", 2)):
                    value = self.value(case, name, key)
                    row.append(_EMPTY if value is None else f"{value:,.{digits}f}")
            moved.append(row)
        yield f"Bytes moved, MiB (the array has {self._mebibytes})", moved
        plans = [["Llama-8B, plan only", "arrays", "busiest ÷ mean", "idle processes", "mean MiB", "CPU s"]]
        plans += [
            [
                plan.name,
                f"{plan.leaves:,}",
                f"{plan.ratio:.3f}",
                str(plan.idle),
                f"{plan.mean_mib:,.1f}",
                f"{plan.cpu_secs:.3f}",
            ]
            for plan in self.plans
        ]
        yield "Who writes how much, computed", plans
        if self._scale:
            scale = [
                ["", "s", "CPU s, all processes", "peak MiB, most of a process", "read MiB, all", "written MiB, all"]
            ]
            for what, found in self._scale:
                scale.append(
                    [
                        what,
                        f"{max(each['secs'] for each in found):.2f}",
                        f"{sum(each['cpu_secs'] for each in found):.2f}",
                        f"{max(each['peak'] for each in found) / _MIB:,.0f}",
                        f"{sum(each['read'] for each in found) / _MIB:,.1f}",
                        f"{sum(each['written'] for each in found) / _MIB:,.1f}",
                    ]
                )
            yield "Scale", scale

    def text(self) -> str:
        """Returns all tables, for a terminal."""
        return "\n".join(f"\n{title}\n{report.table(table)}" for title, table in self._tables())

    def markdown(self, plot: str) -> str:
        """Returns the content of RESULTS_RESHARD.md.

        Args:
          plot: file name of the plot.
        """
        lines = [
            "# Bytes that jobs move",
            "",
            "Made by `python -m benchmarks.reshard`; what is measured, and how, is in [README.md](README.md).",
            "",
            *(f"* {line}" for line in report.machine()),
            f"* all processes on this machine; {self.disk}",
            "",
            f"![Bytes that the job, or its busiest process, moves]({plot})",
        ]
        for title, table in self._tables():
            lines += ["", f"## {title}", "", *report.markdown_table(table)]
        return "\n".join([*lines, ""])

    def write_plot(self, path: Path) -> None:
        """Draws a bar for each case and contender, beside what is needed. Without Matplotlib nothing is drawn."""
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        names = list(dict.fromkeys(name for _, name, _ in self._values))
        cases = list(self._cases)
        figure, axes = plt.subplots(figsize=(9, 0.62 * len(cases) + 1.2), layout="constrained")
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            places = [place + (number - (len(names) - 1) / 2) * height for place in range(len(cases))]
            values = [(self.value(case, name, case.by) or 0) / case.needed for case in cases]
            bars = axes.barh(places, values, height, label=name)
            axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], padding=2, fontsize=7)
        axes.axvline(1, color="black", linewidth=0.8)
        who = {"job": "the job", "process": "the busiest process"}
        labels = [f"{case.name}\n{case.counted} by {who[case.by]}" for case in cases]
        axes.set_yticks(range(len(cases)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("bytes of files, as a multiple of what is needed")
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=110)
        plt.close(figure)
