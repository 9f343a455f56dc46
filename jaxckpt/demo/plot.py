"""Draws the picture of a run: when it trained, when a save blocked it and when checkpoints were written; step times; losses."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxckpt._lib.output import count, human_millis, human_seconds
from jaxckpt.demo.loop import Run, StepTimes
from jaxckpt.demo.saves import median

_BLUE, _LIGHT, _ORANGE, _GREY = "#3465a4", "#f6c79b", "#d9480f", "#777777"
# The lanes of the timeline, from the bottom: their names and heights.
_LANES = ("writing", "blocked", "training")
_HEIGHT = 0.5
# The first steps compile, if they take so many times as long as most.
_COMPILES = 20


def draw(run: Run, losses: tuple[Sequence[int], Sequence[float]], path: str) -> None:
    """Draws this run on an axis of time, and the losses of all runs.

    Args:
      run: this run, which trained at least one step.
      losses: steps and losses of this run and of earlier runs.
      path: path of the PNG file, which is replaced.
    """
    # A Figure without pyplot does not need a display, and leaves no global state.
    figure = Figure(figsize=(10, 9), dpi=120, layout="constrained")
    lanes, times, below = figure.subplots(3, 1, height_ratios=(1.1, 1.2, 1))
    figure.suptitle(headline(run), fontsize=15, fontweight="bold")
    _draw_lanes(lanes, run)
    _draw_steps(times, run)
    times.sharex(lanes)
    _draw_losses(below, run, losses)
    figure.savefig(path, format="png")


def headline(run: Run) -> str:
    """Returns what the picture shows, in a sentence."""
    blocked = sum(save.blocked_secs or 0.0 for save in run.saves)
    if not run.saves:
        return f"{human_seconds(_end(run) - _begin(run))} of training without a save"
    return f"{count(len(run.saves), 'save')} blocked training for {human_seconds(blocked)} of {human_seconds(_end(run) - _begin(run))}"


def _trained(run: Run) -> Sequence[StepTimes]:
    """Returns the steps without those at the beginning that compile, which say nothing about saves."""
    usual = median(step.secs for step in run.steps) or 0.0
    first = next((index for index, step in enumerate(run.steps) if step.secs <= _COMPILES * usual), 0)
    return run.steps[first:]


def _begin(run: Run) -> float:
    return _trained(run)[0].began


def _end(run: Run) -> float:
    """Returns when the last step, and the last save that blocked the training, ended."""
    ends = [step.began + step.secs for step in run.steps]
    return max(ends + [save.began + (save.blocked_secs or 0.0) for save in run.saves])


def _draw_lanes(axes: Axes, run: Run) -> None:
    begin = _begin(run)
    writing = [(save.began - begin, save.written_secs) for save in run.saves if save.written_secs is not None]
    blocked = [(save.began - begin, save.blocked_secs) for save in run.saves if save.blocked_secs is not None]
    steps = [(step.began - begin, step.secs) for step in _trained(run)]
    compiled = run.steps[: len(run.steps) - len(steps)]
    axes.broken_barh(steps, (2 - _HEIGHT / 2, _HEIGHT), color=_BLUE)
    # With an edge: a bar of a millisecond is narrower than a pixel.
    axes.broken_barh(blocked, (1 - _HEIGHT / 2, _HEIGHT), facecolor=_ORANGE, edgecolor=_ORANGE, linewidth=1.2)
    axes.broken_barh(writing, (0 - _HEIGHT / 2, _HEIGHT), facecolor=_LIGHT, edgecolor=_ORANGE, linewidth=0.6)
    sums = (
        _total(writing, "a save was being written"),
        _total(blocked, "training stood still for a save"),
        _total(steps, f"{count(len(steps), 'step')} of training")
        + (f" (after {count(len(compiled), 'step')} that compiled)" if compiled else ""),
    )
    axes.set_yticks(range(len(_LANES)), _LANES, fontsize=11)
    for lane, text in enumerate(sums):
        axes.text(
            0.004, lane + _HEIGHT / 2 + 0.09, text, fontsize=8.5, color=_GREY, transform=axes.get_yaxis_transform()
        )
    axes.set_ylim(-0.5, len(_LANES) - 0.3)
    axes.set_title("Training goes on while checkpoints are written", fontsize=11, loc="left")
    axes.tick_params(labelbottom=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _total(spans: Sequence[tuple[float, float]], what: str) -> str:
    return f"{what}: {human_seconds(sum(secs for _, secs in spans))} in all"


def _draw_steps(axes: Axes, run: Run) -> None:
    begin = _begin(run)
    steps = _trained(run)
    secs = [step.secs for step in steps]
    for index, save in enumerate(run.saves):
        label = "a checkpoint is being written" if index == 0 else None
        began, took = save.began - begin, save.written_secs or save.blocked_secs or 0.0
        axes.axvspan(began, began + took, color=_LIGHT, alpha=0.6, linewidth=0, label=label)
    label = f"a training step (median {_median(secs)})"
    axes.semilogy([step.began - begin for step in steps], _millis(secs), ".", color=_BLUE, markersize=3, label=label)
    blocked = {save.began - begin: save.blocked_secs for save in run.saves if save.blocked_secs is not None}
    if blocked:
        label = f"training blocked by a save (median {_median(blocked.values())})"
        style = {"color": _ORANGE, "markeredgecolor": "white", "markersize": 9}
        axes.semilogy(list(blocked), _millis(blocked.values()), "v", label=label, **style)
    written = {save.began - begin: save.written_secs for save in run.saves if save.written_secs is not None}
    if written:
        label = f"until the checkpoint was safely on disk (median {_median(written.values())})"
        style = {"color": _ORANGE, "markersize": 14, "markeredgewidth": 2.5}
        axes.semilogy(list(written), _millis(written.values()), "_", label=label, **style)
    axes.set_title("How long each of them took", fontsize=11, loc="left")
    axes.set_xlabel("seconds")
    axes.set_ylabel("milliseconds (log scale)")
    axes.margins(x=0.02, y=0.12)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9, frameon=False)


def _draw_losses(axes: Axes, run: Run, losses: tuple[Sequence[int], Sequence[float]]) -> None:
    steps, values = losses
    axes.semilogy(steps, values, color=_BLUE, linewidth=0.8)
    axes.set_title(
        f"Loss of all runs; test accuracy {run.accuracy:.1%} after step {run.last_step:,}", fontsize=11, loc="left"
    )
    axes.set_xlabel("training step")
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


def _millis(secs: Iterable[float]) -> list[float]:
    return [value * 1000 for value in secs]


def _median(secs: Iterable[float]) -> str:
    return human_millis(median(secs) or 0.0)


def _plain_number(value: float, _: object) -> str:
    return f"{value:g}"
