"""The programs whose types `make lint` checks also run, so that the types are those of what happens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import user_programs

PROGRAMS = [
    user_programs.save_and_restore,
    user_programs.start_warm,
    user_programs.choose_options,
    user_programs.shard_by_callback,
    user_programs.manage,
    user_programs.keep_the_best,
    user_programs.look_at_a_directory,
    user_programs.read_without_targets,
    user_programs.load_a_config,
    user_programs.handle_errors,
    user_programs.start_a_job,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program(program: Callable[[Path], object], tmp_path: Path) -> None:
    program(tmp_path)


def test_the_explanation_of_options() -> None:
    user_programs.explain_options()
