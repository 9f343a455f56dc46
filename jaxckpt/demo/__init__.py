"""``jaxckpt demo``: trains a small classifier on real data, saves checkpoints, and resumes from the latest one."""

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from jaxckpt._lib.output import count, human_millis, print_json, print_line
from jaxckpt._lib.progress import Progress
from jaxckpt.demo.saves import SaveLog, median

if TYPE_CHECKING:
    from jaxckpt import CheckpointConfig
    from jaxckpt.demo.loop import Run
    from jaxckpt.demo.processes import Place
    from jaxckpt.demo.remote import RemoteSaves
    from jaxckpt.demo.settings import TrainingConfig

HELP = "train a small classifier with asynchronous checkpoints, and resume it"
DESCRIPTION = (
    "Trains a small Flax NNX classifier on scikit-learn's handwritten digits, with asynchronous checkpoints. Shows for "
    "every save how long it blocked the training and how long the write took. On SIGTERM it saves the current step and "
    "ends with status 143. If you run it again, even after a crash or kill -9, it resumes after the last checkpoint, with "
    "the same losses, bit for bit, as an uninterrupted run."
)

_saves: "SaveLog | RemoteSaves | None" = None


def announce(path: str) -> None:
    """The write callback of the demo's config: notes that a checkpoint is safely on disk.

    jaxckpt calls it on the thread that writes, after the commit.

    Args:
      path: path of the checkpoint.
    """
    if _saves is None:
        print_line(f"saved {path}")
    else:
        _saves.written(path)


def collect(saves: "SaveLog | RemoteSaves | None") -> None:
    """Sets the log to which `announce` reports.

    Args:
      saves: the log; None to let `announce` print a line instead.
    """
    global _saves
    _saves = saves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML or TOML file with the sections training and checkpoint (default: the file that comes with jaxckpt)",
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=_positive,
        help="total number of training steps over all runs (default: the number in the config, 600)",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=_positive,
        default=1,
        help="train with N processes on this machine, each with a part of every batch and of the weights (default: 1)",
    )
    parser.add_argument(
        "--io-device",
        metavar="DEVICE",
        type=_device,
        help="the process that reads and writes all files, such as /job:worker/task:2; each process gets its own disk "
        "if the system permits it (default: the device in the config, or else all share a directory)",
    )
    parser.add_argument(
        "--dir",
        metavar="DIR",
        help="directory for checkpoints, losses.csv and steps.png (default: the directory in the config, jaxckpt-demo); if it is in a "
        "bucket, losses.csv and steps.png go into a directory below jaxckpt-demo",
    )


def _local_directory(address: str) -> str:
    """Returns the local directory for the log and the picture of a run whose checkpoints are in a bucket. Makes it."""
    directory = os.path.join("jaxckpt-demo", re.sub(r"\W+", "-", address))
    os.makedirs(directory, exist_ok=True)
    return directory


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _device(text: str) -> str | int:
    from jaxckpt.job.devices import parse_spec

    if text.isdecimal():
        return int(text)
    try:
        parse_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    _require_packages()
    from jaxckpt.demo import losses, plot, processes, settings
    from jaxckpt.demo.loop import train
    from jaxckpt.preemption import EXIT_CODE
    from jaxckpt.storage import stores
    from jaxckpt.testing import JobFailed

    training, saving = settings.load(
        arguments.config, steps=arguments.steps, directory=arguments.dir, io_device=arguments.io_device
    )
    training = settings.divisible(training, arguments.processes)
    where = processes.place(saving, arguments.processes)
    # A log that grows line by line cannot lie in a bucket.
    beside = saving.directory if stores.is_local(saving.directory) else _local_directory(saving.directory)
    losses_path = os.path.join(beside, "losses.csv")
    plot_path = os.path.join(beside, "steps.png")

    with Progress("starting") as progress:

        def say(text: str) -> None:
            if not arguments.json:
                progress.say(text)

        say(f"training a classifier of handwritten digits (64-{training.hidden}-10) to step {training.steps}")
        say(f"checkpoints: {_describe(saving, where)}")
        if arguments.processes > 1:
            part = training.batch_size // arguments.processes
            say(
                f"{arguments.processes} processes, each with {count(part, 'example')} of each batch of {training.batch_size}"
            )
            say(f"{where.directory}: {where.note}")
            progress.update(f"starting {arguments.processes} processes")
        callbacks = saving.options.experimental_write_callbacks or ()
        saves = SaveLog(say, announced=announce in callbacks)
        collect(saves)
        try:
            if arguments.processes == 1:
                result = train(training, saving, losses_path, saves, say, progress.update)
            else:
                result = processes.train(arguments, where, losses_path, saves, progress, quiet=arguments.json)
        except KeyboardInterrupt:
            what = "the running save is finished" if arguments.processes == 1 else "all processes have ended"
            say(f"interrupted; {what}. Run it again to go on after the latest checkpoint.")
            raise
        except JobFailed as error:
            if arguments.debug:
                raise
            progress.complain(f"jaxckpt demo: error: {processes.failure(error)}")
            return 1
        finally:
            collect(None)
        if result.preempted:
            say(f"ended by SIGTERM at step {result.last_step}, which is saved. Run it again to go on.")
        elif result.steps:
            progress.update("drawing")
            plot.draw(result, losses.read(losses_path), plot_path)

    if arguments.json:
        drawn = result.steps and not result.preempted
        print_json(_as_json(result, saving, losses_path, plot_path if drawn else None, where))
    elif not result.preempted:
        for line in _summary(result, training):
            print_line(line)
        if arguments.processes > 1:
            for line in processes.disk_table(where):
                print_line(line)
        print_line(f"losses: {losses_path}" + (f"   step times: {plot_path}" if result.steps else ""))
    return EXIT_CODE if result.preempted else 0


