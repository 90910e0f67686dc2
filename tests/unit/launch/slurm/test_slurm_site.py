"""The section of `azr doctor` about SLURM, for configurations as `scontrol show config` prints them."""

from __future__ import annotations

import pytest

from launch.doctor.report import Check, CheckState
from launch.doctor.slurm import section

SITE = {
    "SLURM_VERSION": "22.05.8",
    "ClusterName": "site",
    "KillWait": "30 sec",
    "JobRequeue": "1",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "ProctrackType": "proctrack/cgroup",
    "SlurmdTimeout": "300 sec",
    "SlurmctldParameters": "(null)",
    "AuthInfo": "(null)",
}
LOW = {"PartitionName": "low", "PreemptMode": "REQUEUE", "GraceTime": "60"}


def checks(site: dict[str, str], queue: dict[str, str] = LOW, stop_s: float | None = None) -> dict[str, Check]:
    return {check.name: check for check in section(SITE | site, [queue], stop_s).checks}


def test_the_times_are_the_sites() -> None:
    found = checks({})
    assert "KillWait = 30 s; the job is not queued again" in found["scancel"].detail
    assert "TERM, then GraceTime = 60 s and KillWait = 30 s" in found["preemption in low"].detail
    assert "120 s later" in found["scontrol requeue"].detail
    assert "SlurmdTimeout = 300 s" in found["loss of a node"].detail
    assert {check.state for check in found.values()} == {CheckState.INFO, CheckState.ON}


@pytest.mark.parametrize(
    ("stop_s", "scancel", "preemption"), [(20, "on", "on"), (80, "off", "on"), (100, "off", "off")]
)
def test_a_run_that_was_measured_is_told_whether_it_can_save(stop_s: float, scancel: str, preemption: str) -> None:
    found = checks({}, stop_s=stop_s)
    assert (found["scancel"].state, found["preemption in low"].state) == (scancel, preemption)


@pytest.mark.parametrize(
    "option",
    [{"SlurmctldParameters": "a,preempt_send_user_signal"}, {"PreemptParameters": "send_user_signal"}],
)
def test_a_site_that_sends_the_signal_first(option: dict[str, str]) -> None:
    assert checks(option)["preemption in low"].detail.startswith("USR2, then")


@pytest.mark.parametrize(
    ("site", "queue", "told"),
    [
        ({"PreemptType": "preempt/none"}, {}, "jobs are not preempted"),
        ({}, {"PreemptMode": "OFF"}, "jobs are not preempted"),
        ({}, {"PreemptMode": "CANCEL"}, "PreemptMode = CANCEL: the job is not queued again"),
        ({}, {"PreemptMode": "GANG,SUSPEND"}, "stands still"),
        ({"PreemptType": "preempt/qos"}, {}, "sacctmgr show qos"),
    ],
)
def test_what_a_preemption_is_depends_on_the_site(site: dict[str, str], queue: dict[str, str], told: str) -> None:
    check = checks(site, LOW | queue)["preemption in low"]
    assert told in check.detail + check.purpose


def test_credentials_that_expire_early_let_a_job_start_again_early() -> None:
    assert "5 s later" in checks({"AuthInfo": "socket=/run/munge,cred_expire=5"})["scontrol requeue"].detail


def test_a_site_that_requeues_nothing_by_itself_is_named() -> None:
    assert "JobRequeue = 0" in checks({"JobRequeue": "0"})["scontrol requeue"].detail


def test_processes_that_slurm_cannot_track_are_named() -> None:
    assert checks({"ProctrackType": "proctrack/pgid"})["ProctrackType proctrack/pgid"].state is CheckState.OFF
