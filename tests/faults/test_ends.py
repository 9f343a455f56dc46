"""The program of a process ends while an asynchronous save runs: the save is completed on all, and exit codes are right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxckpt
from jaxckpt.testing.environment import Port

HERE = Path(__file__).parent
CODES = {"return": 0, "exit": 3, "exception": 1}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("who", "how"), [(0, "return"), (0, "exception"), (1, "exit")])
def test_the_end_of_a_program(tmp_path: Path, who: int, how: str) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    environment.pop("XLA_FLAGS", None)
    # Reserved: while a program starts, the system could give the port to one of the many connections of other tests.
    with Port() as port:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    HERE / "ending_program.py",
                    str(index),
                    port.address,
                    tmp_path / "ckpt",
                    "1",
                    str(who),
                    how,
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(3)
        ]
        try:
            outputs = [process.communicate(timeout=200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    codes = [process.returncode for process in processes]
    assert codes[who] == CODES[how], outputs
    assert [code for index, code in enumerate(codes) if index != who] == [0, 0], outputs
    # Where the machine is busy, the end of a program says that it waits.
    complaints = [line for output in outputs for line in output.splitlines() if "jaxckpt:" in line]
    assert all("is still running; waiting for it" in line for line in complaints), outputs
    latest = jaxckpt.latest_checkpoint(tmp_path)
    assert latest == str(tmp_path / "ckpt-1")
    assert (jaxckpt.load_variable(latest, "a") == 7).all()
