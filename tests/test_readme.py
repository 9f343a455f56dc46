"""The README's Python runs as written: in an empty directory, twice, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert "checkpoints/ckpt-3" in run(BLOCKS[0], tmp_path)
    assert "checkpoints/ckpt-6" in run(BLOCKS[0], tmp_path)


def test_the_config_example_runs(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run(
        "import jax.numpy as jnp\nimport jaxckpt\n" + next(block for block in BLOCKS if "load_config" in block),
        tmp_path,
    )


def test_the_options_of_several_processes_are_right() -> None:
    from jaxckpt import CheckpointOptions

    (block,) = [block for block in BLOCKS if "experimental_io_device=" in block]
    found: dict[str, CheckpointOptions] = {}
    exec("import jaxckpt\n" + block, found)
    assert found["options"].experimental_io_device == "/job:worker/task:0"


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w/.]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
