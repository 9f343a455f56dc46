"""What a restore matched, and its assertions."""

import gc
import inspect
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from examples import examples
from hypothesis import strategies as st

import jaxckpt

ROOT = Path(__file__).parents[2]
names = st.sets(st.sampled_from(["a", "b", "c", "d/e", "~", ""]), max_size=4)


def checkpoint_of(found: set[str]) -> jaxckpt.Checkpoint:
    return jaxckpt.Checkpoint(tree={name: np.ones(2) for name in found}, empty={"x": {}, "y": None})


@hypothesis.given(stored=names, wanted=names)
@hypothesis.settings(max_examples=examples(30))
def test_missing_and_unexpected(stored: set[str], wanted: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = checkpoint_of(stored).save(tmp_path_factory.mktemp("status") / "ckpt")
    checkpoint = checkpoint_of(wanted)
    status = checkpoint.restore(path).expect_partial()
    spelled = {name: "tree/" + name.replace("~", "~0").replace("/", "~1") for name in stored | wanted}
    assert set(status.missing) == {spelled[name] for name in wanted - stored}
    assert set(status.unexpected) == {spelled[name] for name in stored - wanted}
    assert isinstance(status.missing, tuple)
    assert isinstance(status.unexpected, tuple)
    outcomes = {
        "assert_consumed": stored == wanted,
        "assert_existing_objects_matched": wanted <= stored,
        "assert_nontrivial_match": bool(stored & wanted),
    }
    for assertion, passes in outcomes.items():
        if passes:
            assert getattr(status, assertion)() is status
        else:
            with pytest.raises(AssertionError) as caught:
                getattr(status, assertion)()
            if assertion != "assert_nontrivial_match":
                assert all(name in str(caught.value) for name in status.missing)
    assert status.expect_partial() is status
    assert status.initialize_or_restore() is None
    assert "save_counter" not in {*status.missing, *status.unexpected}


@pytest.mark.parametrize("assertion", ["assert_consumed", "assert_existing_objects_matched", "assert_nontrivial_match"])
def test_nothing_to_restore(assertion: str) -> None:
    checkpoint = jaxckpt.Checkpoint(a=1)
    for status in (checkpoint.restore(None), checkpoint.read(None)):
        with pytest.raises(AssertionError, match="No checkpoint specified"):
            getattr(status, assertion)()
        assert status.expect_partial() is status
        assert status.initialize_or_restore() is None
        assert (status.missing, status.unexpected) == ((), ())
    assert checkpoint.a == 1


@pytest.mark.usefixtures("nothing_dropped")
def test_an_unacknowledged_partial_restore_warns_once(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=1, gone=2).save(tmp_path / "ckpt")
    checkpoint = jaxckpt.Checkpoint(a=0, added=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = checkpoint.restore(path)
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        gc.collect()
        # The warning does not come before the status is dropped.
        assert caught == []
        del status
        gc.collect()
        (warning,) = caught
    assert warning.category is UserWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    assert "added" in str(warning.message)
    assert "gone" in str(warning.message)
    assert "expect_partial" in str(warning.message)


@pytest.mark.usefixtures("nothing_dropped")
@pytest.mark.parametrize(
    "acknowledge", ["assert_consumed", "assert_existing_objects_matched", "assert_nontrivial_match", "expect_partial"]
)
def test_any_acknowledgement_silences_it(acknowledge: str, tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=1, gone=2).save(tmp_path / "ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = jaxckpt.Checkpoint(a=0).restore(path)
        try:
            getattr(status, acknowledge)()
        except AssertionError:
            assert acknowledge == "assert_consumed"
        del status
        gc.collect()
    assert caught == []


@pytest.mark.usefixtures("nothing_dropped")
def test_a_complete_restore_does_not_warn(tmp_path: Path) -> None:
    checkpoint = jaxckpt.Checkpoint(a=1, empty={}, nothing=None)
    path = checkpoint.save(tmp_path / "ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint.restore(path)
        jaxckpt.Checkpoint(a=2, other_empty=[]).restore(path)
        checkpoint.restore(None)
        gc.collect()
    assert caught == []


@pytest.mark.slow
def test_it_warns_at_the_end_of_the_program(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=1, gone=2).save(tmp_path / "ckpt")
    code = """
        import sys, jaxckpt
        status = jaxckpt.Checkpoint(a=0).restore(sys.argv[1])
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", textwrap.dedent(code), path]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.count("Partial restore") == 1
    assert "gone" in done.stderr
    assert "<string>:3: UserWarning: Partial restore" in done.stderr


def test_only_the_counter_is_trivial(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(b=1).save(tmp_path / "ckpt")
    status = jaxckpt.Checkpoint(a=np.ones(2)).restore(path)
    with pytest.raises(AssertionError):
        status.assert_nontrivial_match()


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint().save(tmp_path / "ckpt")
    status = jaxckpt.Checkpoint(many=list(range(1000))).restore(path)
    with pytest.raises(AssertionError) as caught:
        status.assert_consumed()
    assert len(str(caught.value)) < 2000
    assert len(status.missing) == 1000


def test_a_value_added_after_restore_keeps_its_value(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(a=1, late=5).save(tmp_path / "ckpt")
    checkpoint = jaxckpt.Checkpoint(a=0)
    status: Any = checkpoint.restore(path).expect_partial()
    checkpoint.late = 9
    assert checkpoint.late == 9
    assert status.unexpected == ("late",)
