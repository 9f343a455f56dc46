"""Policies of Orbax in a manager: which checkpoints it keeps, when it saves; metrics; numbers that are steps."""

import datetime
import inspect
import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import plain_orbax
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint import checkpoint_managers as orbax

import jaxckpt
from jaxckpt.directory import policies

pytestmark = pytest.mark.sampled


def make(directory: Path, max_to_keep: int | None = None, **arguments: Any) -> tuple[Any, jaxckpt.CheckpointManager]:
    checkpoint: Any = jaxckpt.Checkpoint(value=np.zeros(4), step=0)
    arguments.setdefault("step_counter", lambda: checkpoint.step)
    return checkpoint, jaxckpt.CheckpointManager(checkpoint, directory, max_to_keep, **arguments)


def train(manager: jaxckpt.CheckpointManager, steps: Any, losses: Any = None, **arguments: Any) -> list[str | None]:
    """Saves at each step; returns the names of the checkpoints."""
    paths = []
    for index, step in enumerate(steps):
        manager.checkpoint.step = step
        metrics = None if losses is None else {"loss": losses[index]}
        path = manager.save(metrics=metrics, **arguments)
        paths.append(None if path is None else os.path.basename(path))
    return paths


def kept(manager: jaxckpt.CheckpointManager) -> list[str]:
    found = [os.path.basename(path) for path in manager.checkpoints]
    on_disk = [name for name in os.listdir(manager.directory) if name != "checkpoint"]
    assert sorted(found) == sorted(on_disk)
    return found


LOWEST = {"get_metric_fn": lambda metrics: metrics["loss"], "reverse": True}


