"""Whole runs as jobs, rehearsed: the control plane is real, and the model only takes time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from launch.run.interrupts import SAVED
from tests.slurm.cluster import Cluster, Loopback
from tests.slurm.hosts import Hosts
from tests.slurm.submission import Submission, submit

STEPS = 40
REHEARSAL = (
    'run.mode="rehearse"',
    "learner.batch.propose={ deduction = 2, abduction = 2, induction = 2 }",
    "learner.batch.solve={ deduction = 4, abduction = 4, induction = 4 }",
    "learner.checkpoint_every=5",
    "rehearsal.time_scale=10",
    "rehearsal.learner_step_s=5",
    "rehearsal.request_tokens_per_s=1000",
    "rehearsal.spread=0.2",
    "selfplay.seed_tasks_target=0",
)


def rehearse(cluster: Cluster, *overrides: str, steps: int = STEPS) -> Submission:
    return submit(cluster, "slurm.nodes=2", f"learner.steps={steps}", *REHEARSAL, *overrides)


def steps_of(submission: Submission) -> list[int]:
    """The steps in the run's metrics, in their order."""
    file = submission.run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def check_complete(submission: Submission, steps: int = STEPS) -> None:
    """The job has ended well, and each step is there once, in order; every slot is accounted for."""
    job = submission.wait_for()
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), submission.logs()
    assert steps_of(submission) == list(range(1, steps + 1))
    last = submission.run / "slurm" / "latest"
    assert "ledger: conserved" in (last / "driver.log").read_text()


def requeue(submission: Submission) -> None:
    submission.cluster.run("scontrol", "requeue", submission.job)


def preempt(submission: Submission) -> None:
    submission.cluster.batch("#!/bin/sh\n", "--partition=high", "--nodes=2", "--exclusive")


def reach_time_limit(submission: Submission) -> None:
    submission.cluster.run("scontrol", "update", f"JobId={submission.job}", "EndTime=now+40seconds")


def lose_rollout_node(submission: Submission) -> None:
    submission.cluster.lose("n2")


def lose_learner_node(submission: Submission) -> None:
    submission.cluster.lose("n1")


def newest_checkpoint(submission: Submission) -> int:
    found = [re.fullmatch(r"step_(\d+)", path.name) for path in (submission.run / "checkpoints").iterdir()]
    return max(int(match[1]) for match in found if match)


def resumes(submission: Submission) -> list[int]:
    """The steps after which the run went on, at each start but the first."""
    lines = map(json.loads, (submission.run / "events.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["event"] == "run_resumed"]


def in_tmp(hosts: Hosts, node: str) -> set[str]:
    return set(hosts.run("ls", "/tmp", host=node).split())


@pytest.mark.parametrize(
    "events",
    [
        [],
        [requeue, lose_rollout_node],
        pytest.param([preempt, reach_time_limit, lose_learner_node], marks=pytest.mark.deep),
        pytest.param([requeue] * 5, marks=pytest.mark.deep),
    ],
    ids=lambda events: "-".join(event.__name__ for event in events) or "undisturbed",
)
@pytest.mark.timeout(1800)
def test_a_run_goes_on_from_its_newest_checkpoint(hosts: Hosts, events: list[Callable[[Submission], None]]) -> None:
    # SLURM looks at time limits each 30 s, and the run must not end before.
    steps = 8 * (len(events) + 1) + 100 * (reach_time_limit in events)
    in_tmp_before = {
        node: in_tmp(hosts, node) for node in ("n1", "n2")
    }  # a killed agent of another test leaves its folder
    submission = rehearse(hosts, "slurm.warning_s=5", steps=steps)
    saved = []
    for event in events:
        before = len(steps_of(submission))
        submission.wait_until(lambda before=before: len(steps_of(submission)) >= before + 6)
        event(submission)
        submission.wait_for("PENDING")
        saved.append(newest_checkpoint(submission))
        for node in {"n1", "n2"} - hosts.on:
            hosts.switch_on(node)
        submission.wait_until(lambda: len(resumes(submission)) == len(saved))
        if event is reach_time_limit:
            assert submission.attempt(len(saved) - 1)["exit_code"] == SAVED
    check_complete(submission, steps)
    assert resumes(submission) == saved
    logs = {path.name.partition(".")[0]: path.read_text().split()[1] for path in submission.run.glob("logs/*")}
    assert (logs["learner0"], logs["buffer"], logs["rollout0"]) == ("n1", "n1", "n2")
    for node in ("n1", "n2"):
        hosts.wait_until(
            lambda node=node: hosts.processes(node) == [], 30, lambda node=node: str(hosts.processes(node))
        )
        assert in_tmp(hosts, node) <= in_tmp_before[node] | hosts.shared_in_tmp


def test_a_job_of_one_node(loopback: Loopback) -> None:
    """By default a job has one node, which learner and rollout actors share."""
    submission = rehearse(loopback, "slurm.nodes=1", "slurm.cpus_per_task=2", "slurm.interface=none", steps=2)
    check_complete(submission, steps=2)
