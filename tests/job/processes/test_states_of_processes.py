"""Data iterators in jobs: every process stores and restores its own state."""

import jax
import mp_states
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import jaxckpt

MODES = [pytest.param(None, id="shared"), pytest.param(0, id="io0"), pytest.param(1, id="io1")]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("io", MODES)
def test_every_process_gets_its_own_state_back(jobs, io: int | None, asynchronous: bool) -> None:
    job = jobs.job(2, private=False)
    found = job.run(mp_states.save, jobs.directory(job), io, asynchronous)
    path = found[0][0]
    for process, (_, saved, restored) in enumerate(found):
        assert restored == saved == [3 + 10 * process, 3 + 100 * process, 3]
    # Plain Orbax sees them as further leaves.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(path)
    assert tree.keys() == {"w", "data", "same", "@process_1"}
    assert tree["data"]["train"] == '{"position": 3, "shard": [1, 2]}'
    assert tree["@process_1"]["data"]["train"] == '{"position": 13, "shard": [1, 2]}'
    assert v1.load(path)["@process_1"]["data"]["train"] == tree["@process_1"]["data"]["train"]
    assert jaxckpt.verify(path).ok
    # A job of another size says what it can do, and that works.
    alone = jaxckpt.Checkpoint(data={"train": mp_states.Iterator()}, same=mp_states.Iterator())
    with pytest.raises(ValueError, match="data/train: the 2 processes that saved .* had different states") as raised:
        alone.read(path)
    assert f"jaxckpt.load_checkpoint({path!r}).restore_state('data/train', the_object, process=0)" in str(raised.value)
    assert alone.same.position == 0
    reader = jaxckpt.load_checkpoint(path)
    for process in (0, 1):
        iterator, more, same = mp_states.Iterator(), mp_states.Bytes(), mp_states.Iterator()
        reader.restore_state("data/train", iterator, process=process)
        reader.restore_state("data/more/1", more, process=process)
        reader.restore_state("same", same, process=process)
        assert [iterator.position, more.position, same.position] == [3 + 10 * process, 3 + 100 * process, 3]
    with pytest.raises(KeyError, match="@process_7/data/train"):
        reader.restore_state("data/train", iterator, process=7)
    with pytest.raises(TypeError, match="w is not the state of an object"):
        reader.restore_state("w", iterator)


@pytest.mark.parametrize("io", MODES)
def test_equal_states_fit_a_job_of_any_size(jobs, io: int | None) -> None:
    job = jobs.job(2, private=False)
    found = job.run(mp_states.save, jobs.directory(job), io, False, False)
    path = found[0][0]
    assert not [name for name in jaxckpt.load_checkpoint(path).keys() if name.startswith("@")]
    target = jaxckpt.Checkpoint(data={"train": mp_states.Iterator()}, same=mp_states.Iterator())
    target.read(path).expect_partial()
    assert target.data["train"].position == 3


def test_a_job_of_another_size_is_refused_on_every_process(jobs) -> None:
    two, three = jobs.job(2, private=False), jobs.job(3, private=False)
    path = two.run(mp_states.save, jobs.directory(two), None, False)[0][0]
    for io in (None, 2):
        for kinds, said in three.run(mp_states.restore, path, io):
            assert "ValueError" in kinds
            assert "the 2 processes that saved" in said
            assert "now the number of processes is 3" in said


def test_one_process_stores_one_state(tmp_path) -> None:
    path = jaxckpt.Checkpoint(it=mp_states.Iterator(4), array=np.arange(2), on=jax.numpy.ones(1)).save(tmp_path / "x")
    assert sorted(jaxckpt.load_checkpoint(path).keys()) == ["array", "it", "on", "save_counter"]