class TestPreservation:
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            (orbax.LatestN(2), [5, 6]),
            (orbax.LatestN(None), [1, 2, 3, 4, 5, 6]),
            (orbax.EveryNSteps(20), [2, 4, 6]),
            (orbax.EveryNSteps(25, exact_interval=False), [1, 4, 6]),
            (orbax.EveryNStepsClosest(30), [3, 6]),
            (orbax.CustomSteps([10, 50]), [1, 5, 6]),
            (orbax.BestN(n=2, **LOWEST), [2, 4, 6]),
            (orbax.BestN(n=1, get_metric_fn=lambda metrics: metrics["loss"]), [1, 6]),
            (orbax.AnyPreservationPolicy([orbax.BestN(n=1, **LOWEST), orbax.LatestN(2)]), [4, 5, 6]),
            (orbax.LatestDuration(datetime.timedelta(0)), [6]),
        ],
        ids=lambda value: type(value).__name__ if hasattr(value, "should_preserve") else "kept",
    )
    def test_orbax_policies_alone(self, policy: Any, expected: list[int], tmp_path: Path) -> None:
        """Without `max_to_keep` the policy decides; but the checkpoint that was just saved stays."""
        _, manager = make(tmp_path, preservation_policy=policy)
        train(manager, range(10, 70, 10), [0.9, 0.2, 0.8, 0.1, 0.7, 0.6])
        if isinstance(policy, orbax.EveryNStepsClosest):
            # It decides anew after each save, as in Orbax: 20 was the closest to 30 at its time, and is gone before 30 comes.
            assert kept(manager)[-1] == "ckpt-6"
        else:
            assert kept(manager) == [f"ckpt-{number}" for number in expected]

    def test_the_same_as_orbaxs_manager(self, tmp_path: Path) -> None:
        losses = [0.5, 0.4, 0.9, 0.3, 0.35, 0.6, 0.2, 0.8]
        policy = orbax.AnyPreservationPolicy([orbax.BestN(n=2, **LOWEST), orbax.EveryNSteps(3), orbax.LatestN(1)])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=lambda metrics: -metrics["loss"])
        with ocp.CheckpointManager(tmp_path / "orbax", options=options) as theirs:
            for step, loss in enumerate(losses):
                theirs.save(step, args=ocp.args.StandardSave({"value": np.zeros(2)}), metrics={"loss": loss})
            theirs.wait_until_finished()
            expected = [f"ckpt-{step}" for step in theirs.all_steps()]
        _, manager = make(tmp_path / "ours", preservation_policy=policy, numbers="step")
        train(manager, range(len(losses)), losses)
        assert kept(manager) == expected

    def test_with_max_to_keep_either_keeps(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, 2, preservation_policy=orbax.BestN(n=1, **LOWEST))
        train(manager, range(6), [0.9, 0.1, 0.8, 0.7, 0.6, 0.5])
        assert kept(manager) == ["ckpt-2", "ckpt-5", "ckpt-6"]

    def test_after_a_restart_and_a_move(self, tmp_path: Path) -> None:
        """Steps, times and metrics of earlier checkpoints come from the files."""
        _, manager = make(tmp_path / "a", preservation_policy=orbax.LatestN())
        train(manager, [100, 250, 300], [0.1, 0.5, 0.2])
        # All files have new times.
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        seen: list[Any] = []

        class Watch:
            def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
                seen[:] = checkpoints
                assert isinstance(context, orbax.PreservationContext)
                return [True] * len(checkpoints)

        _, later = make(tmp_path / "b", preservation_policy=Watch())
        train(later, [400], [0.3])
        assert [info.step for info in seen] == [100, 250, 300, 400]
        assert [info.metrics["loss"] for info in seen] == [0.1, 0.5, 0.2, 0.3]
        now = datetime.datetime.now(datetime.UTC)
        assert all(datetime.timedelta(0) <= now - info.time < datetime.timedelta(hours=1) for info in seen)
        assert [info.time for info in seen] == sorted(info.time for info in seen)
        saved = jaxckpt.get_checkpoint_state(tmp_path / "b")
        assert saved is not None
        assert [info.time.timestamp() for info in seen] == pytest.approx(saved.all_model_checkpoint_timestamps)
        _, last = make(tmp_path / "b", preservation_policy=orbax.BestN(n=1, **LOWEST))
        train(last, [500], [0.9])
        assert kept(last) == ["ckpt-1", "ckpt-5"]

    def test_a_plain_save_in_the_same_directory_is_managed(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, preservation_policy=orbax.LatestN(1), step_counter=None)
        checkpoint.save(tmp_path / "ckpt")
        train(manager, [1])
        assert kept(manager) == ["ckpt-2"]

    @pytest.mark.parametrize(
        ("policy", "why"),
        [
            (orbax.BestN(n=1, get_metric_fn=lambda metrics: metrics["accuracy"]), "KeyError: 'accuracy'"),
            (orbax.EveryNSteps(0), "interval_steps must not be 0"),
            (type("Short", (), {"should_preserve": lambda self, infos, *, context: [True]})(), "1 values for 2"),
            (type("Odd", (), {"should_preserve": lambda self, infos, *, context: [0] * len(infos)})(), "True or False"),
        ],
        ids=["unknown-metric", "raises", "short", "numbers"],
    )
    @pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
    def test_a_policy_that_fails(self, policy: Any, why: str, asynchronous: bool, tmp_path: Path) -> None:
        """The save stays, nothing is deleted, and a warning names the policy."""
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous)
        _, manager = make(tmp_path, 1, preservation_policy=orbax.LatestN(9), options=options)
        train(manager, [1], [0.1])
        manager.sync()
        checkpoint, manager = make(tmp_path, 1, preservation_policy=policy, options=options)
        checkpoint.step = 2
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.save(metrics={"loss": 0.3})
            manager.sync()
        (issued,) = [each for each in caught if each.category is RuntimeWarning]
        # A save in the background has no line of the program: there, it is the line that made the manager.
        helper = Path(inspect.getsourcefile(make) or "").name
        assert Path(issued.filename).name == (helper if asynchronous else Path(__file__).name)
        warning = str(issued.message)
        assert type(policy).__name__ in warning
        assert why in warning
        assert "ckpt-2 is saved" in warning
        assert kept(manager) == ["ckpt-1", "ckpt-2"]

    def test_nan_never_costs_a_good_checkpoint_its_place(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, preservation_policy=orbax.BestN(n=1, **LOWEST))
        train(manager, range(1, 6), [0.3, math.nan, 0.1, math.nan, math.nan])
        assert "ckpt-3" in kept(manager)
        assert len(kept(manager)) <= 3

    def test_a_damaged_checkpoint_is_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        _, manager = make(tmp_path, preservation_policy=orbax.LatestN(1))
        train(manager, [1], [0.5])
        (tmp_path / "ckpt-1" / "metrics" / "metrics").write_text('{"loss": 0.4}')
        _, manager = make(tmp_path, preservation_policy=orbax.LatestN(1))
        train(manager, [2, 3], [0.4, 0.3])
        assert kept(manager) == ["ckpt-1", "ckpt-3"]
        assert "ckpt-1 are unknown" in caplog.text
        with pytest.raises(jaxckpt.CorruptCheckpointError, match="metrics/metrics.*checksum"):
            _ = jaxckpt.load_checkpoint(tmp_path / "ckpt-1").metrics
        assert not jaxckpt.verify(tmp_path / "ckpt-1").ok

    def test_keep_every_n_hours_keeps_what_the_policy_rejects(self, tmp_path: Path) -> None:
        _, manager = make(
            tmp_path, preservation_policy=orbax.LatestN(1), keep_checkpoint_every_n_hours=1e-7, step_counter=None
        )
        train(manager, [1, 2, 3])
        assert [os.path.basename(path) for path in manager.checkpoints] == ["ckpt-3"]
        assert (tmp_path / "ckpt-1").exists()

    def test_a_lost_state_file(self, tmp_path: Path) -> None:
        """Why the checkpoints are there is unknown then, so they are kept for ever, as with `max_to_keep`."""
        _, manager = make(tmp_path, preservation_policy=orbax.LatestN(3))
        train(manager, [1, 2, 3])
        (tmp_path / "checkpoint").unlink()
        _, manager = make(tmp_path, preservation_policy=orbax.LatestN(1))
        train(manager, [4, 5])
        assert sorted(name for name in os.listdir(tmp_path) if "-" in name) == ["ckpt-1", "ckpt-2", "ckpt-5"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"preservation_policy": 3},
            TypeError,
            "preservation_policy: int lacks Orbax's method should_preserve",
        ),
        ({"preservation_policy": orbax.LatestN}, TypeError, "this is the class LatestN; give an object"),
        ({"preservation_policy": orbax.FixedIntervalPolicy(2)}, TypeError, "should_preserve"),
        ({"save_decision_policy": orbax.LatestN(2)}, TypeError, "save_decision_policy: .*LatestN lacks .* should_save"),
        ({"save_decision_policy": lambda step: True}, TypeError, "should_save"),
        ({"save_decision_policy": orbax.InitialSavePolicy(), "checkpoint_interval": 2}, ValueError, "not both"),
        ({"save_decision_policy": orbax.InitialSavePolicy(), "step_counter": None}, ValueError, "needs a step_counter"),
        ({"numbers": "step", "step_counter": None}, ValueError, 'numbers="step" needs a step_counter'),
        ({"numbers": "steps"}, ValueError, 'must be "saves" or "step", got \'steps\''),
        ({"numbers": None}, ValueError, "numbers"),
    ],
)
def test_arguments_that_are_refused(arguments: Any, error: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        make(tmp_path, **arguments)
    assert os.listdir(tmp_path) == []


class TestSaveDecisions:
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            (orbax.FixedIntervalPolicy(3), [0, 3, 6, 9]),
            (orbax.SpecificStepsPolicy([2, 5]), [2, 5]),
            (orbax.InitialSavePolicy(), [0]),
            (orbax.ContinuousCheckpointingPolicy(), list(range(10))),
            (orbax.ContinuousCheckpointingPolicy(minimum_interval_secs=1000), [0]),
            (orbax.PreemptionCheckpointingPolicy(), []),
            (orbax.AnySavePolicy([orbax.SpecificStepsPolicy([4]), orbax.FixedIntervalPolicy(5)]), [0, 4, 5]),
        ],
        ids=lambda value: type(value).__name__ if hasattr(value, "should_save") else "saved",
    )
    def test_orbax_policies(self, policy: Any, expected: list[int], tmp_path: Path) -> None:
        _, manager = make(tmp_path, save_decision_policy=policy, numbers="step")
        assert [name for name in train(manager, range(10)) if name] == [f"ckpt-{step}" for step in expected]
        assert manager.last_checkpoint_step == (expected[-1] if expected else None)

    def test_earlier_checkpoints_count(self, tmp_path: Path) -> None:
        make_one = {"save_decision_policy": orbax.InitialSavePolicy()}
        _, manager = make(tmp_path, **make_one)
        assert train(manager, [1, 2]) == ["ckpt-1", None]
        _, manager = make(tmp_path, **make_one)
        assert train(manager, [1, 2]) == [None, None]

    def test_what_it_is_told(self, tmp_path: Path) -> None:
        told: list[Any] = []

        class Watch:
            def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
                told.append((step, list(previous_steps), context))
                return bool(step.step != 2)

        _, manager = make(tmp_path, save_decision_policy=Watch())
        assert train(manager, [1, 2, 3], [0.5, 0.4, 0.3]) == ["ckpt-1", None, "ckpt-2"]
        step, previous, context = told[-1]
        assert (step.step, step.metrics) == (3, {"loss": 0.3})
        assert [(info.step, info.metrics) for info in previous] == [(1, {"loss": 0.5})]
        assert isinstance(context, orbax.DecisionContext)
        assert (context.is_saving_in_progress, context.reached_preemption) == (False, False)

    def test_a_save_in_progress(self, tmp_path: Path) -> None:
        """A callback blocks the save in the background, so it is in progress as long as the test wants."""
        import threading

        go = threading.Event()
        options = jaxckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=[lambda: go.wait(60)])
        _, manager = make(
            tmp_path, save_decision_policy=orbax.ContinuousCheckpointingPolicy(), numbers="step", options=options
        )
        assert train(manager, [1, 2, 3]) == ["ckpt-1", None, None]
        go.set()
        manager.sync()
        assert train(manager, [4]) == ["ckpt-4"]
        manager.sync()

    def test_a_failed_save_does_not_count(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, save_decision_policy=orbax.InitialSavePolicy())
        checkpoint.value = object()
        with pytest.raises(TypeError):
            manager.save()
        checkpoint.value = np.ones(2)
        assert train(manager, [0]) == ["ckpt-1"]

    def test_a_policy_that_raises(self, tmp_path: Path) -> None:
        class Broken:
            def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> Any:
                return 1 / 0 if step.step else "yes"

        checkpoint, manager = make(tmp_path, save_decision_policy=Broken())
        with pytest.raises(TypeError, match="should_save must give True or False, got 'yes'"):
            manager.save()
        checkpoint.step = 7
        with pytest.raises(ZeroDivisionError) as caught:
            manager.save()
        assert "Broken" in caught.value.__notes__[0]
        assert "step 7" in caught.value.__notes__[0]
        assert manager.checkpoints == []
        # Without the policy's consent it can still be saved.
        assert manager.save(check_interval=False) is not None


