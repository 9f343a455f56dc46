"""``jaxckpt demo``: real training, in processes of their own, interrupted and killed; the losses are those of an undisturbed run."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import plain_orbax
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import jaxckpt
from jaxckpt import demo, storage
from jaxckpt.cli import main
from jaxckpt.demo import losses, settings
from jaxckpt.demo.saves import SaveLog

# Some of them run several programs, one after the other.
pytestmark = pytest.mark.timeout(900)
_STEPS = 160
_CONFIG = f"""
training: {{steps: {_STEPS}, batch_size: 64, hidden: 32, warmup_steps: 20, decay_steps: {_STEPS}}}
checkpoint:
  directory: unused
  max_to_keep: 2
  checkpoint_interval: 4
  last_checkpoint_step: 0
  options: {{enable_async: true, experimental_write_callbacks: ["jaxckpt.demo:announce"]}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A short training with many saves."""
    path = tmp_path_factory.mktemp("config") / "short.yaml"
    path.write_text(_CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(config, cli, tmp_path_factory):
    """The directory of a run that nothing interrupted, and what it printed."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    done = cli("demo", "--config", config, "--dir", directory)
    assert (done.returncode, done.stderr) == (0, "")
    return directory, done.stdout


def rows(directory):
    path = Path(directory, "losses.csv")
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def assert_same_training(directory, other, *options):
    """Asserts that losses and final checkpoints are the same, bit for bit.

    Args:
      directory: directory of a run.
      other: directory of another run.
      options: of the command that compares checkpoints.
    """
    assert Path(directory, "losses.csv").read_bytes() == Path(other, "losses.csv").read_bytes()
    assert main(["diff", str(directory), str(other), *options]) == 0


def test_a_run(undisturbed):
    directory, text = undisturbed
    assert "starting at step 0" in text
    assert f"saved {directory}/ckpt-4: training blocked " in text
    assert text.count("  saved ") == _STEPS // 4
    # The words are in the summary too.
    assert text.count(" ms, written in ") == _STEPS // 4 + 1
    assert f"trained {_STEPS} steps to step {_STEPS}: loss " in text

    table = Path(directory, "losses.csv").read_text().splitlines()
    assert table[0] == "step,loss"
    assert [int(line.split(",")[0]) for line in table[1:]] == list(range(1, _STEPS + 1))
    values = [float(line.split(",")[1]) for line in table[1:]]
    # The model learns.
    assert np.mean(values[-20:]) < 0.5 * np.mean(values[:20])

    state = jaxckpt.get_checkpoint_state(directory)
    assert [Path(path).name for path in state.all_model_checkpoint_paths] == [f"ckpt-{_STEPS - 4}", f"ckpt-{_STEPS}"]
    assert jaxckpt.verify(jaxckpt.latest_checkpoint(directory)).ok
    assert Path(directory, "steps.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_plain_orbax_opens_its_checkpoints(undisturbed):
    """Its optimizer is a sequence with a hole: weight decay has no state."""
    path = jaxckpt.latest_checkpoint(undisturbed[0])
    reader = jaxckpt.load_checkpoint(path)
    expected = {name: reader.get_tensor(name) for name in reader.keys() if name != "save_counter"}
    assert reader.tree()["optimizer"]["opt_state"].keys() == {0, 2}
    opened = list(plain_orbax.restored(path, standard=False))
    target = jax.tree.map(blank, opened[0][1])
    opened += plain_orbax.restored(path, target, standard=False)
    for api, found in opened:
        leaves = {
            "/".join(str(getattr(key, "key", getattr(key, "idx", None))) for key in where): leaf
            for where, leaf in jax.tree_util.tree_leaves_with_path(found)
        }
        assert leaves.keys() == expected.keys(), api
        for name, leaf in leaves.items() if "metadata" not in api else ():
            if plain_orbax.is_key(leaf):
                leaf = jax.random.key_data(leaf)
            np.testing.assert_array_equal(np.asarray(leaf), expected[name], err_msg=f"{api}: {name}")


def blank(leaf):
    if plain_orbax.is_key(leaf):
        return jax.random.wrap_key_data(jax.random.key_data(leaf) * 0, impl=jax.random.key_impl(leaf))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else type(leaf)()


def test_run_again_it_goes_on_where_it_stopped(config, undisturbed, cli, tmp_path, capsys):
    begin = ["demo", "--json", "--config", config, "--dir", tmp_path / "run", "--steps"]
    # 101 is not a multiple of the interval: the last step is saved all the same.
    first = cli(*begin, 101)
    assert (first.returncode, first.stderr) == (0, "")
    result = json.loads(first.stdout)
    assert (result["restored"], result["first_step"], result["last_step"]) == (None, 0, 101)
    assert [save["step"] for save in result["saves"]] == [*range(4, 101, 4), 101]
    assert all(save["blocked_secs"] > 0 and save["written_secs"] > 0 for save in result["saves"])

    result = json.loads(cli(*begin, _STEPS).stdout)
    assert result["restored"] == f"{tmp_path}/run/ckpt-101"
    assert (result["first_step"], result["last_step"], result["steps_trained"]) == (101, _STEPS, _STEPS - 101)
    assert 0.8 < result["test_accuracy"] <= 1
    losses_csv = Path(undisturbed[0], "losses.csv").read_bytes()
    assert (tmp_path / "run" / "losses.csv").read_bytes() == losses_csv

    assert main(["demo", "--config", str(config), "--dir", str(tmp_path / "run"), "--steps", "100"]) == 0
    text = capsys.readouterr().out
    assert f"already trained to step {_STEPS}" in text
    assert "test accuracy" in text
    assert (tmp_path / "run" / "losses.csv").read_bytes() == losses_csv


def disturbed(cli_command, config, directory, step, chance, number, **options):
    """Starts a training that would not end, and sends it a signal a moment after a step. Returns the process, which goes on or ends.

    The signal comes in the training, however slowly this process is woken; and in that of this program, not in its start.
    """
    command, environment = cli_command
    begin = rows(directory)
    process = subprocess.Popen(
        [*command, "demo", "--config", str(config), "--dir", str(directory), "--steps", "1000000"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        **options,
    )
    while rows(directory) < max(step, begin + 1) and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))  # Anywhere: in a step, a snapshot, a write, a commit, a deletion.
    process.send_signal(number)
    return process


def assert_goes_on(cli, config, directory, undisturbed, tmp_path, *options):
    """Asserts that the training goes on, and ends as one that nothing disturbed, which may have had to be longer than usual."""
    begin = ["demo", "--config", config, "--steps", max(_STEPS, rows(directory) + 1), "--dir"]
    finished = cli(*begin, directory)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "resuming after step" in finished.stdout
    other = undisturbed[0]
    if rows(directory) > _STEPS:
        other = tmp_path / "straight"
        assert cli(*begin, other).returncode == 0
    assert_same_training(directory, other, *options)


def test_it_survives_an_interrupt_and_kills_at_any_moment(config, undisturbed, cli, cli_command, tmp_path):
    directory = tmp_path / "run"
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    signals = [signal.SIGINT, signal.SIGKILL, signal.SIGKILL]
    steps = sorted(chance.sample(range(6, _STEPS - 10), len(signals)))
    with Path(tmp_path, "output").open("w+") as output:
        for number, step in zip(signals, steps, strict=True):
            with disturbed(cli_command, config, directory, step, chance, number, stdout=output) as process:
                pass
            output.seek(0)
            assert process.returncode in (-number, 128 + number), output.read()
    assert_goes_on(cli, config, directory, undisturbed, tmp_path)
    assert storage.leftovers(str(directory)) == []


def test_on_sigterm_it_saves_and_goes_on_with_the_same_losses(config, undisturbed, cli, cli_command, tmp_path):
    """The last step that it logged is saved, whatever the interval; the losses are those of an undisturbed run, bit for bit."""
    directory = tmp_path / "run"
    chance = random.Random()
    for step in sorted(chance.sample(range(6, _STEPS - 20), 2)):
        with disturbed(
            cli_command, config, directory, step, chance, signal.SIGTERM, stdout=subprocess.PIPE, text=True
        ) as process:
            text = process.communicate()[0]
        assert process.returncode == 143, text
        assert f"ended by SIGTERM at step {rows(directory)}, which is saved" in text
        assert jaxckpt.latest_checkpoint(directory) == f"{directory}/ckpt-{rows(directory)}"
        assert storage.leftovers(str(directory)) == []
    # What was saved because of the signals counts as well.
    assert_goes_on(cli, config, directory, undisturbed, tmp_path, "--ignore", "save_counter")


def test_another_seed_is_refused(config, undisturbed, tmp_path, capsys):
    changed = yaml.safe_load(config.read_text())
    changed["training"]["seed"] = 1
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(changed))
    assert main(["demo", "--config", str(other), "--dir", str(undisturbed[0])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed 0" in line


def test_packages_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.setitem(sys.modules, "optax", None)
    assert main(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxckpt demo: error: ")
    assert "flax, optax" in line
    assert line.endswith("in a clone of the repository: pip install '.[demo]'")


def test_the_config_that_comes_with_jaxckpt():
    training, saving = settings.load(None, steps=None, directory=None)
    assert training == settings.TrainingConfig()
    assert saving.options.enable_async
    assert saving.options.experimental_write_callbacks == [demo.announce]
    training, saving = settings.load(None, steps=7, directory="elsewhere")
    assert training.steps == 7
    assert saving.directory == "elsewhere"


def test_mistakes_in_a_config_are_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "training: {step: 5, dropout: 1.5, warmup_steps: 700}\ncheckpoint: {directory: x, max_to_keep: 1}\n"
    )
    with pytest.raises(jaxckpt.ConfigError) as caught:
        settings.load(str(path), steps=None, directory=None)
    text = str(caught.value)
    assert f"{path}:1: training.step: unknown key; did you mean steps?" in text
    assert "training.dropout: expected a number from 0 up to, but not including, 1, got 1.5" in text
    assert "training.decay_steps: expected more than warmup_steps" in text


def _log(path, last_step, rows=()):
    with losses.LossLog(str(path), last_step) as log:
        for step, loss in rows:
            log.append(step, np.float32(loss))


def test_the_log_of_losses_after_a_kill_at_every_byte(tmp_path):
    path = tmp_path / "losses.csv"
    table = [(1, 2.5), (2, 0.1), (3, 1e-10), (4, 3.0)]
    _log(path, 0, table)
    whole = path.read_bytes()
    assert whole == b"step,loss\n1,2.5\n2,0.1\n3,1e-10\n4,3.0\n"
    for length in range(len(whole) + 1):
        complete = max(0, whole[:length].count(b"\n") - 1)
        for last_step in range(complete + 1):
            path.write_bytes(whole[:length])
            _log(path, last_step, table[last_step:])
            assert path.read_bytes() == whole
    _log(path, 2)
    assert losses.read(str(path)) == ([1, 2], [2.5, pytest.approx(0.1)])


def test_a_file_that_is_no_log_is_not_touched(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("my,own\ntable,1\n")
    with pytest.raises(ValueError, match="is not a log of losses"):
        losses.LossLog(str(path), 0)
    assert path.read_text() == "my,own\ntable,1\n"


@given(batch_size=st.integers(1, 10), before=st.integers(0, 40), after=st.integers(0, 40))
def test_a_stream_of_batches_goes_on_where_another_was(batch_size, before, after):
    from jaxckpt.demo.training import Batches, Examples

    def stream():
        return Batches(Examples(np.arange(10.0), np.arange(10)), batch_size, seed=3)

    first = stream()
    for _ in range(before):
        next(first)
    second = stream()
    second.set_state(json.loads(json.dumps(first.get_state())))
    for _ in range(after):
        assert np.array_equal(next(first)[1], next(second)[1])


def test_an_epoch_shows_every_example_once():
    from jaxckpt.demo.training import Batches, Examples

    stream = Batches(Examples(np.arange(10.0), np.arange(10)), 5, seed=3)
    epochs = [np.concatenate([next(stream)[1], next(stream)[1]]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("order", ["returned first", "written first"])
def test_the_line_of_a_save_waits_for_both_times(order):
    lines = []
    log = SaveLog(lines.append, announced=True)
    log.begin(5)
    reports = [lambda: log.returned(5, "d/ckpt-5"), lambda: log.written("d/ckpt-5")]
    first, second = reports if order == "returned first" else reversed(reports)
    first()
    assert lines == []
    second()
    assert lines[0].startswith("  saved d/ckpt-5: training blocked ")
    log.begin(6)
    # A save was not due.
    log.returned(6, None)
    assert [save.number for save in log.finished()] == [5]


def test_announce_serves_other_configs_too(capsys):
    demo.announce("somewhere/ckpt-1")
    assert capsys.readouterr().out == "saved somewhere/ckpt-1\n"
