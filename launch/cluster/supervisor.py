"""Starts the processes of a distributed run, watches them and restarts them.

Failures and their consequences:

    a rollout actor dies   its slots are dropped and granted again; it is restarted as its next incarnation
    a sandbox dies         the pool of its actor restarts it
    the task buffer dies   Ray restarts it on the same file; requests are repeated meanwhile
    a learner rank dies    all ranks are restarted from the last checkpoint; the actors stay and load that version

A rollout actor, the task buffer and the learner have a budget of failures each (`budget.py`). When it is spent, the
run stops with an error that names the process and its log. A process that hangs is killed and then treated as dead: a
learner rank or an actor after `supervision.watchdog_s`, the task buffer after 60 s. A learner that answers but makes
no progress for `supervision.watchdog_s` is reported, with what it waits for.

`lives.py` decides about rollout actors, `learner_ranks.py` about the learner, `buffer_process.py` about the task
buffer. `placement.py` assigns processes to nodes. All reach Ray through `ray_port.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.seeding import SEED_KIND
from launch.cluster.buffer_process import BufferProcess
from launch.cluster.context import RunContext, RunFailed
from launch.cluster.learner_ranks import LearnerRanks
from launch.cluster.node_check import NodeError, check_nodes
from launch.cluster.placement import PlacementError
from launch.cluster.places import Places
from launch.cluster.ray_port import Handle, RayPort
from launch.cluster.rollouts import Rollouts
from launch.cluster.verify import WeightComparison
from launch.cluster.workload import Workload
from launch.config import Config
from launch.run.console import REFRESH_S
from launch.run.folder import RunFolder
from launch.run.status import RunStatus, has_unsaved_work
from learner.phase import Phase
from learner.stream.keys import RunKeys


class Supervisor:
    """All processes of one run. Nothing starts before `start`. Belongs to one thread."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        ray: RayPort,
        say: Callable[[str], None],
        workload: Workload,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` prints a line on the console; `workload`: what the processes do; `clock` gives seconds."""
        self._context = context = RunContext(config, folder.absolute(), ray, say, workload, clock)
        self._places = places = Places(config, ray, say, clock)
        self._buffer = BufferProcess(context, places)
        self._learner = LearnerRanks(context, places)
        self._rollouts = Rollouts(context, self._learner, places)

    def start(self, resume: bool) -> None:
        """Start the task buffer and the learner; the actors follow when `poll` knows where the learner listens.

        Raises RunFailed. After it, as after every error, `kill` ends what runs.
        """
        config = self._context.config
        try:
            self._places.settle()
            if config.ray.address is not None:
                context = self._context
                check_nodes(config, context.folder, context.ray, self._places.nodes, config.actors.start_timeout_s)
        except (PlacementError, NodeError) as error:
            raise RunFailed(str(error)) from None
        keys = RunKeys.of_run(self._context.folder.path / "keys") if config.encrypted else None
        self._buffer.start(resume)
        self._learner.start(self._buffer.handle, keys.learner if keys else None, resume)
        self._rollouts.start(self._buffer.handle, keys.actor if keys else None, resume)
        self._buffer.wait_until_open(config.actors.start_timeout_s)

    # -- the run's course ----------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Look at every process once; waits up to `REFRESH_S`. True when the learner has finished. Raises RunFailed."""
        running = self._rollouts.running
        for run in self._context.ray.finished([*self._learner.runs, *running], REFRESH_S):
            if run in running:
                self._rollouts.ended(run)
        self._buffer.poll()
        if self._learner.poll(self._rollouts.wanted):
            return True
        self._rollouts.poll()
        return False

    def status(self) -> RunStatus:
        """The learner's newest status, with restarts and seeding added."""
        status = self._learner.status
        if not self._learner.is_up:
            return replace(status, phase=Phase.RESTARTING, step=None)
        wanted = self._context.config.selfplay.seed_tasks_target
        have = int(self._buffer.metrics.get(f"buffer/{SEED_KIND}", wanted))
        if status.phase is Phase.WAITING_FOR_ACTORS and have < wanted:
            return replace(status, seeding=(have, wanted))
        return status

    def result(self) -> tuple[Any, str, int, dict[str, str]]:
        """See `LearnerActor.result`; call it after `poll` has returned True. Raises RunFailed."""
        return self._learner.result()

    def has_unsaved_work(self) -> bool:
        """See `launch.run.status.has_unsaved_work`. Any thread may call it."""
        return self._learner.is_up and has_unsaved_work(self._learner.status)

    def wait_for_actors(self, timeout_s: float = 60.0) -> dict[str, tuple[int, dict[str, str]]]:
        """Wait for the actors that have joined to end after the learner; returns name -> result of `RolloutActor.run`.

        The others are killed: they have nothing to give back.
        """
        self._rollouts.wait(timeout_s)
        return self._rollouts.results

    def stop(self, why: str, save_in_s: float | None = None) -> None:
        """Ask every learner rank to stop before its next step, and to save.

        `save_in_s`: seconds until they have to begin to save; None: any time.
        """
        self._learner.stop(why, save_in_s)

    def kill(self) -> None:
        """End every process; the task buffer first closes its file."""
        self._buffer.close()
        self._rollouts.kill()
        self._learner.kill()
        self._buffer.kill()

    # -- requests of other processes -----------------------------------------------------------------------------

    def scale(self, num_actors: int) -> None:
        """Set the number of rollout actors. Missing ones are started; surplus ones finish their slots and exit."""
        self._rollouts.scale(num_actors)
        self._context.event("scaled", actors=num_actors)
        self._context.say(f"scaling to {num_actors} rollout actors")

    def verify(self) -> WeightComparison:
        """Begin to compare the weights of every actor that has joined with the learner's."""
        context = self._context
        timeout_s = context.config.supervision.watchdog_s
        return WeightComparison(context.ray, self._learner.handles[0], self._rollouts.joined, timeout_s, context.clock)

    def limit_staleness(self, max_staleness: int, timeout_s: float = 60.0) -> None:
        """Change `learner.max_staleness` while the run goes on, for benchmarks. Raises CallFailed and TimeoutError."""
        ray = self._context.ray
        ray.result(ray.call(self._learner.handles[0], "limit_staleness", max_staleness), timeout_s)

    # -- for drills and rehearsals ------------------------------------------------------------------------------

    def restarts(self) -> dict[str, int]:
        """Number of failures so far, by part: `actor` (all of them), `buffer`, `learner`."""
        return {
            "actor": self._rollouts.restarts,
            "buffer": self._buffer.restarts,
            "learner": self._learner.restarts,
        }

    def processes(self, part: str) -> dict[int, Handle]:
        """The running processes of `actor`, `buffer` or `learner`, by index."""
        if part == "actor":
            return {life.index: life.handle for life in self._rollouts.running.values()}
        return {0: self._buffer.handle} if part == "buffer" else self._learner.handles

    def ask(self, process: Handle, method: str, timeout_s: float = 30.0) -> Any:
        """Call a method of one process and wait for its answer. Raises CallFailed and TimeoutError."""
        return self._context.ray.result(self._context.ray.call(process, method), timeout_s)

    def end(self, process: Handle) -> None:
        """End one process at once, as a failure of it would."""
        self._context.ray.kill(process, restart=process is self._buffer.handle)

    def whole(self) -> bool:
        """Whether every process runs and answers, and every wanted actor is connected to the learner."""
        wanted = self._rollouts.wanted
        connected = {f"rollout{index}" for index in range(wanted)} <= set(self._learner.status.members)
        return connected and len(self._rollouts.running) == wanted and self._learner.is_up and self._buffer.is_answering
