"""The training in each process of ``jaxckpt demo --processes``, which reports to the parent process."""

import json
import os
import time
from typing import Any

import jax

from jaxckpt import demo
from jaxckpt.demo import settings
from jaxckpt.demo.loop import Run, train
from jaxckpt.demo.saves import SaveTimes

_UPDATE_SECS = 0.2


class Reports:
    """A file to which all processes append a line of JSON for each event, and from which the parent reads.

    All processes use one file, and write each line with one system call, so the lines are in the order of the events. The
    clock, `time.perf_counter`, is the same in all processes of a machine.
    """

    def __init__(self, path: str) -> None:
        """Opens the file for appending.

        Args:
          path: path of the existing file.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._updated = 0.0

    def send(self, kind: str, **values: Any) -> None:
        """Reports an event.

        Args:
          kind: kind of the event.
          **values: its values.
        """
        os.write(self._file, json.dumps({"kind": kind, "at": time.perf_counter(), **values}).encode() + b"\n")

    def say(self, text: str) -> None:
        """Lets the parent print a line."""
        self.send("say", text=text)

    def update(self, text: str) -> None:
        """Lets the parent change its progress line. At most a few calls a second have an effect."""
        if time.monotonic() - self._updated >= _UPDATE_SECS:
            self._updated = time.monotonic()
            self.send("update", text=text)


class RemoteSaves:
    """The log of saves for a process of a job. It sends everything to the parent, which keeps the real log.

    Process 0 reports how long its training was blocked. The process that writes the files reports when they are on disk.
    """

    def __init__(self, reports: Reports, *, leads: bool) -> None:
        """Makes the log.

        Args:
          reports: the connection to the parent.
          leads: whether this is process 0.
        """
        self._reports = reports
        self._leads = leads
        self._number = 0

    def begin(self, number: int) -> None:
        """Reports that `save` is about to be called."""
        self._number = number
        if self._leads:
            self._reports.send("begin", number=number)

    def returned(self, number: int, path: str | None) -> None:
        """Reports that `save` has returned."""
        if self._leads:
            self._reports.send("returned", number=number, path=path)

    def written(self, path: str) -> None:
        """Reports that a checkpoint is on disk. Called on the thread that writes."""
        self._reports.send("written", path=path)

    def finished(self) -> list[SaveTimes]:
        """Returns an empty list, because the parent has the times."""
        return []


def run(
    config: str | None,
    steps: int | None,
    directory: str,
    io_device: str | int | None,
    losses_path: str,
    reports_path: str,
) -> Run | None:
    """Trains as one process of a job.

    Args:
      config: path of the config; None for the file that comes with jaxckpt.
      steps: overrides the config's number of steps, unless it is None.
      directory: directory of the checkpoints, as this process sees it.
      io_device: overrides the config's ``experimental_io_device``, unless it is None.
      losses_path: path of the log of losses, which process 0 writes.
      reports_path: path of the file for `Reports`.

    Returns:
      The result of the run on process 0; None on other processes.
    """
    training, saving = settings.load(config, steps=steps, directory=directory, io_device=io_device)
    training = settings.divisible(training, jax.process_count())
    leads = jax.process_index() == 0
    reports = Reports(reports_path)
    saves = RemoteSaves(reports, leads=leads)
    demo.collect(saves)
    say, update = (reports.say, reports.update) if leads else (_nothing, _nothing)
    result = train(training, saving, losses_path if leads else None, saves, say, update)
    return result if leads else None


def _nothing(text: str) -> None:
    """Prints nothing, because process 0 prints the same."""
