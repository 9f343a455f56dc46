"""Restores that match in part, or not at all: the same on every process, and nothing changed where it failed."""

import re
from pathlib import Path

import mp_going_wrong
import mp_nnx
import mp_programs
import pytest

from jaxckpt import testing


def run_both(jobs, program, *args) -> list[list]:
    """Runs a program with an IO process, and in a shared directory."""
    found = []
    for private, io in ((True, 1), (False, None)):
        if private and testing.private_disks_problem():
            continue
        job = jobs.job(3, private=private)
        found.append(job.run(program, jobs.directory(job), io, *args))
    return found


def test_a_failed_restore_fails_everywhere_and_changes_nothing(jobs) -> None:
    expected = {
        "shape": ("ValueError", r"w: .*\(24, 4\).*\(24, 5\)|w: .*\(24, 5\).*\(24, 4\)"),
        "dtype": ("ValueError", r"w: .*float16"),
        "no sharding": ("ValueError", r"w: .*sharding"),
        "host shape": ("ValueError", r"n: "),
        "kind": ("ValueError", r"step: "),
        "object": ("ValueError", ""),
        "missing": ("FileNotFoundError", "none"),
        "no suffix": ("FileNotFoundError", "-1'"),
    }
    for found in run_both(jobs, mp_going_wrong.failing_restores):
        for outcomes in found:
            for name, (kind, pattern) in expected.items():
                kinds, text = outcomes[name]
                assert kind in kinds, (name, kinds, text)
                assert re.search(pattern, text), (name, text)


def test_a_partial_restore_has_the_same_status_everywhere(jobs) -> None:
    for found in run_both(jobs, mp_going_wrong.partial_restores):
        assert found[0] == found[1] == found[2]
        missing, unexpected, consumed, existing, nontrivial, warned, values = found[0]
        assert missing == ("new",)
        assert sorted(unexpected) == ["extra", "gone"]
        assert "AssertionError" in consumed[0]
        assert "AssertionError" in existing[0]
        assert nontrivial[0] == []
        assert warned == []
        assert values == (1, [0, 1])


@testing.requires_private_disks
@pytest.mark.parametrize("io", [0, 1])
def test_a_checkpoint_that_not_all_see_needs_a_device(jobs, io: int) -> None:
    job = jobs.job(3)
    for kinds, text in job.run(mp_going_wrong.restore_private, jobs.directory(job), io, None):
        assert "FileNotFoundError" in kinds
        assert "experimental_io_device" in text
    for kinds, _ in job.run(mp_going_wrong.restore_private, jobs.directory(job), io, 2 if io != 2 else 1):
        assert "FileNotFoundError" in kinds


def damage(checkpoint: Path) -> None:
    for file in sorted((checkpoint).rglob("d/*")):
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        file.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_or_skipped_everywhere(jobs) -> None:
    for private, io in ((True, 2), (True, 0), (False, None), (False, 1)):
        if private and testing.private_disks_problem():
            continue
        job = jobs.job(3, private=private)
        directory = jobs.directory(job)
        job.run(mp_programs.save_simple, directory, io, 3)
        seen = job.disks[io].path / Path(directory).relative_to(job.private) if private else Path(directory)
        damage(seen / "ckpt-3")
        found = job.run(mp_going_wrong.restore_damaged, directory, io)
        for outcomes in found:
            assert "CorruptCheckpointError" in outcomes["restore"][0], outcomes["restore"]
            assert "CorruptCheckpointError" in outcomes["manager"][0], outcomes["manager"]
            assert outcomes["skip"] == f"{directory}/ckpt-2"
            assert any("Skipping the damaged checkpoint" in text for text in outcomes["warned"])
            assert outcomes["state"] == (2, 2, f"{directory}/ckpt-4")


def test_host_leaves_that_differ_are_named_and_those_of_process_0_stored(jobs) -> None:
    for found in run_both(jobs, mp_going_wrong.different_hosts):
        for process, (warned, values, more) in enumerate(found):
            assert [re.search(r"v/(\w+)", text).group(1) for text in warned] == sorted(
                ["n", "s", "b", "step", "large", "local", "key", "long"]
            )
            assert all("process" in text for text in warned)
            # The state of an object belongs to its process.
            assert values == ([0, 1, 2, 3, 4], "text 0", b"xxx", 0, 0, [0, 0, 0], process)
            assert more == ([0, 1, 2], [0, 0], 5)


def test_nnx_variables(jobs) -> None:
    """Raw values, nested; and a Variable under two names, for which only the last process has two values."""
    for found in run_both(jobs, mp_nnx.nnx_values):
        assert [outcome[0] for outcome in found] == ["", "", ""]
        assert all("a/w and b/w are one object" in outcome[1] for outcome in found), found
        assert found[2][1].startswith("ValueError")
        assert "Process 2 failed" in found[0][1]
