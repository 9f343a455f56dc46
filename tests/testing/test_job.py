"""Jobs of real JAX processes: functions get there, values, output and errors come back."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import job_programs
import numpy as np
import pytest

from jaxckpt import testing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job() -> Iterator[testing.Job]:
    with testing.Job(processes=2, devices=3) as job:
        yield job


def test_values_come_back_in_order(job: testing.Job) -> None:
    assert job.run(job_programs.topology) == [(0, 2, 3), (1, 2, 3)]
    assert job.run(job_programs.topology, offset=5) == [(5, 2, 3), (6, 2, 3)]


def test_processes_compute_together(job: testing.Job) -> None:
    assert job.run(job_programs.total, 10.0) == [21.0, 21.0]


def test_arrays_of_jax_come_as_numpy_however_large(job: testing.Job) -> None:
    for value in job.run(job_programs.array, 5_000_000):
        assert type(value["a"]) is np.ndarray
        np.testing.assert_array_equal(value["a"], np.arange(5_000_000))


def test_a_value_that_cannot_be_sent_is_an_error(job: testing.Job) -> None:
    with pytest.raises(testing.JobFailed, match="the result of global_array cannot be sent"):
        job.run(job_programs.global_array)


def test_an_error_shows_its_traceback_and_the_output(job: testing.Job) -> None:
    with pytest.raises(testing.JobFailed, match="function failed on process 1\n") as caught:
        job.run(job_programs.fail_on, 1)
    one, other = caught.value.results
    assert (one.state, one.ok, other.state) == ("returned", True, "raised")
    assert other.error is not None
    assert (other.error.type, other.error.message) == ("OSError", "[Errno 28] no room")
    assert isinstance(other.error.exception, OSError)
    assert other.error.exception.errno == 28
    assert other.output == "about to fail\n"
    for part in ("process 0", "about to fail", 'raise OSError(28, "no room")', "job_programs.py"):
        assert part in str(caught.value)
    assert job.run(job_programs.topology) == [(0, 2, 3), (1, 2, 3)]


@pytest.mark.parametrize(("kind", "message"), [("Unpicklable", "two arguments make it"), ("SystemExit", "3")])
def test_any_exception_comes_back(job: testing.Job, kind: str, message: str) -> None:
    job.start(job_programs.fail_on, 0, kind)
    failed, fine = job.results(check=False)
    assert fine.ok
    assert failed.error is not None
    assert failed.error.type == kind
    assert message in failed.error.message
    assert "fail_on" in failed.error.traceback
    assert (failed.error.exception is None) == (kind == "Unpicklable")


def test_output_is_that_of_the_call(job: testing.Job) -> None:
    for text in ("one", "two"):
        job.start(job_programs.say, text)
        assert [result.output for result in job.results()] == [f"{text} {i}\n{text} by a shell\n" for i in (0, 1)]


def test_a_function_may_be_named(job: testing.Job, tmp_path: Path) -> None:
    # A module's name that exists already, here and in a library: the file counts.
    (tmp_path / "job_programs.py").write_text("class A:\n    @staticmethod\n    def f(x): return x + 1\n")
    assert job.run(f"{tmp_path / 'job_programs.py'}:A.f", 1) == [2, 2]
    assert job.run("os.path:basename", "/a/b") == ["b", "b"]
    assert job.run(job_programs.topology) == [(0, 2, 3), (1, 2, 3)]


def nested() -> object:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    "function",
    [lambda: 1, nested(), "no_colon", ":f", "module:", "/nowhere/file.py:f"],
    ids=["lambda", "nested", "no colon", "no module", "no name", "no file"],
)
def test_a_function_that_has_no_name_elsewhere_is_refused(job: testing.Job, function: object) -> None:
    with pytest.raises(ValueError, match="cannot be found|does not name a function|does not exist"):
        job.run(function)
    assert job.run(job_programs.topology)[0] == (0, 2, 3)


def test_a_name_that_is_not_there_fails_on_the_processes(job: testing.Job) -> None:
    with pytest.raises(testing.JobFailed, match="AttributeError"):
        job.run("os.path:nonsense")
    with pytest.raises(testing.JobFailed, match="ModuleNotFoundError"):
        job.run("nonsense_module:f")


def test_one_function_at_a_time(job: testing.Job) -> None:
    job.start(job_programs.two_gates)
    with pytest.raises(RuntimeError, match=r"processes \[0, 1\] still run"):
        job.start(job_programs.topology)
    job.release("second")
    job.release("first")
    assert [result.value for result in job.results()] == ["through", "through"]


def test_misuse_is_refused() -> None:
    job = testing.Job()
    with pytest.raises(RuntimeError, match="has not started"):
        job.run(job_programs.topology)
    for options in (
        {"processes": 0},
        {"devices": 0},
        {"exit": "slow"},
        {"private_size": "1M"},
        {"disks": ["/tmp"]},
        {"cwd": "/no"},
    ):
        with pytest.raises(ValueError, match="processes=|exit=|private|is not a directory"):
            testing.Job(**options)
    for function in (testing.signal, testing.pause):
        with pytest.raises(RuntimeError, match="works only in a function"):
            function("x")
    with pytest.raises(AttributeError, match="nonsense"):
        testing.nonsense  # noqa: B018


def test_a_job_that_cannot_start_shows_why() -> None:
    with pytest.raises(testing.JobFailed, match="while the job started") as caught:
        testing.run(job_programs.topology, processes=1, env={"JAX_PLATFORMS": "nonsense"})
    assert "nonsense" in str(caught.value)


def test_one_function_in_a_job_of_its_own(tmp_path: Path) -> None:
    results = testing.run(
        job_programs.environment, processes=1, args=("MINE",), env={"MINE": "x", "HOME": None}, cwd=tmp_path
    )
    assert [result.value for result in results] == [("x", str(tmp_path))]
    assert results[0].pid != os.getpid()


def test_processes_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither JAX nor the helper writes anything, with warnings as errors and proxies set; look when all has ended."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false")
    with testing.Job(devices=2, env={"PYTHONWARNINGS": "error"}) as job:
        assert job.run(job_programs.topology) == [(0, 2, 2), (1, 2, 2)]
        group = job._group
        job._let_go(group)
        output = [(Path(group.directory) / f"output-{index}.txt").read_text() for index in (0, 1)]
    assert output == ["", ""]


def test_functions_of_a_program(tmp_path: Path) -> None:
    """The program itself must not run again in the processes; and jaxckpt costs it no import of JAX."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import sys
        import jaxckpt.testing

        class Mine:
            pass

        def work(mine):
            import jax
            return type(mine).__name__, jax.process_index()

        if __name__ == "__main__":
            print(jaxckpt.testing.run(work, args=(Mine(),), processes=1)[0].value, "jax" in sys.modules)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("('Mine', 0) False\n", "")
