"""``jaxckpt demo`` with checkpoints in a bucket, killed and resumed: the losses are those of a run that nothing disturbed."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from bucket_server import Bucket, Request

import jaxckpt
from jaxckpt import storage

pytestmark = [pytest.mark.bucket, pytest.mark.timeout(600)]
STEPS = 24
CONFIG = f"""
training: {{steps: {STEPS}, batch_size: 64, hidden: 8, warmup_steps: 4, decay_steps: {STEPS}}}
checkpoint:
  directory: unused
  max_to_keep: 2
  checkpoint_interval: 4
  options: {{enable_async: true}}
"""


def losses(directory: Path) -> bytes:
    (path,) = directory.glob("jaxckpt-demo/*/losses.csv")
    return path.read_bytes()


def test_killed_and_resumed(
    s3_bucket: Bucket,
    cli: Callable[..., CompletedProcess[str]],
    cli_command: tuple[list[str], dict[str, str]],
    tmp_path: Path,
) -> None:
    (config := tmp_path / "short.yaml").write_text(CONFIG)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    done = cli("demo", "--config", config, "--dir", s3_bucket.path("whole"), cwd=tmp_path / "undisturbed")
    assert done.returncode == 0, done.stderr

    running: list[subprocess.Popen[bytes]] = []
    killed: list[Request] = []
    commits: set[str] = set()

    def rule(request: Request) -> str | None:
        """Kills the program before it commits its third checkpoint."""
        if killed:
            return "drop"
        if request.action == "write" and request.name.endswith("/commit_success.txt"):
            commits.add(request.name)
        if len(commits) == 3:
            killed.append(request)
            os.kill(running[0].pid, signal.SIGKILL)
            return "drop"
        return None

    s3_bucket.rule(rule)
    command, environment = cli_command
    arguments = [*command, "demo", "--config", str(config), "--dir", s3_bucket.path("run")]
    running.append(
        subprocess.Popen(
            arguments,
            cwd=tmp_path / "killed",
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    assert running[0].wait(180) == -signal.SIGKILL
    s3_bucket.rule(None)
    assert killed
    before = jaxckpt.latest_checkpoint(s3_bucket.path("run"))
    assert before is not None
    assert f"{before.removeprefix(f'{s3_bucket}/')}/commit_success.txt" in commits - {killed[0].name}

    done = cli("demo", "--config", config, "--dir", s3_bucket.path("run"), cwd=tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    assert losses(tmp_path / "killed").count(b"\n") == STEPS + 1
    latest = jaxckpt.latest_checkpoint(s3_bucket.path("run"))
    assert latest is not None
    assert storage.verify(latest).ok
    assert storage.leftovers(s3_bucket.path("run")) == []
    assert len({key.split("/")[1] for key in s3_bucket.keys if key.startswith("run/")}) == 1 + 2