class TestNumbersOfSteps:
    def test_the_number_is_the_step(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, 2, numbers="step", checkpoint_interval=100)
        assert train(manager, [100, 150, 200, 350]) == ["ckpt-100", None, "ckpt-200", "ckpt-350"]
        assert kept(manager) == ["ckpt-200", "ckpt-350"]
        assert checkpoint.save_counter == 3
        other, again = make(tmp_path, 2, numbers="step", checkpoint_interval=100)
        assert again.restore_or_initialize() == str(tmp_path / "ckpt-350")
        assert other.step == again.last_checkpoint_step == 350
        assert train(again, [400, 450]) == [None, "ckpt-450"]

    def test_a_finished_run_that_is_started_again(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, numbers="step", checkpoint_interval=100)
        train(manager, [300])
        checkpoint, again = make(tmp_path, numbers="step", checkpoint_interval=100)
        again.restore_or_initialize()
        # The last line of a training program: no warning, which would be an error here.
        assert again.save(check_interval=False) is None
        checkpoint.step = 301
        assert again.save(check_interval=False) == str(tmp_path / "ckpt-301")

    def test_a_step_that_repeats_or_goes_back(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, numbers="step")
        assert train(manager, [5]) == ["ckpt-5"]
        with pytest.warns(UserWarning, match="Nothing was saved: step 5 is saved already") as caught:
            assert train(manager, [5]) == [None]
        assert caught[0].filename == __file__
        # It says so once.
        assert train(manager, [5, 4, 3]) == [None, None, None]
        assert train(manager, [6]) == ["ckpt-6"]
        checkpoint.step = 4
        assert manager.save(check_interval=False) == str(tmp_path / "ckpt-4")

    def test_a_step_that_goes_back(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, numbers="step")
        train(manager, [5])
        with pytest.warns(UserWarning, match="the step went back from 5, which was saved, to 4"):
            assert train(manager, [4]) == [None]

    def test_a_program_that_forgot_to_restore_replaces_nothing(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, numbers="step")
        checkpoint.value = np.ones(4)
        train(manager, [10, 20])
        checkpoint, manager = make(tmp_path, numbers="step")
        with pytest.warns(
            UserWarning, match=r"checkpoint of step 20, of an earlier run .*restore_or_initialize\(\)"
        ) as told:
            assert train(manager, [5]) == ["ckpt-5"]
        assert told[0].filename == __file__
        with pytest.warns(UserWarning, match=r"checkpoint of step 10 already.*checkpoint_number=10\) replaces it"):
            assert train(manager, [10]) == [None]
        assert jaxckpt.load_variable(tmp_path / "ckpt-10", "value").tolist() == [1.0] * 4
        assert manager.save(checkpoint_number=10) == str(tmp_path / "ckpt-10")
        assert jaxckpt.load_variable(tmp_path / "ckpt-10", "value").tolist() == [0.0] * 4

    def test_after_a_damaged_one_was_skipped_its_step_is_saved_again(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, numbers="step")
        train(manager, [10, 20])
        shutil.rmtree(tmp_path / "ckpt-20" / "d")
        checkpoint, manager = make(tmp_path, numbers="step")
        with pytest.warns(UserWarning, match="ckpt-20"):
            assert manager.restore_or_initialize(skip_corrupt=True) == str(tmp_path / "ckpt-10")
        assert train(manager, [20, 30]) == ["ckpt-20", "ckpt-30"]
        assert jaxckpt.verify(tmp_path / "ckpt-20").ok
        assert checkpoint.step == 30

    def test_a_negative_step(self, tmp_path: Path) -> None:
        checkpoint, manager = make(tmp_path, numbers="step")
        checkpoint.step = -1
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            manager.save()

    def test_counting_saves_stays_the_default(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path)
        assert train(manager, [500, 500, 400]) == ["ckpt-1", "ckpt-2", "ckpt-3"]