def _require_packages() -> None:
    """Raises ImportError, with the way to install them, if packages are missing that only the demo needs."""
    import importlib.util

    missing = [name for name in ("flax", "optax", "sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the demo needs packages that are not installed: {', '.join(missing)}. Install jaxckpt with its extra 'demo', "
            "in a clone of the repository: pip install '.[demo]'"
        )


def _describe(saving: "CheckpointConfig", where: "Place") -> str:
    interval = f"every {count(saving.checkpoint_interval or 1, 'step')}"
    kept = "all kept" if saving.max_to_keep is None else f"the last {saving.max_to_keep} kept"
    how = "written in the background" if saving.options.enable_async else "training waits for each"
    return f"{os.path.join(where.directory, saving.checkpoint_name)}-N, {interval}, {kept}, {how}"


def _summary(result: "Run", training: "TrainingConfig") -> list[str]:
    lines = []
    if result.steps:
        trained = result.last_step - result.first_step
        loss = f"loss {result.loss:.4f}, " if result.loss is not None else ""
        lines.append(
            f"trained {count(trained, 'step')} to step {result.last_step}: {loss}test accuracy {result.accuracy:.1%}"
        )
        times = _medians(result)
        blocked, written, step = (_millis(times[name]) for name in ("blocked_secs", "written_secs", "step_secs"))
        saves = count(len(result.saves), "save")
        lines.append(
            f"{saves}: training blocked {blocked}, written in {written}; a training step takes {step} (medians)"
        )
    else:
        lines.append(f"step {result.last_step}: test accuracy {result.accuracy:.1%}")
    lines.append(f"to train on, run it again with --steps {result.last_step + training.steps}")
    return lines


def _medians(result: "Run") -> dict[str, float | None]:
    return {
        "step_secs": median([step.secs for step in result.steps]),
        "blocked_secs": median([save.blocked_secs for save in result.saves if save.blocked_secs is not None]),
        "written_secs": median([save.written_secs for save in result.saves if save.written_secs is not None]),
    }


def _millis(seconds: float | None) -> str:
    return "-" if seconds is None else human_millis(seconds)


def _as_json(
    result: "Run", saving: "CheckpointConfig", losses_path: str, plot_path: str | None, where: "Place"
) -> dict[str, Any]:
    from jaxckpt.demo import processes

    disks = [
        {"process": index, "directory": disk, "files": files, "bytes": size}
        for index, (disk, (files, size)) in enumerate(zip(where.disks or (), processes.on_disks(where), strict=True))
    ]
    return {
        "directory": saving.directory,
        "restored": result.restored,
        "first_step": result.first_step,
        "last_step": result.last_step,
        "preempted": result.preempted,
        "steps_trained": len(result.steps),
        "loss": result.loss,
        "test_accuracy": None if result.preempted else result.accuracy,
        "saves": [
            {
                "step": save.number,
                "path": save.path,
                "blocked_secs": save.blocked_secs,
                "written_secs": save.written_secs,
            }
            for save in result.saves
        ],
        "medians": _medians(result),
        "checkpoints": result.checkpoints,
        **({"disks": disks} if disks else {}),
        "losses": losses_path,
        "plot": plot_path,
    }
