"""``jaxckpt explain``."""

import json

import pytest

import jaxckpt
from jaxckpt.cli import main

_CONFIG = """
directory: runs
max_to_keep: 3
checkpoint_interval: 10
step_counter: "builtins:int"
options:
  enable_async: true
  experimental_io_device: /job:localhost
  experimental_write_callbacks: ["builtins:print"]
  orbax: {timeout_secs: 60}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(_CONFIG)
    return path


def test_text(call, config):
    done = call("explain", config)
    assert (done.returncode, done.stderr) == (0, "")
    manager, orbax = done.stdout.split("\n\n")
    assert manager.splitlines() == [
        "CheckpointManager",
        "  directory: runs",
        "  max_to_keep: 3",
        "  keep_checkpoint_every_n_hours: null (default)",
        "  checkpoint_name: ckpt (default)",
        "  step_counter: builtins:int",
        "  checkpoint_interval: 10",
        "  init_fn: null (default)",
        "  last_checkpoint_step: null (default)",
        "  preservation_policy: null (default)",
        "  save_decision_policy: null (default)",
        "  numbers: saves (default)",
        "  -> save() saves every 10 steps",
        "  -> runs/ckpt-5 is that of the fifth save",
        "  -> a checkpoint is kept if it is among the newest 3",
    ]
    assert orbax == f"{jaxckpt.to_orbax(jaxckpt.load_config(config).options)}\n"
    assert "AsyncCheckpointer" in orbax
    assert "\nenable_async = True\n" in orbax
    assert "\nexperimental_skip_slot_variables = False (default)\n" in orbax
    assert "\norbax.timeout_secs = 60\n" in orbax
    assert "\norbax.compression = None (default)\n" in orbax


def test_policies(config, capsys):
    text = """
