"""The parts of one run, started, watched and started again; the driver's side of a distributed run.

Who may fail, and what then happens:

    a rollout actor   what it held is dropped and granted again; it starts again as its next incarnation
    its sandboxes     the actor's own pool starts them again
    the task buffer   Ray starts it again on the same file; requests are made again meanwhile
    a learner rank    all ranks start again from the last checkpoint; the actors stay, and are brought to that version

Each within a budget (`launch/cluster/budget.py`), and then the run stops with an error that names the part and its log. What neither
answers nor ends is named after `run.watchdog_s`, and started again where that can help.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from executor.user_error import UserError
from launch.cluster import buffer_actor
from launch.cluster.budget import FailureBudget
from launch.cluster.learner_actor import LearnerActor
from launch.cluster.rollout_actor import RolloutActor
from launch.cluster.rollouts import Rollouts
from launch.cluster.verify import Verification
from launch.config import Config
from launch.run.console import REFRESH_S, Console
from launch.run.folder import RunFolder, append_event
from launch.run.status import RunStatus, describe
from learner.checkpoint import CheckpointError, Checkpoints
from learner.phase import Phase
from learner.stream.keys import RunKeys

BUFFER_SILENT_S = 60.0
"""A task buffer that does not answer for so long is started again."""
ENDING_S = 60.0
"""A learner that said shutdown ends within so long; if it does not, its actors start again."""
RANKS_S = 10.0
"""Within so long after a rank's error it is known which rank's process ended, if that was its cause."""
GONE = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What Ray raises for a call on an actor whose process ended."""


class RunFailed(UserError):
    """A part of the run died for good; the message names it and its log."""

    exit_code = 1


