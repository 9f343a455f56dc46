"""The fuzzer, with a small fixed budget. ``python -m tests.hostile`` runs as many cases as you like."""

import pytest
from hostile import fuzzer

CASES = 400


@pytest.mark.timeout(600)
def test_hostile_checkpoints() -> None:
    report = fuzzer.run(seed=1, numbers=range(CASES))
    assert not report.findings, report.findings
    assert report.cases == CASES
    # Not all of them are harmless, and not all of them are refused.
    assert report.endings["CorruptCheckpointError"] > CASES
    assert report.endings["none"] > CASES
