"""The package as a whole: its documentation, and what importing it costs."""

import os
import re
import subprocess
import sys
from pathlib import Path

from jaxckpt import testing

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=200
    )


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """Its files, as a project of their own; its tests pass, or are skipped where private disks are not permitted."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["programs.py", "test_programs.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = run(["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"], tmp_path)
    expected = "2 passed" if testing.private_disks_problem() is None else "1 passed, 1 skipped"
    assert expected in done.stdout, done.stdout + done.stderr


def test_the_documentation_names_what_there_is() -> None:
    text = (ROOT / "docs/testing.md").read_text()
    for name in testing.__all__:
        assert name in text or name == "RemoteError"
    for name in {*vars(testing.Job)} - {"run", "start"}:
        assert name.startswith("_") or f"`job.{name}" in text
    assert set(re.findall(r"testing\.(\w+)", text)) <= {*testing.__all__}


def test_it_is_imported_when_it_is_used(tmp_path: Path) -> None:
    code = (
        "import sys, jaxckpt; assert 'jaxckpt.testing' not in sys.modules; jaxckpt.testing.run; "
        "import jaxckpt.testing; assert not {'jax', 'numpy', 'pytest'} & {*sys.modules}"
    )
    done = run(["-W", "error", "-c", code], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
