"""A checkpoint whose save is running: a reader is told so, and by which process."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxckpt
from jaxckpt.storage import CheckpointPath
from jaxckpt.storage.commit import temporary

SAVER = """
    import sys
    import numpy as np
    import jaxckpt
    from jaxckpt.storage.commit import moves

    def wait(*_):
        print("written", flush=True)
        sys.stdin.read()

    moves.publish = wait
    jaxckpt.Checkpoint(value=np.zeros(4)).save(sys.argv[1])
"""


def message(call: Any) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        call()
    return str(caught.value)


@pytest.mark.slow
def test_of_another_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path / "ckpt")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    path = str(tmp_path / "ckpt-1")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        for call in (
            lambda: jaxckpt.Checkpoint(value=np.zeros(4)).restore(path),
            lambda: jaxckpt.load_checkpoint(path),
            lambda: jaxckpt.verify(path),
        ):
            text = message(call)
            assert f"Not committed yet: process {process.pid} is saving" in text
            assert "appends a number" not in text
        assert "appends a number" in message(lambda: jaxckpt.load_checkpoint(tmp_path / "ckpt"))
        assert "appends a number" in message(lambda: jaxckpt.load_checkpoint(tmp_path / "ckpt-11"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # What a dead process left is not a running save.
    assert "is saving" not in message(lambda: jaxckpt.load_checkpoint(path))


def test_of_another_checkpoint_of_this_process(tmp_path: Path) -> None:
    texts = []

    class Late:
        def serialize(self) -> str:
            path = os.path.join(os.path.relpath(tmp_path), "ckpt-1")
            texts.append(message(lambda: jaxckpt.Checkpoint(value=np.zeros(4)).restore(path)))
            return ""

        def deserialize(self, value: str) -> None: ...

    saved = jaxckpt.Checkpoint(late=Late())
    assert saved.save(tmp_path / "ckpt") == str(tmp_path / "ckpt-1")
    assert "Not committed yet: this process is saving" in texts[0]


def test_a_deletion_is_no_save(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(value=np.zeros(4)).save(tmp_path / "ckpt")
    folder = temporary.TemporaryDirectory(CheckpointPath.of(path))
    os.rename(path, folder.deleted)
    assert "is saving" not in message(lambda: jaxckpt.load_checkpoint(path))
    # Right before its directory is removed, and right after it was made, a deletion has nothing in it.
    shutil.rmtree(folder.deleted)
    assert "is saving" not in message(lambda: jaxckpt.load_checkpoint(path))
    folder.remove()
