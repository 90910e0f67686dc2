"""The section of `azr doctor` about SLURM: what ends a job on this site, and how long a run then has to save."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence

from launch.config import Config
from launch.doctor.report import Check, CheckState, Section
from launch.run.durations import read_durations
from launch.run.folder import RunFolder
from launch.slurm.client import SlurmError, configuration, partitions

_SIGNALS = (("SlurmctldParameters", "preempt_send_user_signal"), ("PreemptParameters", "send_user_signal"))
"""The option that makes SLURM send the signal of --signal before a preemption; it has moved between versions."""
_UNTRACKED = "proctrack/pgid"
"""Finds processes by their group: one that begins a group of its own outlives its job."""


def slurm(config: Config) -> Section | None:
    """The section, where `scontrol` is on PATH; None elsewhere. `config`: of the run whose measurements count."""
    if shutil.which("scontrol") is None:
        return None
    measured = read_durations(RunFolder(config.folder))
    try:
        site, queues = configuration(), partitions()
    except SlurmError as error:
        return Section("SLURM", (Check("controller", CheckState.OFF, str(error), "azr submit"),))
    return section(site, queues, None if measured.checkpoint_s is None else measured.stop_s)


def section(site: Mapping[str, str], queues: Sequence[Mapping[str, str]], stop_s: float | None) -> Section:
    """The section for a site's configuration and partitions, as `launch.slurm.client` reads them.

    `stop_s`: seconds that a step and a checkpoint of the run take; None where that was not measured.
    """
    wait = _seconds(site.get("KillWait", ""))
    expiry = re.search(r"cred_expire=(\d+)", site.get("AuthInfo", ""))
    delay = f"it starts again {expiry[1] if expiry else 120} s later at the earliest"
    if site.get("JobRequeue") != "1":
        delay += "; JobRequeue = 0, so the job asks for it by --requeue"
    down = _seconds(site.get("SlurmdTimeout", ""))
    checks = [
        Check("time limit", CheckState.INFO, "USR2 before it, early enough to save; the job queues itself again"),
        _time_to_save("scancel", f"KillWait = {wait} s; the job is not queued again", wait, stop_s),
        _time_to_save("scontrol requeue", f"KillWait = {wait} s; {delay}", wait, stop_s),
        *(_preemption(site, queue, wait, stop_s) for queue in queues),
        Check("loss of a node", CheckState.INFO, "work since the last checkpoint is lost (learner.checkpoint_minutes); "
              f"SLURM gives a node up after SlurmdTimeout = {down} s"),
        _processes(site.get("ProctrackType", "?")),
    ]  # fmt: skip
    name = f"SLURM {site.get('SLURM_VERSION', '')}".strip()
    summary = f"cluster {site.get('ClusterName', '?')}"
    if stop_s is not None:
        summary += f"; this run needs {stop_s:.0f} s to save"
    return Section(name, tuple(checks), summary)


def _preemption(site: Mapping[str, str], queue: Mapping[str, str], wait: int, stop_s: float | None) -> Check:
    """What a preemption of a job in the partition `queue` leaves."""
    name = f"preemption in {queue.get('PartitionName', '?')}"
    kind = site.get("PreemptType", "preempt/none").removeprefix("preempt/")
    mode = queue.get("PreemptMode") or site.get("PreemptMode", "OFF")
    if kind == "none" or (kind != "qos" and mode == "OFF"):
        return Check(name, CheckState.ON, "", "jobs are not preempted")
    if "SUSPEND" in mode:
        detail = "PreemptMode = SUSPEND: the job stands still, and the run takes that for a hang"
        return Check(name, CheckState.OFF, detail, "jobs are not preempted", "use another partition")
    grace = _seconds(queue.get("GraceTime", ""))
    signal = "USR2" if any(option in site.get(name, "") for name, option in _SIGNALS) else "TERM"
    detail = f"{signal}, then GraceTime = {grace} s and KillWait = {wait} s"
    if kind == "qos":
        detail += "; its QOS may say otherwise (sacctmgr show qos)"
    if "REQUEUE" not in mode and kind != "qos":
        detail += f"; PreemptMode = {mode}: the job is not queued again, azr submit --resume goes on"
    return _time_to_save(name, detail, grace + wait, stop_s)


def _time_to_save(name: str, detail: str, seconds: int, stop_s: float | None) -> Check:
    """A check whether a run that needs `stop_s` saves within `seconds`."""
    if stop_s is None:
        return Check(name, CheckState.INFO, f"{detail}. What takes longer to save goes on from the last checkpoint")
    purpose = "the run saves before it ends"
    if stop_s <= seconds:
        return Check(name, CheckState.ON, detail, purpose)
    mend = "a longer GraceTime or KillWait of the site, or a smaller learner.checkpoint_minutes, which loses less"
    return Check(name, CheckState.OFF, detail, purpose, mend)


def _processes(tracking: str) -> Check:
    purpose = "a job that has ended leaves no process on its nodes"
    if tracking == _UNTRACKED:
        return Check(f"ProctrackType {tracking}", CheckState.OFF, "it finds no process of another group", purpose)
    return Check(f"ProctrackType {tracking}", CheckState.ON, "", purpose)


def _seconds(text: str) -> int:
    """The number in `30 sec` or in `30`; 0 without one."""
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0