class Supervisor:
    """The parts of one run, and what to do when one of them ends. Belongs to one thread."""

    def __init__(self, config: Config, folder: RunFolder, resume: bool, console: Console) -> None:
        self._config = config
        # Actors of a cluster have working directories of their own.
        self._folder = folder = RunFolder(folder.path.absolute())
        self._console = console
        self._gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
        self._endpoint: str | None = None
        self._listening: Any = None
        self._keys = RunKeys.of_run(folder.path / "keys") if config.encrypted else None
        window_s = config.actors.restart_window_s
        self._learner_budget = FailureBudget(config.learner.max_restarts, window_s)
        self._buffer_budget = FailureBudget(config.buffer.max_restarts, window_s)
        self._learner_attempt = -1
        self.learners: list[Any] = []
        self._learning: list[Any] = []
        self._learner_again: float | None = None
        self._stopping: str | None = None
        self.rollouts = Rollouts(config, folder, resume)
        self.buffer = buffer_actor.start(config, folder.path)
        self._buffer_is_back = True
        self._asked: Any = None
        self._asked_at = 0.0
        self._buffer_metrics: dict[str, float] = {}
        self._status = RunStatus()
        self._status_asked: dict[int, Any] = {}
        """Rank -> Ray's reference to the status that it was asked for."""
        self._answered: dict[int, float] = {}
        """Rank -> when it last answered, or was started."""
        self._named_at = time.monotonic()
        opened = self.buffer.open.remote(resume)
        self._start_learners(resume, expected=config.actors.num_actors)
        try:
            ray.get(opened, timeout=config.actors.start_timeout_s)
        except ray.exceptions.RayError as error:
            self.kill()
            raise RunFailed(self._buffer_failed(error)) from None

    # -- what the driver asks ------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Look at every part once; True when the learner has finished. Raises RunFailed."""
        playing = self.rollouts.playing
        watched = [*self._learning, *playing]
        if watched:
            done, _ = ray.wait(watched, num_returns=1, timeout=REFRESH_S)
        else:  # all have ended, and some are about to start again
            done = []
            time.sleep(REFRESH_S)
        for ref in done:
            if ref in playing:
                self._ended(ref)
        self._watch_buffer()
        if self._watch_learners():
            return True
        self._watch_endpoint()
        self._watch_actors()
        return False

    def status(self) -> RunStatus:
        """What the learner last said of itself, with what only the supervisor knows."""
        if self._learner_again is not None:
            return replace(self._status, phase=Phase.RESTARTING, step=None)
        target = self._config.selfplay.seed_tasks_target
        have = int(self._buffer_metrics.get("buffer/deduction", target))
        if self._status.phase is Phase.WAITING_FOR_ACTORS and have < target:
            return replace(self._status, seeding=(have, target))
        return self._status

    def restarts(self) -> dict[str, int]:
        """Failures so far, by part."""
        return {
            "actor": self.rollouts.restarts,
            "buffer": self._buffer_budget.total,
            "learner": self._learner_budget.total,
        }

    def parts(self, part: str) -> dict[int, Any]:
        """Ray's handles of a part by index: of `actor` (also where its sandboxes are meant, `executor`), `buffer`, `learner`."""
        if part in ("actor", "executor"):
            return {index: self.rollouts.handles[index] for index in self.rollouts.playing.values()}
        return {0: self.buffer} if part == "buffer" else dict(enumerate(self.learners))

    def whole(self) -> bool:
        """Whether every part is there, and every actor plays."""
        connected = {f"rollout{index}" for index in range(self.rollouts.wanted)} <= set(self._status.members)
        playing = len(self.rollouts.playing) == self.rollouts.wanted
        return connected and playing and self._learner_again is None and self._buffer_is_back

    def scale(self, num_actors: int) -> None:
        """Have so many rollout actors from now on: new ones start, the last ones leave after what they hold."""
        self.rollouts.wanted = num_actors
        append_event(self._folder, "scaled", actors=num_actors)
        self._console.say(f"scaling to {num_actors} rollout actors")

    def verify(self) -> Verification:
        """Begin to compare the weights of every actor that has joined with the learner's."""
        rollouts = self.rollouts
        joined = {
            f"rollout{index}": rollouts.handles[index]
            for index in rollouts.playing.values()
            if index in rollouts.joined
        }
        return Verification(self.learners[0], joined, self._config.run.watchdog_s)

    def stop(self, why: str) -> None:
        """Ask every rank to stop cleanly."""
        self._stopping = why
        for actor in self.learners:
            actor.stop.remote(why)

    def kill(self) -> None:
        """End what is left; the buffer first closes its file."""
        with contextlib.suppress(Exception):
            ray.get(self.buffer.close.remote(), timeout=10)
        for actor in [*self.rollouts.handles.values(), *self.learners, self.buffer]:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    def wait_for_actors(self, timeout_s: float = 60.0) -> dict[str, dict[str, str]]:
        """After a shutdown, give engines and sandboxes the time to close; returns what each actor's run returned."""
        playing = self.rollouts.playing
        if playing:
            for ref in ray.wait(list(playing), num_returns=len(playing), timeout=timeout_s)[0]:
                with contextlib.suppress(Exception):
                    self.rollouts.results[f"rollout{playing[ref]}"] = ray.get(ref)
        return self.rollouts.results

    # -- the learner ---------------------------------------------------------------------------------------------

    def _start_learners(self, resume: bool, expected: int) -> None:
        """Start every rank; `expected`: rollout actors that are worth waiting for."""
        self._learner_attempt += 1
        world = self._config.learner.parallel.world_size
        learner = ray.remote(LearnerActor).options(num_cpus=1, num_gpus=self._gpu, max_concurrency=4)
        learner_keys = self._keys.learner if self._keys else None
        self.learners = [
            learner.remote(self._config, self._folder.path, rank, self._learner_attempt, self.buffer, learner_keys)
            for rank in range(world)
        ]
        # What rank 0 says of its machine reaches the others through Ray, without coming by here.
        store = self.learners[0].rendezvous.remote() if world > 1 else None
        self._learning = [actor.run.remote(store, self._endpoint, resume, expected) for actor in self.learners]
        self._listening = self.learners[0].listening.remote()
        now = time.monotonic()
        self._status_asked, self._answered = {}, dict.fromkeys(range(world), now)
        self.rollouts.seen = dict.fromkeys(self.rollouts.seen, now)  # nobody could be seen meanwhile
        if self._stopping:
            self.stop(self._stopping)

    def _watch_learners(self) -> bool:
        """True when every rank has ended well. A rank that died takes the others with it, and all start again."""
        now = time.monotonic()
        if self._learner_again is not None:
            if now >= self._learner_again:
                self._learner_again = None
                self._recover_checkpoints()
                self._start_learners(resume=True, expected=1)
            return False
        finished, running = ray.wait(self._learning, num_returns=len(self._learning), timeout=0)
        errors = self._errors_of(finished)
        if errors and running:
            # A rank whose process ends takes the others' collectives with it, and their errors may be here before its own.
            finished, running = ray.wait(self._learning, num_returns=len(self._learning), timeout=RANKS_S)
            errors = self._errors_of(finished)
        for rank, error in errors.items():
            if isinstance(error, GONE):
                self._learner_died(rank, _root(error))
                return False
        for rank, error in errors.items():
            raise RunFailed(f"the learner failed: {_root(error)}\nIts log: {self._learner_log(rank)}")
        if not running:
            return True
        self._ask_status(now)
        return False

    def _errors_of(self, finished: list[Any]) -> dict[int, Exception]:
        """Rank -> what ended its run, of those that did not end well."""
        errors = {}
        for ref in finished:
            try:
                ray.get(ref)
            except Exception as error:
                errors[self._learning.index(ref)] = error
        return errors

    def _learner_died(self, rank: int, why: str) -> None:
        log = self._learner_log(rank)
        wait_s = self._learner_budget.failed(time.monotonic())
        append_event(self._folder, "learner_lost", rank=rank, why=why)
        if wait_s is None:
            raise RunFailed(
                f"learner{rank} failed {self._learner_budget.total} times (learner.max_restarts = "
                f"{self._config.learner.max_restarts}): {why}\nIts log: {log}"
            )
        self._console.say(f"learner{rank} ended ({why}); all ranks start again from the last checkpoint; log: {log}")
        for actor in self.learners:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._learning = []
        self._listening = None
        self._learner_again = time.monotonic() + wait_s

    def _recover_checkpoints(self) -> None:
        """The learner may have died amid a write."""
        checkpoints = Checkpoints(self._folder.checkpoints, self._config.learner.keep_checkpoints)
        try:
            for notice in checkpoints.recover():
                self._console.say(notice)
                append_event(self._folder, "checkpoint_incomplete", notice=notice)
        except CheckpointError as error:
            raise RunFailed(str(error)) from None
        step = int(self._status.last.get("step", 0))
        if step and checkpoints.latest() is None:
            raise RunFailed(
                f"the learner ended after step {step}, and there is no checkpoint to go on from: set learner.checkpoint_every to "
                "some steps"
            )

    def _watch_endpoint(self) -> None:
        """Actors start once it is known where the learner listens, and again where it has moved to another machine."""
        if self._listening is None or not ray.wait([self._listening], timeout=0)[0]:
            return
        listening, self._listening = self._listening, None
        try:
            endpoint = ray.get(listening)
        except ray.exceptions.RayError:  # that it died is found out where its run ends
            return
        former, self._endpoint = self._endpoint, endpoint
        if former not in (None, endpoint):
            self._console.say(f"the learner has moved from {former} to {endpoint}: its actors start again, to find it")
            append_event(self._folder, "learner_moved", former=former, endpoint=endpoint)
            for index in self.rollouts.playing.values():
                self.rollouts.moving.add(index)
                ray.kill(self.rollouts.handles[index])

    def _ask_status(self, now: float) -> None:
        """Keep rank 0's newest status; name who waits for whom when nothing has changed for long."""
        for rank, actor in enumerate(self.learners):
            if rank not in self._status_asked:
                self._status_asked[rank] = actor.status.remote()
            elif ray.wait([self._status_asked[rank]], timeout=0)[0]:
                asked = self._status_asked.pop(rank)
                with contextlib.suppress(ray.exceptions.RayError):  # that it died is found out where its run ends
                    status = ray.get(asked)
                    self._answered[rank] = now
                    if rank == 0:
                        self._status = status
                        self._see(status, now)
        watchdog_s = self._config.run.watchdog_s
        rank, at = min(self._answered.items(), key=lambda item: item[1])
        if now - at > watchdog_s:
            phase = describe(self._status)
            self._learner_died(rank, f"it has not answered for {now - at:.0f} s; the learner's last phase: {phase}")
        elif self._status.phase_s > watchdog_s and now - self._named_at > watchdog_s:
            self._named_at = now
            waits = self._status.waiting_for
            text = f"the learner has been {describe(self._status)} for {self._status.phase_s:.0f} s. {waits}"
            if absent := set(range(self.rollouts.wanted)) - _indices(self._status.members):
                text += f"; not connected: {', '.join(f'rollout{index}' for index in sorted(absent))}"
            self._console.say(text)
            append_event(self._folder, "watchdog", text=text)

    def _see(self, status: RunStatus, now: float) -> None:
        """Note which actors the learner has. One that never gets to run its weights is as good as not connected."""
        members = _indices(status.members)
        alive = _indices(status.loaded) | (members - self.rollouts.joined)
        self.rollouts.joined |= members
        if status.phase is Phase.STARTING:  # it greets nobody yet
            alive = set(self.rollouts.playing.values())
        elif status.phase is Phase.WAITING_FOR_ACTORS:  # it publishes nothing yet
            alive = members
        self.rollouts.seen.update(dict.fromkeys(alive, now))

    def _learner_log(self, rank: int) -> Path:
        return self._folder.logs / f"learner{rank}.{self._learner_attempt}.log"

    # -- the task buffer -----------------------------------------------------------------------------------------

    def _watch_buffer(self) -> None:
        """Ask for its numbers again and again: what it answers says whether it lives."""
        now = time.monotonic()
        if self._asked is None:
            if now - self._asked_at > 1.0:
                self._asked, self._asked_at = self.buffer.metrics.remote(), now
            return
        if ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self._buffer_metrics = ray.get(asked)
                self._buffer_is_back = True
            except ray.exceptions.ActorUnavailableError as error:  # Ray starts it again
                if not self._buffer_is_back:  # it is being started again
                    self._asked_at = now
                    return
                self._buffer_lost(error, "ended", now)
            except ray.exceptions.RayError as error:
                raise RunFailed(self._buffer_failed(error)) from None
        elif now - self._asked_at > (silent_s := min(BUFFER_SILENT_S, self._config.run.watchdog_s)):
            said = f"has not answered for {silent_s:.0f} s"
            self._buffer_lost(TimeoutError(f"it {said}"), said, now)
            self._asked, self._asked_at = None, now
            ray.kill(self.buffer, no_restart=False)

    def _buffer_lost(self, error: Exception, what: str, now: float) -> None:
        self._buffer_is_back = False
        append_event(self._folder, "buffer_lost", why=_root(error))
        if self._buffer_budget.failed(now) is None:
            raise RunFailed(self._buffer_failed(error))
        self._console.say(f"the task buffer {what}; it starts again on the same file")

    def _buffer_failed(self, error: BaseException) -> str:
        return f"the task buffer failed: {_root(error)}\nIts log: {self._folder.logs / 'buffer.0.log'}"

    # -- the rollout actors --------------------------------------------------------------------------------------

    def _watch_actors(self) -> None:
        """Start what is due, send away what is too many, replace what is silent."""
        if self._endpoint is None:
            return
        now = time.monotonic()
        rollouts = self.rollouts
        for index, at in list(rollouts.again.items()):
            if index >= rollouts.wanted:
                del rollouts.again[index]
            elif now >= at:
                del rollouts.again[index]
                self._start(index)
        here = set(rollouts.playing.values())
        for index in range(rollouts.wanted):
            if index not in here and index not in rollouts.again:
                self._start(index)
        if self._learner_again is not None:
            return
        # Who has connected and waits for the end of a step to be given the weights is not to blame.
        waiting = _indices(self._status.members) if self._status.phase is not Phase.WAITING_FOR_BATCH else set()
        start_s, watchdog_s = self._config.actors.start_timeout_s, self._config.run.watchdog_s
        for index in here - rollouts.moving:
            if index >= rollouts.wanted:
                if index not in rollouts.leaving and index not in rollouts.joined:
                    ray.kill(rollouts.handles[index])  # it holds nothing yet
                elif index in rollouts.joined:  # again and again: the learner may be another life by now
                    self.learners[0].retire.remote(f"rollout{index}")
                rollouts.leaving.add(index)
            elif index in waiting:
                continue
            elif now - rollouts.seen[index] > watchdog_s + (0 if index in rollouts.joined else start_s):
                self._console.say(
                    f"rollout{index} has not run the learner's weights, or not been connected to it, for "
                    f"{now - rollouts.seen[index]:.0f} s; replacing it"
                )
                rollouts.seen[index] = now
                ray.kill(rollouts.handles[index])  # its run then ends with an error, and `_ended` starts it again

    def _start(self, index: int) -> None:
        rollouts = self.rollouts
        incarnation = rollouts.next_incarnation(index)
        actor_keys = self._keys.actor if self._keys else None
        actor = (
            ray.remote(RolloutActor)
            .options(num_cpus=1, num_gpus=self._gpu * self._config.engine.tensor_parallel)
            .remote(self._config, self._folder.path, index, incarnation, self._endpoint, self.buffer, actor_keys)
        )
        for ended in (rollouts.joined, rollouts.leaving, rollouts.moving):
            ended.discard(index)
        rollouts.handles[index] = actor
        rollouts.seen[index] = time.monotonic()
        rollouts.playing[actor.run.remote()] = index

    def _ended(self, ref: Any) -> None:
        """A rollout actor's run is over: fine after a shutdown; otherwise it starts again, later each time."""
        rollouts = self.rollouts
        index = rollouts.playing.pop(ref)
        incarnation = rollouts.incarnations[index]
        try:
            rollouts.results[f"rollout{index}"] = ray.get(ref)
            if index in rollouts.leaving:
                self._left(index)
                del rollouts.results[f"rollout{index}"]
            elif self._learning:
                # The learner said shutdown: it is about to end. Should it not, the actor is started again.
                rollouts.again[index] = time.monotonic() + ENDING_S
        except Exception as error:
            self.learners[0].lost.remote(f"rollout{index}", incarnation)
            if index in rollouts.leaving:
                self._left(index)
                return
            if index in rollouts.moving:
                return  # `_watch_actors` starts it again
            log = self._folder.logs / f"rollout{index}.{incarnation}.log"
            budget = rollouts.budget(index)
            wait_s = budget.failed(time.monotonic())
            if wait_s is None:
                raise RunFailed(
                    f"rollout{index} failed {budget.total} times (actors.max_restarts = {budget.most} within "
                    f"{budget.window_s:.0f} s): {_root(error)}\nIts log: {log}"
                ) from None
            self._console.say(
                f"rollout{index} failed ({_root(error)}); starting it again in {wait_s:.0f} s; log: {log}"
            )
            rollouts.again[index] = time.monotonic() + wait_s

    def _left(self, index: int) -> None:
        self._console.say(f"rollout{index} has left")
        del self.rollouts.handles[index]


def parse_scale(request: Mapping[str, Any]) -> int:
    """The number of actors of a scale request; ValueError says what is wrong with it."""
    actors = request["actors"]
    if not isinstance(actors, int) or isinstance(actors, bool) or not 1 <= actors <= 100_000:
        raise ValueError(f"{actors!r} rollout actors: a whole number from 1 on")
    return actors


def _indices(names: Iterable[str]) -> set[int]:
    """Of actors, from their names."""
    return {int(name.removeprefix("rollout")) for name in names}


def _root(error: BaseException) -> str:
    """What went wrong, without Ray's frames around it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ray.exceptions.RayActorError):
        if isinstance(cause, ray.exceptions.ActorDiedError) and "creation task" in str(cause):
            return str(cause).strip().splitlines()[-1]  # what its constructor raised
        return "its process ended"  # Ray's own words are a paragraph of what might have been
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return "Ray ended its process: the machine was short of memory"
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else ''}"
