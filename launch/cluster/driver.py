"""Drives a distributed run: starts Ray and the supervisor, shows the run's state, turns Ctrl-C into a clean stop.

Ray carries no bulk data: trajectories go over ZeroMQ, weights over a process group of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from launch.cluster.context import RunFailed
from launch.cluster.ray_port import Ray
from launch.cluster.ray_session import ray_session
from launch.cluster.requests import Requests
from launch.cluster.supervisor import Supervisor
from launch.cluster.verify import differences
from launch.config import Config
from launch.run.console import Console
from launch.run.folder import RunFolder
from launch.run.interrupts import interrupts
from launch.run.summary import summarise


def run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    watch: Callable[[Supervisor], None] = lambda supervisor: None,
) -> int:
    """Run to the end; returns the exit code. `watch` is called after each poll of the supervisor, for drills."""
    num_processes = config.learner.parallel.world_size + config.actors.num_actors
    ray = Ray()
    supervisor = Supervisor(config, folder, ray, console.say)
    requests = Requests(config, ray)
    with ray_session(config.ray.address, num_processes, console.say), interrupts() as interrupted:
        console.say("starting the task buffer, the learner and the rollout actors (about a minute on a CPU)")
        num_interrupts = 0
        try:
            supervisor.start(resume)
            with console.open(), requests.accepted():
                while not supervisor.poll():
                    watch(supervisor)
                    requests.serve(supervisor)
                    if interrupted.count > num_interrupts:
                        num_interrupts = interrupted.count
                        if num_interrupts > 1:
                            raise RunFailed("stopped at once by a second interrupt; what was not saved is lost")
                        console.say("stopping after the present step, and saving; interrupt again to stop at once")
                        supervisor.stop("interrupted")
                    console.show(supervisor.status())
                console.show(supervisor.status())
            ledger, why, version, learned = supervisor.result()
            running = supervisor.wait_for_actors()
        except RunFailed as error:
            console.say(f"FAILED: {error}")
            return 1
        finally:
            supervisor.kill()
    equal = not config.run.verify_weights or report_weights(version, learned, running, console)
    return summarise(folder, ledger, why) or int(not equal)


def report_weights(
    version: int, learned: dict[str, str], running: dict[str, tuple[int, dict[str, str]]], console: Console
) -> bool:
    """Say whether every engine runs the learner's weights, by their digests. False where one differs, or none was
    compared.

    `version`: the learner's last; only engines that were sent it are compared. An actor that joined while the run
    stopped has an older one. `running`: by actor, its version and digests.
    """
    equal = compared = 0
    for actor, (loaded, weights) in sorted(running.items()):
        if loaded != version:
            console.say(f"weights: {actor} was not compared: it has version {loaded}, the learner ended at {version}")
            continue
        compared += 1
        if different := differences(learned, weights):
            counts = f"{len(different)} of {len(learned)} tensors"
            console.say(f"weights: {actor} DIFFERS from the learner in {counts}: {different[:3]}")
        else:
            equal += 1
            console.say(f"weights: {actor} equals the learner in all {len(learned)} tensors, bit by bit")
    if not compared:
        console.say("weights: no engine was left to compare with")
    return 0 < compared == equal
