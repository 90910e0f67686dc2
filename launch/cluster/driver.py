"""Drives a distributed run: starts Ray and the supervisor, shows the run's state, turns signals into a clean stop.

Ray carries no bulk data: trajectories go over ZeroMQ, weights over a process group of their own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from launch.cluster.context import RunFailed
from launch.cluster.placement import actor_cpus
from launch.cluster.ray_session import ray_session
from launch.cluster.requests import Requests
from launch.cluster.supervisor import Supervisor
from launch.cluster.verify import differences
from launch.cluster.workload import Workload
from launch.config import Config
from launch.recipe import ConfigError
from launch.run.configuration import with_absolute_paths
from launch.run.console import Console
from launch.run.folder import RunFolder, append_event
from launch.run.interrupts import COMPLETE, INTERRUPTED, Interrupts, stop_details
from launch.run.measurements import measures_base
from launch.run.scratch import remove, scratch
from launch.run.summary import exit_code, summarise
from learner.lineage import split_label

WAIT_S = 60.0
"""Seconds that the actors have to end after the learner."""


def run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    workload: Workload,
    watch: Callable[[Supervisor], None] = lambda supervisor: None,
    interrupts: Interrupts | None = None,
) -> int:
    """Run to the end; returns the exit code.

    `workload`: what the processes do. `watch` is called after each poll of the supervisor.
    `interrupts`: where signals are listened to.
    """
    interrupts = interrupts or Interrupts()
    config = with_absolute_paths(config)  # processes have working directories of their own
    hosts = -(-config.actors.num_actors // config.rehearsal.actors_per_process)
    num_processes = config.learner.parallel.world_size + hosts * actor_cpus(config)
    check_port(config)
    try:
        with scratch(folder.path) as private:
            interrupts.last_acts.append(lambda why: remove(private))
            with ray_session(config.ray.address, num_processes, private, console.say, interrupts):
                return _drive(config, folder, resume, console, workload, watch, interrupts)
    except RunFailed as error:
        console.say(f"FAILED: {error}")
        append_event(folder, "run_ended", why=f"failed: {error}")
        return error.exit_code


def check_port(config: Config) -> None:
    """Raise ConfigError if another process of this machine listens at `stream.port` already."""
    if not config.stream.port or config.ray.address is not None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.stream_host, config.stream.port))
        except OSError as error:
            raise ConfigError(
                f"stream.port = {config.stream.port} cannot be used on {config.stream_host}: {error.strerror}. Set "
                "another port, or 0 for a free one"
            ) from None


def _drive(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    workload: Workload,
    watch: Callable[[Supervisor], None],
    interrupts: Interrupts,
) -> int:
    """The run itself, with Ray started. Raises RunFailed."""
    ray = workload.ray(config)
    supervisor = Supervisor(config, folder, ray, console.say, workload)
    requests = Requests(config, ray)
    console.say("starting the task buffer, the learner and the rollout actors (about a minute on a CPU)")
    if measures_base(config, folder):
        console.say("before the first step, the initial model is measured on the held-out tasks")
    stopping, killed_at = False, None
    try:
        supervisor.start(resume)
        console.stop_by = interrupts.limits.stop_by
        with interrupts.running(supervisor.has_unsaved_work, console.say, lambda: supervisor.status().durations.stop_s):
            with console.open(), requests.accepted():
                while not supervisor.poll():
                    folder.check_owner()
                    watch(supervisor)
                    requests.serve(supervisor)
                    if interrupts.stopping and (not stopping or interrupts.killed_at != killed_at):
                        stopping, killed_at = True, interrupts.killed_at
                        left_s = interrupts.left_s()
                        save_s = supervisor.status().durations.save_s
                        append_event(folder, "stopping", why=INTERRUPTED, **stop_details(left_s, save_s))
                        supervisor.stop(INTERRUPTED, None if left_s is None else left_s - save_s)
                    console.show(supervisor.status())
                console.show(supervisor.status())
            ledger, why, version, learned = supervisor.result()
            interrupts.saved()
            console.say("everything is saved; the rollout actors end")
            left_s = interrupts.left_s() if stopping else None
            running = supervisor.wait_for_actors(WAIT_S if left_s is None else min(WAIT_S, max(0.0, left_s)))
    finally:
        supervisor.kill()
    equal = not config.run.verify_weights or report_weights(version, learned, running, console)
    step = split_label(version)[0]
    append_event(folder, "run_ended", why=why or COMPLETE, step=step)
    code = summarise(folder, ledger, why, rehearsed=config.run.mode == "rehearse") or int(not equal)
    return exit_code(config, folder, code, stopping, step)


def report_weights(
    version: int, learned: dict[str, str], running: dict[str, tuple[int, dict[str, str]]], console: Console
) -> bool:
    """Say whether every engine runs the learner's weights, by their digests. False where one differs, or none was
    compared.

    `version`: label of the learner's last (`learner/lineage.py`); only engines that were sent it are compared. An actor
    that joined while the run stopped has an older one. `running`: by actor, its version's label and digests.
    """
    equal = compared = 0
    for actor, (loaded, weights) in sorted(running.items()):
        if loaded != version:
            theirs, ours = split_label(loaded)[0], split_label(version)[0]
            console.say(f"weights: {actor} was not compared: it has version {theirs}, the learner ended at {ours}")
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
