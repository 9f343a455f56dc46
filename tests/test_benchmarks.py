"""The benchmarks run and print their tables. What they measure is no matter for a test."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(module: str, *arguments: object) -> str:
    """Runs a benchmark as its users do; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    # These say by their exit codes whether all goals hold. Those of overhead depend on what else the machine does; those of reshard are
    # for arrays that are larger than the ones of a test.
    assert done.returncode in ((0, 1) if module in ("overhead", "reshard") else (0,)), done.stderr
    return done.stdout


def test_orbax_loop(tmp_path: Path) -> None:
    output = run("orbax_loop", "--rounds", 1, "--cases", "3x8,2x100000", "--dir", tmp_path)
    lines = [line for line in output.splitlines() if "leaves of" in line]
    assert [("jaxckpt" in line) for line in lines] == [False, True, False, True]
    assert "yes" in lines[3]


def test_overhead(tmp_path: Path) -> None:
    output = run("overhead", "--rounds", 1, "--cases", "3x8,2x1000", "--dir", tmp_path)

    for what in ("async save blocks, 3 leaves of 32 B", "restore, 2 leaves of 3.90625 KiB", "import jaxckpt"):
        assert what in output
    assert "limit" in output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_peers(tmp_path: Path) -> None:
    saved, results = tmp_path / "saved", tmp_path / "results"
    saved.mkdir()

    output = run(
        "peers",
        *("--states", "tiny-s", "--rounds", 1, "--contenders", "raw,jaxckpt,orbax-v0"),
        *("--dir", saved, "--results", results),
    )

    assert "tiny-s on" in output
    for name in ("raw", "jaxckpt", "orbax-v0"):
        assert f"\n{name}  " in output
    markdown = (results / "RESULTS.md").read_text()
    assert "| jaxckpt |" in markdown
    assert str(tmp_path) not in markdown
    assert (results / "results.png").stat().st_size > 1000
    assert list(saved.iterdir()) == []


@pytest.mark.parametrize("measure", ["save", "restore", "steps"])
def test_worker(tmp_path: Path, measure: str) -> None:
    arguments = ("--worker", "jaxckpt", "--state", "tiny-l", "--dir", tmp_path)
    if measure == "restore":
        run("peers", *arguments, "--measure", "save")

    found = json.loads(run("peers", *arguments, "--measure", measure).splitlines()[-1])

    expected = {"save": "blocked_secs", "restore": "restore_secs", "steps": "p99_saving_ms"}
    assert found[expected[measure]] > 0


def test_steps(tmp_path: Path) -> None:
    output = run(
        "steps", "--state", "tiny-l", "--rounds", 1, "--contenders", "raw,jaxckpt,jaxckpt-nice-0", "--dir", tmp_path
    )

    assert "## One save of tiny-l on " in output
    for name in ("raw", "jaxckpt", "jaxckpt-nice-0", "nothing"):
        assert f"\n| {name} | " in output
    assert list(tmp_path.iterdir()) == []


def test_profile(tmp_path: Path) -> None:
    output = run("profile", "--state", "tiny-m", "--rounds", 1, "--dir", tmp_path)

    for what in ("caller", "background", "Restore of tiny-m", "snapshot", "read and verify arrays", "crc32c, part of"):
        assert what in output
    assert "not in this version" not in output


def test_a_contender_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--contenders", "paper"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 2
    assert "there is no contender 'paper'" in done.stderr


@pytest.mark.timeout(240)
def test_multihost(tmp_path: Path) -> None:
    saved, results = tmp_path / "saved", tmp_path / "results"
    saved.mkdir()

    output = run(
        "multihost",
        *("--gigabytes", 0.001, "--memory-gigabytes", 0.001, "--processes", 2, "--leaves", 3, "--rounds", 1),
        *("--contenders", "engine,apart,io-1,shared", "--dir", saved, "--results", results),
    )

    for name in ("engine", "apart", "io-1", "shared", "copy of a part in memory", "io-1: save, × engine"):
        assert f"\n{name}  " in output
    assert "io-1: async of 0.001 GB, others, MB" in output
    assert "restore s  × engine  again s  × engine" in output
    markdown = (results / "RESULTS_MULTIHOST.md").read_text()
    assert "| io-1 | IO |" in markdown
    assert str(tmp_path) not in markdown
    assert list(saved.iterdir()) == []


@pytest.mark.timeout(240)
def test_reshard(tmp_path: Path) -> None:
    saved, results = tmp_path / "saved", tmp_path / "results"
    saved.mkdir()

    output = run("reshard", "--mebibytes", 1, "--contenders", "jaxckpt", "--dir", saved, "--results", results)

    for row in (
        "restored replicated, 4 × 2, read once",
        "IO process, restored by columns, 4 × 2",
        "1,024 processes, DP",
    ):
        assert f"\n{row}  " in output
    markdown = (results / "RESULTS_RESHARD.md").read_text()
    assert "| 128 processes, DP, scanned |" in markdown
    assert str(tmp_path) not in markdown
    assert (results / "reshard.png").stat().st_size > 1000
    assert list(saved.iterdir()) == []


@pytest.mark.parametrize("program", ["overhead", "peers", "multihost", "profile", "reshard", "steps"])
def test_rounds_are_at_least_one(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{program}")
    with pytest.raises(SystemExit) as caught:
        module.main(["--rounds", "0"])
    assert caught.value.code == 2
    assert "--rounds: expected a positive whole number, got '0'" in capsys.readouterr().err
