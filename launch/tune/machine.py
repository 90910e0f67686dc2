"""The cores of a simulated machine, and how the processes on them share these: processor sharing.

A *job* is work in seconds at full speed, with a number of threads. Jobs of one *pool* of cores run at

    rate = min(1, cores / threads of all jobs in the pool) / interference

so that two threads on one core each get half of it, as under a fair scheduler. `interference` is what is measured
beyond that: the memory bandwidth and caches that processes on different cores share. It is a factor on the time of a
job's role while a job of another role runs, for instance of a training step while an engine decodes.

On a machine without pinning there is one pool. Processes that are pinned to cores of their own have a pool each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import simpy

_EPSILON_S = 1e-9


class Role(StrEnum):
    """What a job computes for; decides what it costs others."""

    ENGINE = "engine"
    LEARNER = "learner"
    WEIGHTS = "weights"


@dataclass(eq=False)
class Job:
    """Work under way."""

    pool: str
    role: Role
    threads: float
    remaining_s: float
    """Seconds of work that are left, at full speed, as of the machine's last change."""
    done: simpy.Event
    work_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.work_s = self.remaining_s


class Machine:
    """Cores in pools, and the jobs that run on them."""

    def __init__(
        self,
        env: simpy.Environment,
        pools: Mapping[str, int],
        interference: Mapping[tuple[Role, Role], float] = {},
    ) -> None:
        """`pools`: cores by name. `interference`: (role of a job, role of another) -> factor on the first's time while
        the other runs anywhere on the machine."""
        self.env = env
        self._pools = dict(pools)
        self._interference = dict(interference)
        self._jobs: list[Job] = []
        self._since = 0.0
        self._change = 0

    def start(self, pool: str, role: Role, seconds: float, threads: float = 1) -> Job:
        """Begin a job; its `done` is triggered when it has had `seconds` of work."""
        self._settle()
        job = Job(pool, role, threads, max(seconds, _EPSILON_S), self.env.event())
        self._jobs.append(job)
        self._plan()
        return job

    def done_s(self, job: Job) -> float:
        """Seconds of work that a job has had until now."""
        self._settle()
        self._plan()
        return job.work_s - job.remaining_s

    def extend(self, job: Job, remaining_s: float) -> None:
        """Change what is left of a running job."""
        self._settle()
        job.remaining_s = max(remaining_s, _EPSILON_S)
        self._plan()

    def run(self, pool: str, role: Role, seconds: float, threads: float = 1) -> simpy.Event:
        """Begin a job and return the event of its end."""
        return self.start(pool, role, seconds, threads).done

    def _rate(self, job: Job) -> float:
        demand = sum(other.threads for other in self._jobs if other.pool == job.pool)
        rate = min(1.0, self._pools[job.pool] / demand)
        roles = {other.role for other in self._jobs if other is not job and self._at_once(job, other)}
        for role in roles:
            rate /= self._interference.get((job.role, role), 1.0)
        return rate

    def _at_once(self, job: Job, other: Job) -> bool:
        """Whether the two compute at the same time. On one core learner and engine take turns; what that costs two
        engines is measured as theirs."""
        return job.pool != other.pool or self._pools[job.pool] > 1 or job.role is other.role

    def _settle(self) -> None:
        """Take off what jobs have done since the last change."""
        passed = self.env.now - self._since
        if passed > 0:
            for job in self._jobs:
                job.remaining_s -= passed * self._rate(job)
        self._since = self.env.now

    def _plan(self) -> None:
        """Wake up when the next job ends."""
        self._change += 1
        if not self._jobs:
            return
        wait_s = min(max(job.remaining_s, 0.0) / self._rate(job) for job in self._jobs)
        change = self._change
        self.env.timeout(wait_s).callbacks.append(lambda _: self._wake(change))  # type: ignore[union-attr]

    def _wake(self, change: int) -> None:
        if change != self._change:
            return
        self._settle()
        ended = [job for job in self._jobs if job.remaining_s <= _EPSILON_S]
        self._jobs = [job for job in self._jobs if job.remaining_s > _EPSILON_S]
        self._plan()
        for job in ended:
            job.remaining_s = 0.0
            job.done.succeed()


Process = Any
"""A generator that SimPy runs as a process: it yields events."""
