"""Weak types, memory kinds, abstract meshes, casts, and a checkpoint that is deleted meanwhile, in jobs of several processes."""

import re

import mp_targets
import pytest
from jax.sharding import PartitionSpec
from test_targets import run_both


def test_what_a_target_says_is_kept(jobs) -> None:
    run_both(jobs, mp_targets.weak_pinned_and_abstract)


def test_casts_and_scalars(jobs) -> None:
    expected = {
        "not asked for": ("ValueError", r"w: .*bfloat16.*cast=True"),
        "too large": ("ValueError", r"last: .*1\.0*\d*e\+30.*float16"),
        "disagreement": ("ProcessError", r"cast is False on process 0 and True on process 1"),
        "weak on one": ("ProcessError", r"w is .* on process 0, and .*weak.* on process 1"),
        "pinned on one": ("ProcessError", r"w is .* on process 0, and .*pinned_host.* on process 1"),
        "uneven": ("ValueError", r"w: .*sharding does not fit its shape"),
    }
    for found in run_both(jobs, mp_targets.scalars_and_casts):
        for outcomes in found:
            for name, (kind, pattern) in expected.items():
                kinds, text = outcomes[name]
                assert kind in kinds, (name, kinds, text)
                assert re.search(pattern, text), (name, text)


def test_a_checkpoint_that_is_deleted_while_it_is_read(jobs) -> None:
    for found in run_both(jobs, mp_targets.deleted_meanwhile):
        for outcomes in found:
            for kinds, text in outcomes:
                assert "FileNotFoundError" in kinds, (kinds, text)
                assert "CorruptCheckpointError" not in kinds
                assert "deleted while it was read" in text
                assert "experimental_io_device" not in text


@pytest.mark.skipif(not hasattr(PartitionSpec(), "unreduced"), reason="this version of JAX does not have such axes")
def test_reduced_and_unreduced_axes(jobs) -> None:
    for found in run_both(jobs, mp_targets.reduced_axes):
        for text in found:
            assert "w: the sharding is unreduced over y: " in text
