"""The beginning and the end of a start of the job, with SLURM's commands replaced by what they print."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from launch.json_file import read_json, write_json
from launch.slurm.attempt import AttemptError, begin, end, requeue_id
from launch.slurm.folder import JobFolder

ENVIRONMENT = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    job = JobFolder(tmp_path / "run")
    job.path.mkdir(parents=True)
    job.recipe.write_text("[slurm]\nmax_requeues = 2\nmax_preemptions = 2\n")
    write_json(job.submission, {"first_attempt": 0, "warning_s": 77})
    return job.run


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in the place of SLURM's; the job runs, no node is down, other jobs are unknown."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    answer(folder, "scontrol", "JobId=12 JobState=RUNNING Reason=None Dependency=(null)")
    answer(folder, "sinfo", "n1 idle\nn2 idle")
    answer(folder, "squeue", "")
    return folder


def answer(folder: Path, program: str, text: str) -> None:
    (folder / program).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    (folder / program).chmod(0o755)


def test_each_start_has_a_folder_of_its_own_with_a_token_for_its_user_alone(run: Path) -> None:
    first, nonce = begin(run, ENVIRONMENT)
    second, other = begin(run, ENVIRONMENT | {"SLURM_RESTART_COUNT": "1"})
    assert [first.path.name, second.path.name] == ["attempt.0", "attempt.1"]
    assert JobFolder(run).latest_link.resolve() == second.path
    assert stat.S_IMODE(second.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(second.token.stat().st_mode) == 0o600
    assert nonce != other
    assert first.token.read_text() != second.token.read_text()
    record = read_json(second.record)
    assert (record["job_id"], record["restarts"], record["nodes"], record["nonce"], record["warning_s"]) == (
        "12", 1, "n[1-2]", other, 77,
    )  # fmt: skip


def test_the_end_is_that_of_the_first_agent(run: Path) -> None:
    attempt, _ = begin(run, ENVIRONMENT)
    write_json(attempt.result, {"exit_code": 3, "part": "driver", "node": "n1", "reason": "the sandbox failed"})
    decision = end(attempt, 143, ENVIRONMENT)
    assert (decision.requeue, decision.exit_code) == (False, 3)
    record = read_json(attempt.record)
    assert (record["exit_code"], record["part"], record["node"], record["srun_code"]) == (3, "driver", "n1", 143)
    assert record["job_id"] == "12"


def test_the_end_of_a_start_whose_script_slurm_ended_is_that_of_its_first_agent(run: Path) -> None:
    first, _ = begin(run, ENVIRONMENT)
    write_json(first.result, {"exit_code": 75, "part": "driver", "node": "n1", "reason": "saved"})
    begin(run, ENVIRONMENT | {"SLURM_RESTART_COUNT": "1"})
    record = read_json(first.record)
    assert (record["exit_code"], record["part"], record["node"], record["requeue"]) == (75, "driver", "n1", False)
    assert record["ended"] > record["started"] and "SLURM ended this start" in record["decision"]


def test_an_agent_that_leaves_no_result_failed_unless_a_node_is_down(run: Path, programs: Path) -> None:
    attempt, _ = begin(run, ENVIRONMENT)
    assert end(attempt, 233, ENVIRONMENT).exit_code == 233
    assert end(attempt, 0, ENVIRONMENT).exit_code == 1
    assert end(attempt, 130, ENVIRONMENT).requeue  # stopped before the step was started
    answer(programs, "sinfo", "n1 mixed\nn2 mixed*")
    assert end(attempt, 233, ENVIRONMENT).requeue
    assert read_json(attempt.record)["node"] == "n2"


def test_a_controller_that_is_away_for_a_while_is_asked_again(
    run: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, _ = begin(run, ENVIRONMENT)
    write_json(attempt.result, {"exit_code": 75})
    (programs / "scontrol").write_text(
        f"#!/bin/sh\n[ -e {programs}/asked ] || {{ touch {programs}/asked; exit 1; }}\necho JobState=RUNNING"
    )
    monkeypatch.setattr("launch.slurm.attempt.PAUSE_S", 0.01)
    assert end(attempt, 0, ENVIRONMENT).requeue
    (programs / "scontrol").write_text("#!/bin/sh\nexit 1")
    monkeypatch.setattr("launch.slurm.attempt.PATIENCE_S", 0.0)
    assert not end(attempt, 0, ENVIRONMENT).requeue


def test_the_job_requeues_itself_as_often_as_it_may(run: Path) -> None:
    requeued = []
    for _ in range(3):
        attempt, _ = begin(run, ENVIRONMENT)
        write_json(attempt.result, {"exit_code": 75})
        requeued.append(end(attempt, 0, ENVIRONMENT).requeue)
    assert requeued == [True, True, False]
    write_json(JobFolder(run).submission, {"first_attempt": 3})  # as azr submit --resume does
    attempt, _ = begin(run, ENVIRONMENT)
    write_json(attempt.result, {"exit_code": 75})
    assert end(attempt, 0, ENVIRONMENT).requeue


def test_starts_that_end_without_a_word_are_counted_at_the_next_start(run: Path) -> None:
    for _ in range(3):
        begin(run, ENVIRONMENT)
    with pytest.raises(AttemptError, match=r"slurm\.max_preemptions = 2"):
        begin(run, ENVIRONMENT)


def test_a_second_job_in_the_folder_is_refused_while_the_first_one_runs(run: Path, programs: Path) -> None:
    begin(run, ENVIRONMENT)
    other = ENVIRONMENT | {"SLURM_JOB_ID": "13"}
    answer(programs, "squeue", "RUNNING")
    with pytest.raises(AttemptError, match=r"job 12 runs in .* on n\[1-2\]"):
        begin(run, other)
    answer(programs, "squeue", "")
    assert begin(run, other)[0].number == 1


def test_a_job_is_requeued_by_the_id_that_means_it_alone() -> None:
    assert requeue_id({"SLURM_JOB_ID": "12"}) == "12"
    assert requeue_id({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "7"}) == "12_7"
    assert requeue_id({"SLURM_JOB_ID": "13", "SLURM_JOB_ID_HET_GROUP_0": "12"}) == "12"
    with pytest.raises(AttemptError, match="no SLURM job"):
        requeue_id({})
