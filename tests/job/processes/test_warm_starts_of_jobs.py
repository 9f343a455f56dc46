"""Warm starts in jobs of several processes: all use the same names, or none restores."""

import re

import mp_warm_starts
import pytest

from jaxckpt import testing

PLACES = [
    pytest.param(True, 1, None, marks=testing.requires_private_disks, id="io-1"),
    pytest.param(False, None, None, id="shared"),
    pytest.param(False, None, True, id="read-once"),
]


@pytest.mark.parametrize(("private", "io", "read_once"), PLACES)
def test_all_processes_start_from_the_same(jobs, private: bool, io: int | None, read_once: bool | None) -> None:
    job = jobs.job(3, private=private)
    found = job.run(mp_warm_starts.warm_start, jobs.directory(job), io, read_once)
    expected = [
        (
            "ProcessError",
            r"the trees differ: model/body .*renamed to 'old/trunk' on process 0.*'old/head' on process 2",
        ),
        ("ProcessError", r"model/body .*renamed to 'old/body' on process 0.*'old/trunk' on process 1"),
        ("ProcessError", r"the trees differ: model/body is .* on process 0, and .*renamed to 'old/trunk' on process 1"),
        ("ProcessError", r"skip_mismatched is True on process 0 and False on process 1"),
        ("ValueError", r"no target has the name 'models'"),
        ("ValueError", r"has no leaf of such a name. model/body is looked for as 'other/body'"),
        ("ValueError", r"model/body and step would both be restored from 'step'"),
    ]
    for process, one in enumerate(found):
        refused = one.pop("refused")
        kinds, text = one.pop("diff of nothing")
        assert "FileNotFoundError" in kinds, text
        assert one == {
            "diff": (
                ("model/body", "step"),
                ("model/new",),
                (),
                ("model/body",),
                ("model/head",),
                (),
            ),
            "status": (("model/new",), (), ("model/body",), ("model/head",)),
            "values": (True, True, 7),
            "by function": (True, 7, 0),
            "after": ("model/body", "model/head", "model/new"),
        }, process
        for (kinds, text), (kind, pattern) in zip(refused, expected, strict=True):
            assert kind in kinds, (process, kinds, text)
            assert re.search(pattern, text), (process, text)
