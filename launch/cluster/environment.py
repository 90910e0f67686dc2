"""The environment of a run's processes: set for Ray as a whole, and once more in each part.

A part's process is started by the Ray of its machine, and so has the environment that Ray was started with there. Where
Ray was started by somebody else, nothing that the driver sets would reach it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

from launch.cluster.network import use_interface
from launch.config import Config, SftConfig

VARIABLES = {
    # With Ray's default of 15 any other job on the machine makes a learner's step many times slower.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A process that asks for no GPU keeps its view of them, as Ray will have it; it warns otherwise.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Learner and engines share cores on a CPU: a thread that spins at a barrier blocks the thread it waits for.
    "OMP_WAIT_POLICY": "passive",
    "THP_MEM_ALLOC_ENABLE": "1",  # huge pages: the first steps take a quarter of the page faults
}
"""Variables of the driver, of Ray and of every part, where they are not set already."""
PASSED = ("AZR_CACHE",)
"""Variables of the driver that the parts get as well, where they are set."""

_LOG = logging.getLogger(__name__)


def set_variables() -> None:
    """Set `VARIABLES` in this process, and so in what it starts, where they are not set already."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def of_parts() -> dict[str, str]:
    """The variables that the parts get from this process, the driver, in a cluster that it joins.

    A part has them before it imports anything: the libraries of threads read theirs when they are loaded.
    """
    return {name: os.environ[name] for name in (*VARIABLES, *PASSED) if name in os.environ}


def prepare_part(config: Config | SftConfig) -> None:
    """Prepare this process, a part of the run under Ray: its niceness and its network. Call it before a group is made.

    Raises NetworkError where the machine does not have `slurm.interface`. A Ray of the run's own ignores that setting.
    """
    _take_niceness()
    use_interface(own_address(), config.slurm.interface if config.ray.address else None)


def own_address() -> str:
    """The address of this machine in its Ray cluster."""
    return str(ray.util.get_node_ip_address())


def _take_niceness() -> None:
    """Lower the niceness of every thread of this process to that of Ray itself, where that is permitted."""
    found, wanted = (os.getpriority(os.PRIO_PROCESS, process) for process in (0, os.getppid()))
    if found <= wanted:
        return
    try:
        for thread in Path("/proc/self/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), wanted)
    except PermissionError:
        _LOG.warning(
            "this process has a niceness of %d, so any other job on the machine slows it down: start Ray with "
            "RAY_worker_niceness=0",
            found,
        )
    except OSError:  # a thread that has just ended, or a system without /proc
        pass
