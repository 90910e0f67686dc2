"""The configuration of a test's SLURM: two nodes with two GPUs each, in name, and partitions `low` and `high`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KILL_WAIT_S = 5
"""Seconds from TERM to KILL at the end of a job."""
GRACE_S = 20
"""Seconds that a preempted job of `low` has."""
NUM_CPUS = 4
"""CPUs of a node, as SLURM counts them; the machine may have fewer."""
NUM_GPUS = 2
"""GPUs of a node, as SLURM counts them: each is a link to /dev/null."""


@dataclass(frozen=True)
class Address:
    """Where a daemon listens."""

    hostname: str
    ip: str
    port: int


def write_configuration(
    folder: Path, user: str, controller: Address, nodes: Mapping[str, Address], only_loopback: bool
) -> Path:
    """Write slurm.conf and gres.conf into `folder`, and make the folders that they name; returns slurm.conf's path.

    `user`: whom the daemons run as. `only_loopback`: they listen at 127.0.0.1 alone.
    """
    for name in ("state", "log", "dev", *(f"{node}/spool" for node in nodes)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for gpu in range(NUM_GPUS):
        (folder / "dev" / f"gpu{gpu}").symlink_to("/dev/null")  # SLURM counts GPUs only by files that are there
    lines = [
        "ClusterName=azr",
        f"SlurmctldHost={controller.hostname}({controller.ip})",
        f"SlurmctldPort={controller.port}",
        # Clusters of several test processes share this machine, and jobs name their folders in /tmp by their id.
        f"FirstJobId={1_000_000 + secrets.randbelow(8_000_000)}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        # The life of credentials is also the least delay before a job that was requeued starts again: 120 s by default,
        # and 5 s is the least that SLURM accepts.
        f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
        "CredType=cred/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/%n/spool",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/%n/slurmd.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_interval=5",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "GresTypes=gpu",
        "MpiDefault=none",
        "SlurmdParameters=config_overrides",  # more CPUs than the machine has
        "ReturnToService=2",
        "SlurmdTimeout=10",
        "InactiveLimit=0",
        f"KillWait={KILL_WAIT_S}",
        "UnkillableStepTimeout=20",
        "MinJobAge=3600",  # a job that has ended can be asked for as long as the tests run
        "JobRequeue=1",
        *(["CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"] if only_loopback else []),
    ]
    for number, (node, at) in enumerate(nodes.items()):
        feature = "rollout" if number else "learner"
        lines.append(
            f"NodeName={node} NodeHostname={at.hostname} NodeAddr={at.ip} Port={at.port} CPUs={NUM_CPUS} "
            f"RealMemory=4000 Gres=gpu:{NUM_GPUS} State=UNKNOWN Feature={feature}"
        )
    members = ",".join(nodes)
    lines += [
        f"PartitionName=low Nodes={members} Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE "
        f"GraceTime={GRACE_S}",
        f"PartitionName=high Nodes={members} MaxTime=60 PriorityTier=10 PreemptMode=OFF",
    ]
    (folder / "gres.conf").write_text(f"NodeName={members} Name=gpu File={folder}/dev/gpu[0-{NUM_GPUS - 1}]\n")
    file = folder / "slurm.conf"
    file.write_text("\n".join(lines) + "\n")
    return file
