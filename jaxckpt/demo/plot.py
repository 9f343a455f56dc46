"""Draws the picture of a run: losses, and the time of every step with marks for the saves."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxckpt._lib.output import human_millis
from jaxckpt.demo.loop import Run, StepTimes
from jaxckpt.demo.saves import SaveTimes, median

_BLUE, _ORANGE, _GREY = "#3465a4", "#e8710a", "#777777"


def draw(run: Run, losses: tuple[Sequence[int], Sequence[float]], path: str) -> None:
    """Draws the losses of all runs, and the step times of this one.

    Args:
      run: this run, which trained at least one step.
      losses: steps and losses of this run and of earlier runs.
      path: path of the PNG file, which is replaced.
    """
    # A Figure without pyplot does not need a display, and leaves no global state.
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 1.4))
    figure.suptitle("jaxckpt demo: training goes on while checkpoints are written", fontsize=13, fontweight="bold")
    _draw_losses(above, run, losses)
    _draw_steps(below, run)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, format="png")


def _draw_losses(axes: Axes, run: Run, losses: tuple[Sequence[int], Sequence[float]]) -> None:
    steps, values = losses
    axes.semilogy(steps, values, color=_BLUE, linewidth=0.8)
    axes.set_title(
        f"Loss of all runs; test accuracy {run.accuracy:.1%} after step {run.last_step:,}", fontsize=10, loc="left"
    )
    axes.set_ylabel("training loss (log scale)")
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.grid(alpha=0.3)
    if run.restored is not None:
        axes.axvline(run.first_step, color=_GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"resumed after step {run.first_step:,} ",
            (run.first_step, 0.95),
            xycoords=("data", "axes fraction"),
            ha="right" if run.first_step * 2 > run.last_step else "left",
            va="top",
            fontsize=9,
            color=_GREY,
        )


def _draw_steps(axes: Axes, run: Run) -> None:
    steps = [step.step for step in run.steps]
    secs = [step.secs for step in run.steps]
    axes.semilogy(
        steps, _millis(secs), ".", color=_BLUE, markersize=3, label=f"a training step (median {_median(secs)})"
    )
    for index, save in enumerate(run.saves):
        label = "a checkpoint is being written" if index == 0 else None
        axes.axvspan(save.number, _step_at(run.steps, save), color=_ORANGE, alpha=0.18, linewidth=0, label=label)
    blocked = {save.number: save.blocked_secs for save in run.saves if save.blocked_secs is not None}
    if blocked:
        label = f"training blocked by a save (median {_median(blocked.values())})"
        style = {"color": _ORANGE, "markeredgecolor": "white", "markersize": 9}
        axes.semilogy(list(blocked), _millis(blocked.values()), "v", label=label, **style)
    written = {save.number: save.written_secs for save in run.saves if save.written_secs is not None}
    if written:
        label = f"until the checkpoint was safely on disk (median {_median(written.values())})"
        axes.semilogy(
            list(written),
            _millis(written.values()),
            "_",
            color=_ORANGE,
            markersize=14,
            markeredgewidth=2.5,
            label=label,
        )
    axes.annotate(
        "the first step compiles",
        (steps[0], secs[0] * 1000),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=_GREY,
    )
    axes.set_title("Times of this run", fontsize=10, loc="left")
    axes.set_xlabel("training step")
    axes.set_ylabel("milliseconds (log scale)")
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.grid(alpha=0.3)


def _step_at(steps: Sequence[StepTimes], save: SaveTimes) -> int:
    """Returns the step that was running when the checkpoint of `save` was safely on disk."""
    end = save.began + (save.written_secs or save.blocked_secs or 0.0)
    return max((step.step for step in steps if step.began <= end), default=save.number)


def _millis(secs: Iterable[float]) -> list[float]:
    return [value * 1000 for value in secs]


def _median(secs: Iterable[float]) -> str:
    return human_millis(median(secs) or 0.0)


def _plain_number(value: float, _: object) -> str:
    return f"{value:g}"