preservation_policy: {call: "orbax.checkpoint.checkpoint_managers:LatestN", with: {n: 7}}
save_decision_policy: {call: "orbax.checkpoint.checkpoint_managers:FixedIntervalPolicy", with: {interval: 4}}
numbers: step
"""
    config.write_text(_CONFIG.replace("checkpoint_interval: 10", text))
    assert main(["explain", "--json", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["manager_explanation"] == [
        "save() saves when FixedIntervalPolicy(interval=4) says so",
        "runs/ckpt-500 is the checkpoint of step 500",
        "a checkpoint is kept if it is among the newest 3, or LatestN(n=7) preserves it",
    ]
    config.write_text("directory: runs\nmax_to_keep: null\n")
    assert main(["explain", str(config)]) == 0
    text = capsys.readouterr().out
    assert "-> every call of save() saves" in text
    assert "-> every checkpoint is kept" in text


@pytest.mark.parametrize("key", ["checkpoint_interval: 10", "numbers: step"])
def test_a_step_that_the_config_does_not_have(key, config, call):
    config.write_text(f"directory: runs\nmax_to_keep: 3\n{key}\n")
    assert "this needs a step_counter, which the program has to give" in call("explain", config).stdout
    config.write_text(f"directory: runs\nmax_to_keep: 3\n{key}\nstep_counter: 'builtins:int'\n")
    assert "has to give" not in call("explain", config).stdout


def test_json(config, capsys):
    assert main(["explain", "--json", "--set", "options.enable_async=false", str(config)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["manager"]["max_to_keep"] == 3
    assert found["options"]["enable_async"] is False
    assert found["options"]["experimental_write_callbacks"] == ["builtins:print"]
    assert found["orbax"]["asynchronous"] is False
    assert found["orbax"]["io_process"] == 0
    assert found["orbax"]["array_settings"]["timeout_secs"] == 60
    assert any("experimental_io_device" in line for line in found["explanation"])


def test_a_section(tmp_path, capsys):
    path = tmp_path / "train.toml"
    path.write_text('[train.checkpoint]\ndirectory = "here"\nmax_to_keep = 1\n')
    assert main(["explain", "--section", "train.checkpoint", str(path)]) == 0
    assert "directory: here" in capsys.readouterr().out
    assert main(["explain", "--section", "train.chekpoint", str(path)]) == 1
    assert "checkpoint" in capsys.readouterr().err


def test_each_problem_has_a_line(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("max_to_keep: 0\noptions: {enable_asinc: true}\n")
    assert main(["explain", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    heading, *problems = captured.err.splitlines()
    assert heading == f"jaxckpt explain: error: 3 problems in {path}:"
    assert len(problems) == 3
    assert any("did you mean enable_async?" in line for line in problems)
    assert any("directory" in line for line in problems)
    path.write_text("directory: d\nmax_to_keep: 0\n")
    assert main(["explain", str(path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_device_that_does_not_exist(config, capsys):
    assert main(["explain", "--set", "options.experimental_io_device=/task:7", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "7" in line


def test_nothing_is_written(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(config)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.fixture
def job(config, capsys):
    """Explains a job, and returns its roles: for the processes of each, its tasks."""

    def run(*arguments):
        assert main(["explain", "--json", *arguments, str(config)]) == 0
        found = json.loads(capsys.readouterr().out)
        return found, {tuple(role["processes"]): role["tasks"] for role in found["job"]["roles"]}

    return run


def _amounts(tasks):
    return [task for task in tasks if "1 GiB" in task]


def test_the_io_process_of_a_job_that_does_not_run_here(job):
    device = "options.experimental_io_device=/job:worker/task:2/device:GPU:3"
    found, roles = job("--processes", "4", "--devices-per-process", "4", "--set", device)
    assert found["orbax"]["io_process"] == 2
    assert found["orbax"]["multiprocessing_options"]["active_processes"] == [2]
    assert any("Process 2 does all file access; the other processes send" in line for line in found["explanation"])
    assert set(roles) == {(0,), (1, 3), (2,)}
    assert "does all file access: its disk alone has the checkpoints" in roles[2,]
    assert any(task.startswith("touches no file") for task in roles[1, 3])
    assert any("those of process 0 are stored" in task for task in roles[0,])
    divided, replicated, _ = _amounts(roles[2,])
    assert divided == (
        "of an array of 1 GiB divided over all devices: writes 1.0 GiB, of which 768.0 MiB come from others; its devices need "
        "256.0 MiB in a restore"
    )
    assert "writes 1.0 GiB, of which 0 B come from others; its devices need 1.0 GiB" in replicated
    assert "sends 256.0 MiB; its devices need 256.0 MiB" in _amounts(roles[1, 3])[0]


def test_a_job_that_shares_a_directory(job, config, call):
    _, roles = job("--processes", "3", "--set", "options.experimental_io_device=null")
    assert set(roles) == {(0,), (1, 2)}
    assert any("commits" in task for task in roles[0,])
    assert not any("commits" in task for task in roles[1, 2])
    assert "writes 341.3 MiB; its devices need 1.0 GiB in a restore" in _amounts(roles[1, 2])[1]
    text = call("explain", "--processes", "3", "--set", "options.experimental_io_device=null", config).stdout
    assert "In a job of 3 processes with 1 device each\n  process 0\n    - writes the parts" in text
    assert "\n  processes 1-2\n" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "2", "--set", "options.experimental_io_device=/task:2"], "there is no process 2"),
        (
            [
                "--processes",
                "2",
                "--devices-per-process",
                "4",
                "--set",
                "options.experimental_io_device=/task:1/device:GPU:4",
            ],
            "process 1 has no device GPU:4. Each process has 4.",
        ),
        (["--devices-per-process", "2"], "needs --processes"),
    ],
    ids=["process", "device", "devices alone"],
)
def test_what_such_a_job_does_not_have(arguments, words, config, capsys):
    assert main(["explain", *arguments, str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_no_processes(config, capsys):
    for number in ("0", "x", "100000"):
        with pytest.raises(SystemExit) as end:
            main(["explain", "--processes", number, str(config)])
        assert end.value.code == 2
    assert "must be between 1 and 8,192" in capsys.readouterr().err
