"""The grammar of experimental_io_device, and which process it names."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxckpt.job.devices import DeviceSpec, parse_device, parse_spec, process_of, resolve_process

# What TensorFlow users write, and the process that it names in a job of 4.
NAMES_PROCESS = {
    "/job:worker/replica:0/task:3/device:CPU:0": 3,
    "/job:worker/replica:0/task:3/cpu:0": 3,
    "/job:worker/task:3": 3,
    "job:worker/task:3": 3,
    "/task:3": 3,
    "task:2": 2,
    "/task:03": 3,
    "/replica:0/task:1": 1,
    "/device:CPU:0/task:1/replica:0/job:worker": 1,
    "/job:*/replica:*/task:2/device:CPU:*": 2,
    "/job:worker/task:0": 0,
    "/job:localhost": 0,
    "/job:localhost/replica:0/task:0/device:CPU:0": 0,
    "/job:localhost/task:0": 0,
    "/job:localhost/task:*": 0,
    "/job:chief": 0,
    "/job:coordinator": 0,
    "/job:master": 0,
    "/job:master/task:0/device:CPU:0": 0,
    "CPU:0": 0,
    "cpu:0": 0,
    "/cpu:0": 0,
    "/CPU:0": 0,
    "/device:CPU:0": 0,
    "/device:cpu:0": 0,
    "device:CPU:*": 0,
    "/device:CPU": 0,
    "CPU": 0,
    "/gpu:0": 0,
    "GPU:1": 0,
    "/device:TPU:7": 0,
    "tpu": 0,
    "/replica:0": 0,
}
UNPARSABLE = [
    "",
    "/",
    "//",
    "garbage",
    "/garbage",
    "localhost",
    "/localhost",
    "worker",
    "worker:3",
    "3",
    "-1",
    "/job:",
    "/job:3",
    "/job:worker/",
    "//job:worker",
    "/job:worker//task:1",
    "/job:worker task:1",
    "/task:",
    "/task:-1",
    "/task:x",
    "/task:1.0",
    "/task:1:2",
    "/task:٣",
    "/task:" + "9" * 5000,
    "/Task:1",
    "/JOB:worker",
    "/task:1\n",
    " CPU:0",
    "CPU:0 ",
    "CPU:-1",
    "CPU:x",
    "CPU:",
    "cuda:0",
    "/device:",
    "/device:0",
    "/device:CPU:0:0",
    "host:8080",
    "gs://bucket/path",
    "/tmp",
    # Nothing is named.
    "/task:*",
    "/job:*/replica:*/task:*/device:*:*",
    # A number of nothing.
    "/task:1/device:*:1",
    # Given twice.
    "/task:1/task:2",
    "/task:1/task:1",
    "/job:worker/job:worker/task:0",
    "/cpu:0/device:CPU:0",
    "/cpu:0/gpu:0",
]
NO_SUCH_PROCESS = [
    "/job:worker",
    "/job:worker/replica:0",
    "/job:worker/task:*",
    "/job:worker/device:CPU:0",
    "/job:ps/task:0",
    "/job:Worker/task:0",
    "/job:LOCALHOST",
    "/job:localhost/task:1",
    "/job:chief/task:1",
    "/job:localhost/replica:1",
    "/replica:1/task:0",
    "/task:4",
    "/job:worker/task:4",
    "/task:999999999999",
]


@pytest.mark.parametrize(("text", "process"), NAMES_PROCESS.items())
def test_device_strings_name_processes(text, process):
    assert parse_device(text) == text
    assert process_of(parse_spec(text), text, 4) == process


@pytest.mark.parametrize("text", UNPARSABLE)
def test_unparsable_strings_are_refused_at_once(text):
    with pytest.raises(ValueError, match="experimental_io_device"):
        parse_device(text)


@pytest.mark.parametrize(
    "value", [b"CPU:0", 1.0, float("nan"), True, False, np.True_, -1, np.int32(-1), [], ["CPU:0"], (0,), object, jax]
)
def test_other_values_are_refused_at_once(value):
    with pytest.raises(ValueError, match="experimental_io_device"):
        parse_device(value)


@pytest.mark.parametrize("text", NO_SUCH_PROCESS)
def test_processes_that_do_not_exist_are_refused_at_use(text):
    assert parse_device(text) == text
    with pytest.raises(
        ValueError, match=r"experimental_io_device=.*This job has 4 processes, tasks 0 to 3\."
    ) as caught:
        process_of(parse_spec(text), text, 4)
    assert repr(text) in str(caught.value)
    with pytest.raises(ValueError, match=r"This job has one process, task 0\."):
        resolve_process(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost", "did you mean '/job:localhost'"),
        ("worker", "did you mean '/job:worker'"),
        ("3", "'/task:3', or the int 3"),
        (" CPU:0", "remove the space"),
        ("/task:*", "use None"),
        ("/task:1/task:2", "task twice"),
    ],
)
def test_refusals_say_what_to_do(text, remedy):
    with pytest.raises(ValueError, match="experimental_io_device") as caught:
        parse_device(text)
    assert remedy in str(caught.value)


def test_unknown_job_lists_the_jobs():
    with pytest.raises(ValueError, match=r"no job 'ps'; the jobs are localhost, chief, coordinator, master .* worker"):
        resolve_process("/job:ps/task:0")


def test_job_with_one_task_says_how_to_name_another_process():
    with pytest.raises(ValueError, match="write '/job:worker/task:2' for process 2"):
        resolve_process("/job:localhost/task:2")


def test_integers_of_numpy_become_python_integers():
    parsed = parse_device(np.int64(2))
    assert parsed == 2
    assert type(parsed) is int


def test_devices_and_none_stay_as_they_are():
    device = jax.devices()[0]
    assert parse_device(device) is device
    assert parse_device(None) is None


@pytest.mark.parametrize(
    "value",
    [0, np.uint8(0), "/job:localhost", "/task:0", "CPU", "cpu:7", "/device:CPU:7", "/job:worker/task:0/device:CPU:*"],
)
def test_what_exists_in_a_job_of_one_process_resolves_to_it(value):
    assert resolve_process(value) == 0


def test_none_resolves_to_none():
    assert resolve_process(None) is None


def test_device_objects_resolve_to_their_process():
    assert [resolve_process(device) for device in jax.devices()] == [0] * jax.device_count()


@pytest.mark.parametrize("value", [1, 99, 2**70])
def test_indices_out_of_range_are_refused_at_use(value):
    assert parse_device(value) == value
    with pytest.raises(ValueError, match=rf"there is no process {value}\. This job has one process, task 0\."):
        resolve_process(value)


@pytest.mark.parametrize(
    "text",
    [
        "/device:CPU:99",
        "cpu:8",
        "/gpu:0",
        "GPU",
        "/job:localhost/device:GPU:0",
        "TPU:0",
        "/device:CUDA:0",
        "/device:XLA_CPU:0",
    ],
)
def test_devices_that_do_not_exist_are_refused_at_use_with_a_list(text):
    assert parse_device(text) == text
    with pytest.raises(ValueError, match=r"process 0 has no device .* Process 0 has CPU:0 to CPU:7\.") as caught:
        resolve_process(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", ["garbage", "", True, 1.5, b"CPU:0"])
def test_resolving_parses_first(value):
    with pytest.raises(ValueError, match="experimental_io_device"):
        resolve_process(value)


jobs = st.sampled_from(["worker", "localhost", "chief", "coordinator", "master", "ps", "*", None])
numbers = st.one_of(st.none(), st.just("*"), st.integers(0, 5))
types = st.sampled_from(["CPU", "cpu", "Gpu", "TPU", "*", None])


def write_spec(job, replica, task, device_type, ordinal, prefix, slash):
    """The text of a device string, and its parts."""
    parts = []
    for name, value in (("job", job), ("replica", replica), ("task", task)):
        if value is not None:
            parts.append(f"{name}:{value}")
    if device_type is not None:
        prefix = prefix or device_type == "*"
        parts.append(("device:" if prefix else "") + device_type + ("" if ordinal is None else f":{ordinal}"))
    else:
        ordinal = None

    def plain(value):
        return None if value == "*" else value

    kind = plain(device_type)
    spec = DeviceSpec(plain(job), plain(replica), plain(task), kind and kind.upper(), plain(ordinal))
    return parts, slash, spec


@given(
    st.builds(write_spec, jobs, numbers, numbers, types, numbers, st.booleans(), st.booleans()),
    st.randoms(use_true_random=False),
)
def test_parts_survive_in_any_order(written, random):
    parts, slash, spec = written
    random.shuffle(parts)
    text = ("/" if slash else "") + "/".join(parts)
    nameless = spec.job is None and spec.replica is None and spec.task is None and spec.device_type is None
    if nameless or (spec.ordinal is not None and spec.device_type is None):
        with pytest.raises(ValueError, match="experimental_io_device"):
            parse_spec(text)
    else:
        assert parse_spec(text) == spec


@given(
    st.builds(DeviceSpec, jobs.filter(lambda job: job != "*"), *[st.none() | st.integers(0, 5)] * 2), st.integers(1, 5)
)
def test_named_process_is_in_the_job_or_refused(spec, count):
    index = 0 if spec.task is None else spec.task
    one_task = spec.job in ("localhost", "chief", "coordinator", "master")
    known = spec.job in (None, "worker") or one_task
    named = not (spec.job == "worker" and spec.task is None)
    if known and named and not spec.replica and index < (1 if one_task else count):
        assert process_of(spec, "text", count) == index
    else:
        with pytest.raises(ValueError, match="This job has"):
            process_of(spec, "text", count)


@given(st.text(alphabet="/:*jobtaskreplicadeviceCPUgw0123 \n", max_size=30) | st.text(max_size=10))
@example("/")
@example("CPU:0\n")
def test_any_text_parses_or_is_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert parse_spec(text) != DeviceSpec()


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.lists(st.integers()))
def test_any_value_parses_or_is_a_value_error(value):
    if value is None or (type(value) is int and value >= 0):
        assert parse_device(value) == value
    else:
        with pytest.raises(ValueError, match="experimental_io_device"):
            parse_device(value)


@pytest.mark.slow
def test_parsing_does_not_initialise_jax():
    program = """
        import jax
        from jaxckpt.options import CheckpointOptions
        for device in (None, 3, "/job:worker/task:3/device:GPU:0", "CPU:0"):
            CheckpointOptions(device)
        from jax._src import xla_bridge
        assert not xla_bridge.backends_are_initialized()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


