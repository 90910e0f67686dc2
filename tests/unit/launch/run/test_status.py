"""The state of a run in words."""

from __future__ import annotations

import pickle

import pytest

from launch.run.status import Progress, RunStatus, SftStatus, describe
from learner.phase import Phase


def test_every_phase_has_words_of_its_own() -> None:
    assert len({describe(RunStatus(phase=phase)) for phase in Phase}) == len(Phase)


def test_a_step_is_named() -> None:
    assert describe(SftStatus(phase=Phase.TRAINING, step=3)) == "training step 3"


@pytest.mark.parametrize(("have", "percent"), [(0, 0), (9, 0), (10, 10), (95, 90)])
def test_seeding_is_shown_in_tenths_so_that_few_lines_are_printed(have: int, percent: int) -> None:
    status = RunStatus(phase=Phase.WAITING_FOR_ACTORS, seeding=(have, 96))
    assert describe(status).endswith(f"which propose the first tasks: {percent}% of 96 triplets")


def test_a_phase_forgets_the_step_of_the_one_before() -> None:
    progress = Progress()
    progress.enter(Phase.TRAINING, 4)
    progress.enter(Phase.PUBLISHING)
    assert (progress.phase, progress.step) == (Phase.PUBLISHING, None)


def test_a_status_travels_between_processes() -> None:
    status = RunStatus(phase=Phase.TRAINING, step=3, last={"step": 2.0}, members=("rollout0",))
    assert pickle.loads(pickle.dumps(status)) == status
