"""The distributed run: Ray places the learner's ranks, the task buffer and the rollout actors; `Supervisor` watches them.

Ray carries no bulk data: trajectories go over ZeroMQ, weights over a process group. The driver polls the learner's status
for the console, starts what died again, and turns Ctrl-C into a clean stop.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from launch.addresses import LOOPBACK
from launch.cluster.control import ControlServer
from launch.cluster.supervisor import RunFailed, Supervisor, parse_scale
from launch.cluster.verify import Verification, differences
from launch.config import Config, ConfigError
from launch.run.console import Console, View
from launch.run.folder import RunFolder
from launch.run.interrupts import interrupts
from launch.run.summary import summarise

SPARE_CPUS = 64
"""Logical CPUs of a Ray of our own beyond what the run starts with, for the actors that `azr scale` adds."""


def run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    watch: Callable[[Supervisor], None] = lambda supervisor: None,
) -> int:
    """Run to the end; returns the exit code. `watch` is called again and again while the run goes on, for drills."""
    num_processes = config.learner.parallel.world_size + config.actors.num_actors
    requests = Requests(config)
    with start_ray(config.ray.address, num_processes, console), interrupts() as interrupted:
        console.say("starting the task buffer, the learner and the rollout actors (about a minute on a CPU)")
        try:
            supervisor = Supervisor(config, folder, resume, console)
        except RunFailed as error:
            console.say(f"FAILED: {error}")
            return 1
        stopping = 0
        try:
            with console.open(), requests.taken():
                while not supervisor.poll():
                    watch(supervisor)
                    requests.serve(supervisor)
                    if interrupted.count > stopping:
                        stopping = interrupted.count
                        if stopping > 1:
                            raise RunFailed("stopped at once by a second interrupt; what was not saved is lost")
                        console.say("stopping after the present step, and saving; interrupt again to stop at once")
                        supervisor.stop("interrupted")
                    console.show(supervisor.status())
                console.show(supervisor.status())
            ledger, why, learned = ray.get(supervisor.learners[0].result.remote())
            running = supervisor.wait_for_actors()
        except RunFailed as error:
            console.say(f"FAILED: {error}")
            return 1
        finally:
            supervisor.kill()
    equal = not config.run.verify_weights or report_weights(learned, running, console)
    return summarise(folder, ledger, why) or int(not equal)


class Requests:
    """What other processes ask of a run that goes on: taken on the control socket's thread, done on the supervisor's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._asked: queue.SimpleQueue[Callable[[Supervisor], None]] = queue.SimpleQueue()
        self._verifying: dict[int, Verification] = {}
        self._reports: dict[int, dict[str, Any]] = {}

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take them until the block ends."""
        handlers = {"scale": self._scale, "verify": self._verify, "verified": self._verified}
        server = ControlServer(self._config.folder, handlers)
        try:
            yield
        finally:
            server.close()

    def serve(self, supervisor: Supervisor) -> None:
        """Do what has been asked; never waits."""
        while not self._asked.empty():
            self._asked.get()(supervisor)
        for number, verification in list(self._verifying.items()):
            verification.poll()
            self._reports[number] = verification.report()
            if verification.done:
                del self._verifying[number]

    def _scale(self, request: Mapping[str, Any]) -> dict[str, int]:
        actors = parse_scale(request)
        room = self._config.actors.num_actors + SPARE_CPUS
        if not self._config.ray.address and actors > room:
            raise ValueError(f"{actors} rollout actors: this run's own Ray has room for {room}; start one with more")
        self._asked.put(lambda supervisor: supervisor.scale(actors))
        return {"actors": actors}

    def _verify(self, request: Mapping[str, Any]) -> dict[str, int]:
        number = len(self._reports)

        def begin(supervisor: Supervisor) -> None:
            self._verifying[number] = supervisor.verify()

        self._reports[number] = {"done": False, "waits_for": "the run's driver", "results": {}}
        self._asked.put(begin)
        return {"number": number}

    def _verified(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._reports[int(request["number"])]


@contextlib.contextmanager
def start_ray(address: str | None, num_processes: int, view: View[Any]) -> Iterator[None]:
    """Ray on this machine for this run's processes, or the cluster at `address`; raises ConfigError where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default of 15 gives way to everything else on the machine, and a learner's step then takes many times as long.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Learner and engines share cores on a CPU: a thread that spins at a barrier takes the core from the one it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: a quarter of the page faults of the first steps
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        # Logical CPUs only say that the parts may run side by side; threads are set in the recipe.
        options |= {
            "include_dashboard": False,
            "num_cpus": max(num_processes, os.cpu_count() or 1) + SPARE_CPUS,
            "_node_ip_address": LOOPBACK,
        }
    view.say("starting Ray" + (f" at {address}" if address else " on this machine"))
    try:
        ray.init(**options)
    except ConnectionError as error:
        why = str(error.__cause__ or error).strip().splitlines()[-1]
        raise ConfigError(
            f"ray.address = {address}: {why} (Is a cluster there? `ray status --address={address}`. A cluster that asks for a token "
            "wants RAY_AUTH_MODE=token here as well.)"
        ) from error
    _without_obituaries()
    try:
        yield
    finally:
        ray.shutdown()


def report_weights(learned: dict[str, str], running: dict[str, dict[str, str]], console: Console) -> bool:
    """Say whether every engine runs the learner's weights, by their digests; False where one does not, or none was seen."""
    for actor, weights in running.items():
        if different := differences(learned, weights):
            console.say(
                f"weights: {actor} DIFFERS from the learner in {len(different)} of {len(learned)} tensors: {different[:3]}"
            )
            return False
        console.say(f"weights: {actor} equals the learner in all {len(learned)} tensors, bit by bit")
    if not running:
        console.say("weights: no engine was left to compare with")
    return bool(running)


def _without_obituaries() -> None:
    """Ray prints a paragraph on the console for each process that ends; the supervisor says it in a line, with its log.

    There is no setting for it: what the raylet reports goes to a driver's output even with `log_to_driver = False`.
    """
    worker: Any = ray._private.worker
    say = worker.print_to_stdstream
    if getattr(say, "quiet", False):
        return

    def quiet(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        if not any("A worker died or was killed" in line for line in data["lines"]):
            say(data, *args, **kwargs)

    quiet.quiet = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = quiet
