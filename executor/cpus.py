"""The number of CPUs that this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from executor.user_error import UserError

_CGROUPS = Path("/sys/fs/cgroup")


class CoresError(UserError):
    """Cores that a setting names and that this machine lacks."""


def allowed_cpus(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """The number of CPUs that this process may use, at least 1.

    The least of: its CPU affinity, the quota of its control groups (rounded down), and `SLURM_CPUS_PER_TASK`.
    `cgroups`, `own`: where the control groups are mounted, and the file that names those of this process.
    """
    limits = [len(os.sched_getaffinity(0)), *(int(quota) for quota in _quotas(cgroups, own))]
    if (slurm := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        limits.append(int(slurm))
    return max(1, min(limits))


def pin(cpus: Collection[int]) -> None:
    """Keep this process and those that it starts from now on to the cores `cpus`; none: leaves it as it is.

    Raises CoresError for cores that this machine lacks.
    """
    if not cpus:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:
            continue  # the thread has ended
        except (OSError, ValueError):
            raise CoresError(
                f"the cores {sorted(cpus)} cannot be used here: this machine has {os.cpu_count()}, counted from 0. See "
                "learner.cpus and actors.cpus"
            ) from None


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """The CPU quotas of this process's control groups and of those above them, in CPUs; version 2 and version 1."""
    found = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = cgroups / controllers / path.lstrip("/") if controllers else cgroups / path.lstrip("/")
        root = cgroups / controllers if controllers else cgroups
        # In a container the path can be one of the host; the container's own group is then at the root.
        for folder in (group, *group.parents):
            found += [quota for quota in (_quota_v2(folder), _quota_v1(folder)) if quota is not None]
            if folder == root:
                break
    return found


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