class TestMetrics:
    @pytest.mark.parametrize("shard", [None, 1 << 20], ids=["ocdbt", "file-for-each-chunk"])
    def test_where_orbax_keeps_them(self, shard: int | None, tmp_path: Path) -> None:
        """Orbax's handler of metrics reads them, and its checkpointers read the tree as if there were none."""
        policy = None if shard is None else jaxckpt.MaxShardSizePolicy(shard)
        options = jaxckpt.CheckpointOptions(experimental_sharding_callback=policy)
        checkpoint = jaxckpt.Checkpoint(metrics=np.arange(3.0), value=jnp.ones(2))
        manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, 3, options=options)
        path = manager.save(metrics={"loss": 0.25, "epoch": 3})
        assert path is not None
        handler = ocp.JsonCheckpointHandler(filename="metrics")
        assert handler.restore(epath.Path(path) / "metrics") == {"loss": 0.25, "epoch": 3}
        for api, tree in plain_orbax.restored(path):
            assert sorted(tree) == ["metrics", "value"], api
            assert "metadata" in api or tree["metrics"].tolist() == [0.0, 1.0, 2.0], api
        assert jaxckpt.load_checkpoint(path).metrics == {"loss": 0.25, "epoch": 3}
        assert sorted(jaxckpt.load_checkpoint(path).keys()) == ["metrics", "save_counter", "value"]
        assert jaxckpt.verify(path).ok
        digests = json.loads((Path(path) / "_JAXCKPT").read_text().splitlines()[0])["files"]
        assert "metrics/metrics" in digests

    def test_of_orbaxs_manager(self, tmp_path: Path) -> None:
        options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
        with ocp.CheckpointManager(tmp_path, options=options) as manager:
            manager.save(3, args=ocp.args.StandardSave({"w": np.ones(2)}), metrics={"loss": math.nan, "more": {"a": 1}})
        found = jaxckpt.load_checkpoint(tmp_path / "3").metrics
        assert math.isnan(found.pop("loss"))
        assert found == {"more": {"a": 1}}

    def test_values(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path)
        given = {
            "int": 2**60 + 1,
            "float": 0.1,
            "numpy": np.float32(0.5),
            "jax": jnp.int32(7),
            "bfloat16": jnp.bfloat16(1.5),
            "array": np.array(4),
            "infinite": -math.inf,
        }
        path = manager.save(metrics=given)
        assert path is not None
        assert jaxckpt.load_checkpoint(path).metrics == {
            "int": 2**60 + 1,
            "float": 0.1,
            "numpy": 0.5,
            "jax": 7,
            "bfloat16": 1.5,
            "array": 4,
            "infinite": -math.inf,
        }
        assert jaxckpt.load_checkpoint(make(tmp_path / "b")[1].save() or "").metrics == {}

    @pytest.mark.parametrize(
        ("metrics", "match"),
        [
            ([("loss", 1.0)], "metrics must be a mapping"),
            ({3: 1.0}, "name of a metric must be text, got 3"),
            ({"loss": "low"}, r"metrics\['loss'\] must be a real number, got 'low'"),
            ({"loss": None}, "real number"),
            ({"loss": True}, "real number"),
            ({"loss": 1j}, "real number"),
            ({"loss": np.ones(2)}, r"array of float64 with shape \(2,\)"),
        ],
    )
    def test_values_that_are_refused(self, metrics: Any, match: str, tmp_path: Path) -> None:
        _, manager = make(tmp_path)
        with pytest.raises(TypeError, match=match):
            manager.save(metrics=metrics)
        assert os.listdir(tmp_path) == []

    def test_the_best(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path)
        assert manager.best_checkpoint("loss") is None
        train(manager, range(5), [math.nan, 0.5, 0.2, 0.2, 0.9])
        manager.save()
        assert manager.best_checkpoint("loss") == str(tmp_path / "ckpt-4")
        assert manager.best_checkpoint("loss", "max") == str(tmp_path / "ckpt-5")
        assert manager.best_checkpoint("accuracy") is None
        _, later = make(tmp_path)
        assert later.best_checkpoint("loss") == str(tmp_path / "ckpt-4")
        with pytest.raises(ValueError, match='mode must be "min" or "max", got \'least\''):
            manager.best_checkpoint("loss", "least")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="metric"):
            manager.best_checkpoint(3)  # type: ignore[arg-type]

    def test_a_preserved_checkpoint_may_be_the_best(self, tmp_path: Path) -> None:
        _, manager = make(tmp_path, 1, keep_checkpoint_every_n_hours=1e-7)
        train(manager, [1], [0.1])
        time.sleep(0.01)
        train(manager, [2, 3], [0.5, 0.6])
        assert manager.checkpoints == [str(tmp_path / "ckpt-3")]
        assert manager.best_checkpoint("loss") == str(tmp_path / "ckpt-1")

    @given(losses=st.lists(st.floats() | st.sampled_from([0.0, 1.0]), max_size=6), mode=st.sampled_from([min, max]))
    def test_any_values(self, losses: list[float], mode: Any) -> None:
        now = datetime.datetime.now(datetime.UTC)
        infos = {str(index): policies.CheckpointInfo(index, now, {"loss": loss}) for index, loss in enumerate(losses)}
        real = [loss for loss in losses if not math.isnan(loss)]
        expected = str(losses.index(mode(real))) if real else None
        assert policies.best(infos, "loss", 1 if mode is max else -1) == expected


