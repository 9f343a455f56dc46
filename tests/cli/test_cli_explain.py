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
        "  keep_checkpoint_every_n_hours: null",
        "  checkpoint_name: ckpt",
        "  step_counter: builtins:int",
        "  checkpoint_interval: 10",
        "  init_fn: null",
        "  last_checkpoint_step: null",
        "  preservation_policy: null",
        "  save_decision_policy: null",
        "  numbers: saves",
        "  -> save() saves every 10 steps",
        "  -> runs/ckpt-5 is that of the fifth save",
        "  -> a checkpoint is kept if it is among the newest 3",
    ]
    assert orbax == f"{jaxckpt.to_orbax(jaxckpt.load_config(config).options)}\n"
    assert "AsyncCheckpointer" in orbax


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


def test_all_problems_in_one_line(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("max_to_keep: 0\noptions: {enable_asinc: true}\n")
    assert main(["explain", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jaxckpt explain: error: 3 problems in {path}: ")
    assert "enable_async" in line
    assert "directory" in line


def test_a_device_that_does_not_exist(config, capsys):
    assert main(["explain", "--set", "options.experimental_io_device=/task:7", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "7" in line


def test_nothing_is_written(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(config)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
