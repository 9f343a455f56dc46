"""Runs many cases, in a process that is started again after it has died, and collects what should not have happened."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# For one call, which may take 5 s, on a machine that is busy.
ANSWER_SECS = 60.0
START_SECS = 120.0


@dataclass
class Report:
    """What was seen.

    Attributes:
      cases: how many were run.
      endings: how often a call ended in what.
      findings: what should not have happened, each with "case", "kind", "what".
      seconds, bytes: of the call that took most.
    """

    cases: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0

    def __str__(self) -> str:
        kinds = Counter(finding["kind"] for finding in self.findings)
        return (
            f"{self.cases} cases, {self.endings.total()} calls: {len(self.findings)} findings {dict(kinds)}; "
            f"slowest call {self.seconds:.1f} s, most memory {self.bytes / 2**20:.0f} MiB; endings {dict(self.endings.most_common())}"
        )


def run(seed: int, numbers: Iterable[int], *, verbose: bool = False) -> Report:
    """Runs the cases of a seed that have these numbers."""
    report = Report()
    worker: _Worker | None = None
    try:
        for number in numbers:
            worker = worker or _Worker()
            found = worker.run(seed, number)
            report.cases += 1
            report.endings.update(found.get("errors", {}))
            report.seconds = max(report.seconds, found.get("seconds", 0.0))
            report.bytes = max(report.bytes, found.get("bytes", 0))
            for finding in found["findings"]:
                report.findings.append({"case": f"{seed} {number}", "what": found["what"], **finding})
                if verbose:
                    print(json.dumps(report.findings[-1])[:3000], flush=True)
            if verbose and report.cases % 500 == 0:
                print(report, flush=True)
            if any(finding["kind"] in ("died", "hang", "memory") for finding in found["findings"]):
                worker.close()
                worker = None
    finally:
        if worker is not None:
            worker.close()
    return report


class _Worker:
    """A process that runs cases."""

    def __init__(self) -> None:
        tests = Path(__file__).parents[1]
        path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            env={**os.environ, "PYTHONPATH": os.environ.get("HOSTILE_TREE", "") + os.pathsep + path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        first = self._lines.get(timeout=START_SECS)
        if first is None:
            raise RuntimeError("The process that reads could not be started.")
        self._root = json.loads(first)["root"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def run(self, seed: int, number: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed} {number}\n")
        self._process.stdin.flush()
        what, call = [], "making the case"
        while True:
            try:
                line = self._lines.get(timeout=ANSWER_SECS)
            except queue.Empty:
                return {"what": what, "findings": [{"kind": "hang", "call": call}]}
            if line is None:
                code = self._process.wait()
                name = signal.Signals(-code).name if code < 0 else str(code)
                stacks = Path(self._root, "stacks").read_text(errors="replace")[:3000]
                return {"what": what, "findings": [{"kind": "died", "call": call, "signal": name, "stacks": stacks}]}
            found: dict[str, Any] = json.loads(line)
            if "findings" in found:
                return found
            what, call = found.get("what", what), found.get("call", call)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        shutil.rmtree(self._root, ignore_errors=True)