@pytest.mark.parametrize(
    "arguments",
    [{"checkpoint_interval": 2}, {"save_decision_policy": orbax.FixedIntervalPolicy(2), "numbers": "step"}],
    ids=["interval", "policy"],
)
def test_metrics_are_awaited_only_if_a_save_is_due(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A value that a device still computes would hold up each step of a loop. A deleted one shows whether it is read."""
    checkpoint: Any = jaxckpt.Checkpoint(value=np.zeros(2), step=2)
    manager = jaxckpt.CheckpointManager(checkpoint, tmp_path, None, step_counter=lambda: checkpoint.step, **arguments)
    path = manager.save(metrics={"loss": jnp.float32(0.5)})
    assert jaxckpt.load_checkpoint(path or "").metrics == {"loss": 0.5}
    gone = jnp.float32(0.25)
    gone.delete()
    checkpoint.step = 3
    assert manager.save(metrics={"loss": gone}) is None
    # What cannot be a metric is refused at once all the same.
    with pytest.raises(TypeError, match=r"metrics\['loss'\]"):
        manager.save(metrics={"loss": jnp.zeros(2)})
    checkpoint.step = 4
    with pytest.raises(TypeError, match=r"metrics\['loss'\] cannot be read"):
        manager.save(metrics={"loss": gone})
    assert manager.save(metrics={"loss": 1}) is not None
