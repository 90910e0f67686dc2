"""Whether a job is queued again after an attempt."""

from __future__ import annotations

import pytest

from launch.slurm.client import JobState
from launch.slurm.decision import Decision, Ending, Starts, count, decide

RUNNING = JobState("RUNNING", "None")


def after(
    ending: Ending, state: JobState = RUNNING, starts: Starts = Starts(), requeue: bool = True, most: int = 3
) -> Decision:
    return decide(ending, state, starts, requeue, max_requeues=most, max_preemptions=most)


@pytest.mark.parametrize("code", [75, 130])
def test_a_run_that_was_stopped_goes_on(code: int) -> None:
    assert after(Ending(code)).requeue


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_a_run_that_is_complete_or_failed_is_not_queued_again(code: int) -> None:
    found = after(Ending(code))
    assert (found.requeue, found.exit_code) == (False, code)


@pytest.mark.parametrize("code", [1, 75])
def test_a_lost_node_is_no_failure_of_the_run(code: int) -> None:
    assert after(Ending(code, node_failure=True), starts=Starts(requeues=99)).requeue


def test_a_run_that_ended_well_needs_no_lost_node() -> None:
    assert not after(Ending(0, node_failure=True)).requeue


@pytest.mark.parametrize("state", [JobState("COMPLETING", "None"), JobState("PENDING", "BeginTime"), JobState("", "")])
def test_what_slurm_is_ending_is_left_to_slurm(state: JobState) -> None:
    """After scancel, `scontrol requeue` would bring the job back."""
    found = after(Ending(75), state)
    assert (found.requeue, found.exit_code) == (False, 75)


def test_a_job_that_saved_after_its_time_limit_is_queued_again() -> None:
    assert after(Ending(75), JobState("COMPLETING", "TimeLimit")).requeue


def test_requeues_and_preemptions_have_caps_of_their_own() -> None:
    assert after(Ending(75), starts=Starts(requeues=2, preemptions=99)).requeue
    assert "slurm.max_requeues = 3" in after(Ending(75), starts=Starts(requeues=3)).reason
    assert after(Ending(1, node_failure=True), starts=Starts(requeues=99, preemptions=2)).requeue
    assert "slurm.max_preemptions = 3" in after(Ending(1, node_failure=True), starts=Starts(preemptions=3)).reason


def test_the_setting_forbids_it() -> None:
    assert not after(Ending(75), requeue=False).requeue


def test_starts_are_counted_by_how_they_ended() -> None:
    records = [
        {"exit_code": 75, "srun_code": 75, "requeue": True},
        {"exit_code": 75, "srun_code": 143, "requeue": True},
        {"exit_code": 1, "srun_code": 1, "requeue": True, "node_failure": True},
        {},
        {"exit_code": 75, "requeue": False},  # its script did not come to its end
        {"exit_code": 1, "srun_code": 1, "requeue": False},
    ]
    assert count(records) == Starts(requeues=2, preemptions=3)


def test_starts_that_come_to_nothing_are_told_of() -> None:
    unused = {"exit_code": 130, "srun_code": 130, "requeue": True}
    starts = count([unused, {"exit_code": 75, "srun_code": 75, "requeue": True}, unused, unused])
    assert starts == Starts(requeues=4, unused=2)
    found = decide(Ending(130), RUNNING, starts, True, max_requeues=9, max_preemptions=9)
    assert found.requeue
    assert "3 starts in a row had nothing to save: slurm.time" in found.reason
    assert "in a row" not in decide(Ending(75), RUNNING, starts, True, max_requeues=9, max_preemptions=9).reason