JOB = """
    import json, sys
    import jax
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    from jaxckpt.job.devices import resolve_process
    values = [None, 0, 1, 2, "/job:localhost", "/task:1", "/job:worker/task:1/device:CPU:7", "/task:1/device:CPU:8",
              "/job:worker", "/task:2", "CPU:0", "/gpu:0", *jax.devices()]
    answers = []
    for value in values:
        try:
            answers.append(resolve_process(value))
        except ValueError as error:
            answers.append(str(error))
    print(json.dumps(answers))
"""


@pytest.mark.job
@pytest.mark.timeout(180)
def test_every_process_of_a_job_resolves_alike():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(JOB), port]
    processes = [
        subprocess.Popen([*command, str(k)], env=os.environ, stdout=subprocess.PIPE, text=True) for k in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    answers = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert answers[0] == answers[1]
    none, zero, one, two, localhost, task, device, missing_device, worker, missing_task, cpu, gpu, *objects = answers[0]
    assert [none, zero, one, localhost, task, device, cpu] == [None, 0, 1, 0, 1, 1, 0]
    assert objects == [0] * 8 + [1] * 8
    assert "process 1 has no device CPU:8" in missing_device
    assert "Process 1 has CPU:0 to CPU:7." in missing_device
    assert "process 0 has no device GPU:0" in gpu
    for message in (two, worker, missing_task, missing_device, gpu):
        assert "This job has 2 processes, tasks 0 to 1." in message
