"""The Python of the README, and of the page for users of TensorFlow, runs as written: in empty directories, in processes of their own."""

import importlib.util
import os
import re
import shutil
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


@pytest.mark.slow
def test_the_quick_start_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert "checkpoints/ckpt-3" in run(BLOCKS[0], tmp_path)
    assert "checkpoints/ckpt-6" in run(BLOCKS[0], tmp_path)


@pytest.mark.slow
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


def tensorflow_page() -> list[str]:
    """The blocks of the page that a reader follows from top to bottom, then those that need TensorFlow."""
    text = (ROOT / "docs" / "from_tensorflow.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return blocks


@pytest.mark.slow
def test_the_page_for_users_of_tensorflow_runs(tmp_path: Path) -> None:
    blocks = [block for block in tensorflow_page() if "import tensorflow" not in block]
    assert len(blocks) == 6
    shutil.copytree(ROOT / "tests/from_tensorflow/golden/tree", tmp_path / "tf_run")
    printed = run("\n".join(blocks), tmp_path)
    assert "save() appends a number ('ckpt-1') and returns the full path; pass that one" in printed
    assert (tmp_path / "checkpoints" / "ckpt-1").is_dir()


@pytest.mark.slow
def test_the_page_for_programs_with_orbax_code_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "orbax_programs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    # Orbax advises to give shardings.
    run("import warnings\nwarnings.simplefilter('ignore')\n" + "\n".join(blocks), tmp_path)
    assert (tmp_path / "new" / "state" / "_JAXCKPT").is_file()


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_the_wrapper_of_a_tensorflow_iterator_runs(tmp_path: Path) -> None:
    (block,) = [block for block in tensorflow_page() if "import tensorflow" in block]
    run(block, tmp_path)


def test_the_wrapper_of_a_tensorflow_iterator_compiles() -> None:
    (block,) = [block for block in tensorflow_page() if "import tensorflow" in block]
    compile(block, "from_tensorflow.md", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["managers.md", "observability.md", "preemption.md", "warm_starts.md"])
def test_pages_that_are_read_from_top_to_bottom_run(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    run("\n".join(blocks), tmp_path)
    assert (tmp_path / "run" / "checkpoint").exists()


LINKS = [
    (page, link)
    for page in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/architecture.md",
        "docs/cli.md",
        "docs/from_tensorflow.md",
        "docs/managers.md",
        "docs/observability.md",
        "docs/preemption.md",
        "docs/orbax_programs.md",
        "docs/warm_starts.md",
    )
    for link in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", (ROOT / page).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_map_names_files_and_tests_that_exist() -> None:
    named = re.findall(r"`((?:[a-z_]+/)*(?:[a-z_0-9]+\.(?:py|yaml)|(?<=/)))(?:::(\w+))?`", MAP)
    assert len(named) > 50
    package = ROOT / "jaxckpt"
    bases = (ROOT, package, package / "storage", package / "job")
    for path, test in named:
        found = [base / path for base in bases if (base / path).exists()]
        assert found, path
        assert not test or f"def {test}(" in found[0].read_text(encoding="utf-8"), test


def test_the_map_names_every_room_and_every_message() -> None:
    from jaxckpt.job.protocol.grammar import MESSAGES

    rooms = [directory.parent.name for directory in (ROOT / "jaxckpt").glob("*/__init__.py")]
    assert [name for name in rooms if f"`{name}/`" not in MAP] == []
    assert [name for name in MESSAGES if f"`{name}`" not in MAP] == []
