"""Checkpoints of TensorFlow restore in jobs: by each process, and by the IO process for all of them."""

import mp_programs
import pytest
from from_tensorflow import written

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize("io", [None, 1])
def test_every_process_gets_the_same(jobs, io: int | None) -> None:
    checkpoint = written.golden("tree")
    job = jobs.job(3, private=False)
    found = job.run(mp_programs.restore_from_tensorflow, str(checkpoint.prefix), io)
    assert found[0] == found[1] == found[2]
    (kernel, momentum, iterations, step, counter), unexpected = found[0]
    # It is stored under another name.
    assert kernel == checkpoint.values["model/tied" + SUFFIX].tolist()
    assert (iterations, step, counter) == (3, 7, 3)
    momentums = [value.tolist() for key, value in checkpoint.values.items() if key.startswith("optimizer/_variables/")]
    assert momentum in momentums
    assert "model/tied" not in unexpected
    assert "epoch" in unexpected
