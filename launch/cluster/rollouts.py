"""Supervises the rollout actors: carries out the decisions of `launch.cluster.lives`."""

from __future__ import annotations

import contextlib

from launch.cluster import lives
from launch.cluster.budget import FailureBudget
from launch.cluster.context import RunContext, RunFailed
from launch.cluster.learner_ranks import LearnerRanks
from launch.cluster.lives import ActorLife, Ending, Kill, Reason, Retire, Situation, Start
from launch.cluster.placement import PlacementError
from launch.cluster.places import Places
from launch.cluster.ray_port import CallFailed, Handle, Reference
from launch.cluster.rollout_actor import RolloutActor
from learner.stream.keys import ActorKeys

PLACE_AGAIN_S = 10.0
"""Seconds until a place is looked for again, for an actor that has none because its node is lost."""


class Rollouts:
    """All rollout actors of a run, also those that have left."""

    def __init__(self, context: RunContext, learner: LearnerRanks, places: Places) -> None:
        self._context = context
        self._learner = learner
        self._places = places
        self._homeless: set[int] = set()
        """The actors that no node has room for."""
        self._lives: dict[int, ActorLife] = {}
        self._first = 0
        self._life = 0
        self._has_joined = False
        self._buffer: Handle = None
        self._keys: ActorKeys | None = None
        self.wanted = context.config.actors.num_actors
        self.results: dict[str, tuple[int, dict[str, str]]] = {}
        """Name -> result of `RolloutActor.run`, of actors that ended well."""

    def start(self, buffer: Handle, keys: ActorKeys | None, resume: bool) -> None:
        """Begin. Actors are started by `poll`, once the learner's endpoint is known. `keys`: of the stream."""
        self._buffer, self._keys = buffer, keys
        # A resumed run counts incarnations on from those of the checkpoint, which must not be used twice.
        logs = self._context.folder.logs.glob("rollout*.log") if resume else ()
        self._first = 1 + max((int(path.stem.rsplit(".", 1)[-1]) for path in logs), default=-1)

    @property
    def running(self) -> dict[Reference, ActorLife]:
        """The actors that have a process, by the reference to the result of its `run`."""
        return {life.run: life for life in self._lives.values() if life.has_process}

    @property
    def joined(self) -> dict[str, Handle]:
        """Name -> process, of the actors that have joined."""
        states = (lives.State.JOINED, lives.State.LEAVING)
        return {life.name: life.handle for life in self._lives.values() if life.state in states}

    @property
    def restarts(self) -> int:
        """Failures of all actors so far."""
        return sum(life.budget.total for life in self._lives.values())

    def scale(self, num_actors: int) -> None:
        """Set the number of actors. Missing ones are started; surplus ones finish their slots and exit."""
        self.wanted = num_actors

    def poll(self) -> None:
        """Decide about every actor once. Nothing happens before the learner's endpoint is known."""
        learner, now = self._learner, self._context.clock()
        if learner.endpoint is None:
            return
        self._look(now)
        situation = Situation(
            wanted=self.wanted,
            status=learner.status,
            endpoint=learner.endpoint,
            learner_is_up=learner.is_up,
            watchdog_s=self._context.config.supervision.watchdog_s,
            start_timeout_s=self._context.config.actors.start_timeout_s,
        )
        for index in range(self.wanted):
            if index not in self._lives:
                settings = self._context.config.supervision
                budget = FailureBudget(settings.max_actor_restarts, settings.restart_window_s)
                self._lives[index] = ActorLife(index, self._first - 1, budget)
        for life in self._lives.values():
            decision = lives.decide(life, situation, now)
            match decision:
                case Start():
                    self._start(life, learner.endpoint, now)
                case Kill(reason, silent_s):
                    if reason is Reason.SILENT:
                        self._context.say(
                            f"{life.name} has not run the learner's weights, or not been connected to it, for "
                            f"{silent_s:.0f} s; replacing it"
                        )
                    self._context.ray.kill(life.handle)
                case Retire():
                    learner.retire(life.name)
            lives.carried_out(life, decision, now)

    def ended(self, run: Reference) -> None:
        """Deal with the end of an actor's process; `run`: its key in `running`.

        Raises RunFailed if it failed too often, or if no actor has joined yet and this one could never work.
        """
        life = self.running[run]
        log = self._context.folder.logs / f"{life.name}.{life.incarnation}.log"
        failure: CallFailed | None = None
        try:
            self.results[life.name] = self._context.ray.result(run)
        except CallFailed as error:
            failure = error
            self._learner.lost(life.name, life.incarnation)
            if error.lasting and not self._has_joined:
                raise RunFailed(f"{life.name} failed: {error}\nIts log: {log}") from None
        now = self._context.clock()
        ending = lives.ended(life, failure is not None, self._learner.is_up, now)
        if ending is Ending.LEFT:
            self.results.pop(life.name, None)
            self._places.leave(life.index)
            self._context.say(f"{life.name} has left")
        elif ending is Ending.FAILED:
            wait_s = life.start_at - now
            self._context.say(f"{life.name} failed ({failure}); starting it again in {wait_s:.0f} s; log: {log}")
        elif ending is Ending.EXHAUSTED:
            budget = life.budget
            raise RunFailed(
                f"{life.name} failed {budget.total} times (supervision.max_actor_restarts = {budget.most} within "
                f"{budget.window_s:.0f} s): {failure}\nIts log: {log}"
            )

    def wait(self, timeout_s: float) -> None:
        """Wait for the actors that have joined, and keep the results of all that end well. Kill those that have not
        joined: they may start for minutes."""
        ray, running = self._context.ray, self.running
        ended = ray.finished(list(running), count=len(running))
        for run, life in list(running.items()):
            if run not in ended and life.state not in (lives.State.JOINED, lives.State.LEAVING):
                ray.kill(life.handle)
                del running[run]
        for run in ray.finished(list(running), timeout_s if running else 0.0, count=len(running)):
            with contextlib.suppress(CallFailed):
                self.results[running[run].name] = ray.result(run)

    def kill(self) -> None:
        """End every process."""
        for life in self.running.values():
            self._context.ray.kill(life.handle)

    def _look(self, now: float) -> None:
        """Note which actors are connected to the learner."""
        if self._life != self._learner.life:
            self._life = self._learner.life
            for life in self.running.values():
                life.seen_at = now  # nobody can be connected while no learner runs
        if (status := self._learner.fresh_status()) is not None:
            lives.observe(self._lives.values(), status, now)
            self._has_joined |= bool(self.joined)

    def _start(self, life: ActorLife, endpoint: str, now: float) -> None:
        try:
            assignment = self._places.actor(life.index)
        except PlacementError as error:
            self._wait_for_room(life, error, now)
            return
        self._homeless.discard(life.index)
        handle = self._context.ray.start(
            assignment,
            RolloutActor,
            self._context.workload,
            self._context.config,
            self._context.folder,
            life.index,
            life.incarnation + 1,
            endpoint,
            self._buffer,
            self._keys,
        )
        life.started(handle, self._context.ray.call(handle, "run"), endpoint, now)

    def _wait_for_room(self, life: ActorLife, error: PlacementError, now: float) -> None:
        """Put the start of an actor off. Raises RunFailed where no node has room for any of them."""
        life.start_at = now + PLACE_AGAIN_S
        if life.index not in self._homeless:
            self._context.say(f"{life.name} has no place, and waits for one. {error}")
            self._context.event("actor_without_place", actor=life.name, why=str(error))
        self._homeless.add(life.index)
        if self._homeless.issuperset(range(self.wanted)):
            raise RunFailed(f"no rollout actor has a place any more. {error}")
