"""`jaxckpt report`: text, JSON, and a page."""

import html.parser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxckpt
from jaxckpt.cli import main


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three saves of a manager, with metrics, and a checkpoint of plain Orbax."""
    checkpoint = jaxckpt.Checkpoint(w=np.ones(1 << 18, np.float32), step=0)
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path / "run", None, step_counter=lambda: checkpoint.step)
    for checkpoint.step, loss in [(10, 0.5), (20, float("nan")), (30, 0.25)]:
        manager.save(metrics={"loss": loss, "a <b>bold</b> name": 1})
    ocp.PyTreeCheckpointer().save(tmp_path / "run" / "plain", {"a": np.ones(3)})
    return tmp_path / "run"


def test_text(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory)]) == 0
    first, header, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{directory}: 4 saves blocked the program for ")
    assert first.endswith("; 1 of them do not remember their times")
    assert header.split() == [
        "checkpoint",
        "step",
        "saved",
        "at",
        "arrays",
        "written",
        "blocked",
        "waited",
        "timeline",
        "metrics",
    ]
    assert [row.split()[0] for row in rows] == ["ckpt-1", "ckpt-2", "ckpt-3", "plain"]
    assert [row.split()[1] for row in rows[:3]] == ["10", "20", "30"]
    assert all("1.0 MiB" in row and "!" in row for row in rows[:3])
    assert "loss=0.25" in rows[2]
    assert rows[3].split()[-3:] == ["?", "?", "?"]
    assert last.startswith(f"the newest was saved by 1 process: jaxckpt {jaxckpt.__version__}, ")


def test_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    saves = [entry["save"] for entry in found["saves"]]
    assert saves[3] is None
    assert found["totals"]["saves_with_times"] == 3
    # The array, and the step.
    assert found["totals"]["bytes"] == 3 * ((1 << 20) + 8)
    assert found["totals"]["blocked_secs"] == pytest.approx(sum(save["blocked_secs"] for save in saves[:3]))
    assert saves[0]["began"] < saves[1]["began"] < saves[2]["began"]


class _Page(html.parser.HTMLParser):
    """Collects what a page would load, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]


def test_page(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(directory), "--html", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    text = page.read_text()
    found = _Page()
    found.feed(text)
    assert found.loaded == []
    assert "b" not in found.tags
    for title in ("Timeline", "How long each save took", "Size of the arrays", "Metrics", "All saves"):
        assert f"<h2>{title}</h2>" in text
    # A timeline, times, sizes, and one figure for each metric.
    assert text.count('id="figure-') == 5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_draws_the_page(directory: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(directory), "--html", str(page)]) == 0
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chromium"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count('class="main-svg"') >= 5
    assert "program blocked" in done.stdout


def test_errors(directory: Path, tmp_path: Path, call, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory / "ckpt-1")]) == 1
    assert "is a checkpoint, not a directory of checkpoints" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "--html", str(tmp_path / "page.html")]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_without_plotly(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert main(["report", str(directory), "--html", str(tmp_path / "page.html")]) == 1
    assert "pip install '.[html]'" in capsys.readouterr().err
    assert main(["report", str(directory)]) == 0
