"""Starts a Ray of the run's own on this machine, or connects to the cluster that `ray.address` names."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray

from executor.cpus import allowed_cpus
from executor.signals import withheld
from launch.addresses import LOOPBACK
from launch.cluster.context import RunFailed
from launch.cluster.environment import of_parts, set_variables
from launch.recipe import ConfigError
from launch.run.descendants import descendants, end_all, lives
from launch.run.interrupts import LOST, Interrupts
from launch.run.scratch import environment

SPARE_CPUS = 64
"""Logical CPUs that Ray on this machine gets in addition, for actors that `azr scale` adds."""
PORT_S = 5.0
"""Seconds that the port of `ray.address` has to accept a connection."""
HEALTH_S = 90.0
"""Seconds that the cluster at `ray.address` has to say that it is healthy; they include the start of `ray`,
which takes long on a busy machine, or from a slow file system."""
_SERVERS = ("raylet", "gcs_server")
_LOOK_S = 1.0
_TOLD = ("A worker died or was killed", "has been marked dead")
"""What Ray says in a paragraph of the ends that the supervisor tells in a line."""


@contextlib.contextmanager
def ray_session(
    address: str | None, num_processes: int, scratch: Path, say: Callable[[str], None], interrupts: Interrupts
) -> Iterator[None]:
    """Connect to the cluster at `address`, or start Ray on this machine for `num_processes`; disconnect at the end.

    Without an address no other Ray is ever joined, whatever the environment names. `scratch`: the folder for its
    sockets and its own logs. `say` prints a line on the console. Raises ConfigError where no cluster answers, and
    RunFailed where Ray does not start.
    """
    set_variables()
    say("starting Ray" + (f" at {address}" if address else " on this machine"))
    if address:
        check_cluster(address)
        with _as_sentence(f"ray.address = {address}: Ray cannot connect"):
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": of_parts()})
    else:
        _start(num_processes, scratch)
    _silence_worker_death_messages()
    closing = threading.Event()
    if not address:
        threading.Thread(target=_watch, args=(closing, interrupts), name="azr-ray-watch", daemon=True).start()
    try:
        yield
    except ray.exceptions.RayError as error:
        raise RunFailed(f"Ray failed: {type(error).__name__}: {_last_line(error)}") from error
    finally:
        closing.set()
        mine = [] if address else descendants()
        ray.shutdown()
        end_all(mine, patience_s=1.0)  # Ray's agents outlive it for a while


def check_cluster(address: str) -> None:
    """Raise ConfigError within seconds if no Ray cluster answers at `address`. Ray itself would retry without end."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(f"ray.address = {address} is no address: it has the form host:port, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray.address = {address}: nothing listens there ({getattr(error, 'strerror', None) or error}). Start a "
            "cluster (`ray start --head`), or unset ray.address to let the run start a Ray of its own"
        ) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    with contextlib.suppress(subprocess.TimeoutExpired):
        found = subprocess.run(command, capture_output=True, timeout=HEALTH_S, check=False)
        if found.returncode == 0:
            return
    raise ConfigError(
        f"ray.address = {address}: what listens there is no healthy Ray cluster of version {ray.__version__}. Look "
        f"with `ray status --address={address}`. A cluster that asks for a token wants RAY_AUTH_MODE=token here as well"
    )


def _start(num_processes: int, scratch: Path) -> None:
    """Start Ray on this machine: its processes never receive an interrupt, and keep their files in `scratch`."""
    variables = {"TMPDIR": str(scratch / "tmp"), "RAY_ADDRESS": None, "RAY_TMPDIR": None}
    with withheld(), environment(**variables), _as_sentence("Ray does not start on this machine"):
        ray.init(
            address="local",
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False,
            # Logical CPUs only say that the processes may run side by side; threads are set in the recipe.
            num_cpus=max(num_processes, allowed_cpus()) + SPARE_CPUS,
            _node_ip_address=LOOPBACK,
            _temp_dir=str(scratch / "ray"),
        )


@contextlib.contextmanager
def _as_sentence(what: str) -> Iterator[None]:
    """Raise RunFailed for whatever Ray raises; `what` failed."""
    try:
        yield
    except Exception as error:
        raise RunFailed(f"{what}: {type(error).__name__}: {_last_line(error.__cause__ or error)}") from error


def _watch(closing: threading.Event, interrupts: Interrupts) -> None:
    """End the run when a server of its own Ray ends: without it no call on Ray is sure to return."""
    servers = {process: name for process in descendants() if (name := process.name()) in _SERVERS}
    while not closing.wait(_LOOK_S):
        for server, name in servers.items():
            if not lives(server) and not closing.is_set():
                interrupts.end(LOST, f"FAILED: Ray's {name} ended, and with it the run: something outside ended it")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no reason given"


def _silence_worker_death_messages() -> None:
    """Keep Ray from printing a paragraph for each process that ends; the supervisor prints a line, with the log's path.

    Ray has no setting for it: what the raylet reports goes to a driver's output even with `log_to_driver = False`.
    """
    worker: Any = ray._private.worker
    say = worker.print_to_stdstream
    if getattr(say, "without_worker_deaths", False):
        return

    def filtered(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        if not any(text in line for line in data["lines"] for text in _TOLD):
            say(data, *args, **kwargs)

    filtered.without_worker_deaths = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = filtered
