"""Starts Ray on this machine for one run, or connects to a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from launch.addresses import LOOPBACK
from launch.recipe import ConfigError

SPARE_CPUS = 64
"""Logical CPUs that Ray on this machine gets in addition, for actors that `azr scale` adds."""


@contextlib.contextmanager
def ray_session(address: str | None, num_processes: int, say: Callable[[str], None]) -> Iterator[None]:
    """Connect to the cluster at `address`, or start Ray on this machine for `num_processes`; disconnect at the end.

    `say` prints a line on the console. Raises ConfigError where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # With Ray's default of 15 any other job on the machine makes a learner's step many times slower.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Learner and engines share cores on a CPU: a thread that spins at a barrier blocks the thread it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: the first steps take a quarter of the page faults
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        # Logical CPUs only say that the processes may run side by side; threads are set in the recipe.
        options |= {
            "include_dashboard": False,
            "num_cpus": max(num_processes, os.cpu_count() or 1) + SPARE_CPUS,
            "_node_ip_address": LOOPBACK,
        }
    say("starting Ray" + (f" at {address}" if address else " on this machine"))
    try:
        ray.init(**options)
    except ConnectionError as error:
        why = str(error.__cause__ or error).strip().splitlines()[-1]
        raise ConfigError(
            f"ray.address = {address}: {why} (Is a cluster there? `ray status --address={address}`. A cluster that "
            "asks for a token wants RAY_AUTH_MODE=token here as well.)"
        ) from error
    _silence_worker_death_messages()
    try:
        yield
    finally:
        ray.shutdown()


def _silence_worker_death_messages() -> None:
    """Keep Ray from printing a paragraph for each process that ends; the supervisor prints a line, with the log's path.

    Ray has no setting for it: what the raylet reports goes to a driver's output even with `log_to_driver = False`.
    """
    worker: Any = ray._private.worker
    say = worker.print_to_stdstream
    if getattr(say, "without_worker_deaths", False):
        return

    def filtered(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        if not any("A worker died or was killed" in line for line in data["lines"]):
            say(data, *args, **kwargs)

    filtered.without_worker_deaths = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = filtered
