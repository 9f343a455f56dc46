"""What each process of ``jaxckpt demo --processes`` runs: the same training, whose reports go to the parent."""

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
    """The end of a file to which all processes append a line of JSON for each event, and which the parent reads.

    One file for all, and one write for each line: the order is that of the events. The clock, `time.perf_counter`, is the
    same in all processes of a machine.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._updated = 0.0

    def send(self, kind: str, **values: Any) -> None:
        """Reports an event."""
        os.write(self._file, json.dumps({"kind": kind, "at": time.perf_counter(), **values}).encode() + b"\n")

    def say(self, text: str) -> None:
        """Has the parent print a line."""
        self.send("say", text=text)

    def update(self, text: str) -> None:
        """Has the parent change its progress line, a few times a second."""
        if time.monotonic() - self._updated >= _UPDATE_SECS:
            self._updated = time.monotonic()
            self.send("update", text=text)


class RemoteSaves:
    """The log of saves as a process of a job sees it: the parent keeps it.

    Process 0 reports when its training was blocked; the process that has the files, when they were on disk.
    """

    def __init__(self, reports: Reports, *, leads: bool) -> None:
        self._reports = reports
        self._leads = leads
        self.last_number: int | None = None
        self._number = 0

    def begin(self, number: int) -> None:
        """Reports that `save` is about to be called."""
        self._number = number
        if self._leads:
            self._reports.send("begin", number=number)

    def returned(self, number: int, path: str | None) -> None:
        """Reports that `save` has returned."""
        if path is not None:
            self.last_number = number
        if self._leads:
            self._reports.send("returned", number=number, path=path)

    def written(self, path: str) -> None:
        """Reports that a checkpoint is on disk. Runs on the thread that writes."""
        self._reports.send("written", path=path)

    def finished(self) -> list[SaveTimes]:
        """Returns nothing: the parent has the times."""
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
      config: path of the config; None for that which comes with jaxckpt.
      steps: overrides its number of steps.
      directory: of the checkpoints, as this process sees it.
      io_device: overrides the config's ``experimental_io_device``.
      losses_path: of the log of losses, which process 0 writes.
      reports_path: of the file for `Reports`.

    Returns:
      What the run did, on process 0.
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
    """Says nothing: process 0 says it."""
