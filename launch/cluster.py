"""The distributed run: Ray places the learner's ranks, the task buffer and the rollout actors, and this supervises them.

Ray carries no bulk data: trajectories go over ZeroMQ, weights over a process group. The driver polls the learner's status
for the console, starts a dead rollout actor again, and turns Ctrl-C into a clean stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from actors.buffer import RemoteBuffer
from launch import buffer_actor
from launch.config import Config
from launch.console import REFRESH_S, Console
from launch.models import prepare
from launch.recorder import Recorder, RunFolder, log_to, work_log
from launch.summary import summarise

LOOPBACK = "127.0.0.1"
WAITING_FOR_ACTORS = "waiting for rollout actors"
BUFFER_TIMEOUT_S = 60.0
"""How long the learner waits for the task buffer's numbers, and the supervisor for a sign of life."""


class RunFailed(RuntimeError):
    """A part of the run died for good; the message names it and its log."""


class LearnerActor:
    """One learner rank. Rank 0 also has the stream, the ledger and the run's files."""

    def __init__(self, config: Config, folder: Path, rank: int, store: str | None, buffer: Any) -> None:
        self._config = config
        self._folder = RunFolder(folder.absolute())
        log_to(self._folder, f"learner{rank}", 0)
        self._rank = rank
        self._store = store
        self._buffer = buffer
        self._status: dict[str, Any] = {"phase": "starting", "phase_since": time.monotonic()}
        self._stream: Any = None
        self._generated = (0.0, 0.0, time.monotonic())
        self._checksums: dict[str, str] = {}

    def open(self) -> str | None:
        """Open the stream; returns its endpoint (rank 0), so that actors can start while the model loads."""
        from launch.assemble import make_gate
        from learner.stream import StreamServer

        if self._rank == 0:
            self._stream = StreamServer(make_gate(self._config), run_id=self._config.run.name)
            return str(self._stream.endpoint)
        return None

    def run(self, resume: bool) -> None:
        """The learner's whole life."""
        from transformers import AutoTokenizer

        from launch.assemble import Saved, make_hooks, make_trainer
        from learner.checkpoint import Checkpoints
        from learner.loop import learn
        from learner.publisher import GroupPublisher
        from learner.weights import WeightSender, checksum

        config, stream = self._config, self._stream
        model_dir = prepare(config.model.path)
        trainer = make_trainer(config, model_dir, self._rank, self._store)
        checkpoints = Checkpoints(self._folder.checkpoints, config.learner.keep_checkpoints)
        saved = Saved(checkpoints, trainer, lambda path: ray.get(self._buffer.snapshot.remote(path)))
        step = saved.resume(stream, stream.requeue if stream else lambda queued: None) if resume else 0
        recorder = sender = None
        if stream is not None:
            recorder = Recorder(
                self._folder, AutoTokenizer.from_pretrained(str(model_dir)), config.run.record_trajectories, step
            )
            stream.on_event = recorder.event
            sender = WeightSender(trainer.policy.device, host=LOOPBACK, timeout_s=config.learner.sync_timeout_s)
        publisher = GroupPublisher(trainer.policy, trainer.ranks, stream, sender, config.engine.tensor_parallel)
        hooks = make_hooks(
            config,
            recorder,
            lambda version: saved.save(version, stream),
            self._status,
            lambda: dict(ray.get(self._buffer.metrics.remote(), timeout=BUFFER_TIMEOUT_S)),
        )
        try:
            if stream is not None:
                hooks.on_wait(WAITING_FOR_ACTORS)
                stream.wait_for_members(config.actors.num_actors, config.actors.start_timeout_s, hooks.interrupted)
            learn(trainer, stream, publisher, config.learner, hooks)
            hooks.on_wait("done")
            if config.run.verify_weights:
                self._checksums = checksum(trainer.policy.export())
        finally:
            if stream is not None:
                stream.close()
            publisher.close()
            if recorder is not None:
                recorder.close()

    def status(self) -> dict[str, Any]:
        """For the console: phase, last numbers, what actors report, the ledger."""
        status = {key: value for key, value in self._status.items() if key != "phase_since"}
        status["phase_s"] = time.monotonic() - self._status["phase_since"]
        if self._stream is not None:
            from learner.staleness import totals

            with self._stream.frozen():
                status["live"] = self._stream.stats()
                status["ledger"] = totals(self._stream.gate.ledger())
            total, rate, since = self._generated
            now, tokens = time.monotonic(), status["live"].get("tokens_generated", 0.0)
            if now - since > 2.0:
                rate = max(0.0, tokens - total) / (now - since)
                self._generated = (tokens, rate, now)
            status["generate_tokens_per_s"] = rate
        return status

    def lost(self, actor_id: str, incarnation: int) -> None:
        """The supervisor saw this actor die: nothing has to wait for its heartbeat to fail."""
        for member in self._stream.members():
            if member.holder == (actor_id, incarnation):
                self._stream.lose(member, "its process ended")

    def stop(self, why: str) -> None:
        """Stop before the next batch, and save."""
        self._status["stop"] = why
        if self._stream is not None:
            self._stream.poke()

    def result(self) -> tuple[Any, str, dict[str, str]]:
        """The final ledger, why the run stopped early, and digests of the final weights (`run.verify_weights`)."""
        return self._stream.gate.ledger(), str(self._status.get("stop") or ""), self._checksums


class RolloutActor:
    """One rollout actor: sandboxes, an engine, and the loop of `actors.rollout`."""

    def __init__(self, config: Config, folder: Path, index: int, incarnation: int, endpoint: str, buffer: Any) -> None:
        self._config = config
        self._id = f"rollout{index}"
        self._incarnation = incarnation
        self._endpoint = endpoint
        self._buffer = buffer
        self._folder = RunFolder(folder.absolute())
        log_to(self._folder, self._id, incarnation)
        self._engine: Any = None

    async def run(self) -> dict[str, str]:
        """Play until the learner says shutdown; returns digests of the engine's weights by name (`run.verify_weights`)."""
        from actors.engine import AsyncEngine
        from actors.heldout import Heldout
        from actors.rollout import Rollout
        from executor.judge import Judge
        from executor.pool import SandboxPool
        from learner.stream import StreamClient

        config = self._config
        pool = SandboxPool(config.executor)
        await pool.start()
        seed = config.run.seed + 7919 * self._incarnation + int(self._id.removeprefix("rollout"))
        self._engine = AsyncEngine(prepare(config.model.path), config.engine, seed=seed)
        try:
            await self._engine.start()
            client = StreamClient(self._endpoint, self._id, self._incarnation, config.actors.concurrency)
            try:
                record = work_log(self._folder, self._id, config.executor.record_work)
                judge = Judge(pool, config.executor, record=record, rules=config.selfplay.rules)
                heldout = Heldout(self._engine, judge, config.selfplay) if self._id == "rollout0" else None
                buffer = RemoteBuffer(self._buffer)
                await Rollout(self._engine, judge, buffer, client, config.selfplay, heldout).run()
                return await self._engine.checksums() if config.run.verify_weights else {}
            finally:
                client.close()
        finally:
            await self._engine.close()
            await pool.close()


class Supervisor:
    """The parts of one run, and what to do when one of them ends."""

    def __init__(self, config: Config, folder: RunFolder, resume: bool, console: Console) -> None:
        self._config = config
        self._folder = folder
        self._console = console
        gpus = ray.cluster_resources().get("GPU", 0)
        self._gpu = 1 if gpus else 0
        world = config.learner.parallel.world_size
        store = f"tcp://{LOOPBACK}:{free_port()}" if world > 1 else None
        self.actors: dict[int, Any] = {}
        self.buffer = buffer_actor.start(config, folder.path)
        opened = self.buffer.open.remote(resume)
        learner = ray.remote(LearnerActor).options(num_cpus=1, num_gpus=self._gpu, max_concurrency=4)
        self.learners = [learner.remote(config, folder.path, rank, store, self.buffer) for rank in range(world)]
        self._endpoint = ray.get([actor.open.remote() for actor in self.learners])[0]
        self._asked: Any = None
        self._buffer_metrics: dict[str, float] = {}
        self._asked_at = 0.0
        try:
            ray.get(opened)
        except ray.exceptions.RayError as error:
            self.kill()
            raise RunFailed(self._buffer_failed(error)) from None
        self._learning = [actor.run.remote(resume) for actor in self.learners]
        self._incarnations: dict[int, int] = {}
        # A resumed run's actors are new lives: their numbers must not repeat those of the checkpoint's.
        first = (
            1 + max((int(p.stem.rsplit(".", 1)[-1]) for p in folder.logs.glob("rollout*.log")), default=-1)
            if resume
            else 0
        )
        self._restarts = dict.fromkeys(range(config.actors.num_actors), 0)
        self._playing: dict[Any, int] = {}
        self._results: dict[str, dict[str, str]] = {}
        self._again: dict[int, float] = {}
        for index in range(config.actors.num_actors):
            self._start(index, first)

    def poll(self) -> bool:
        """Look at every part once; True when the learner has finished. Raises RunFailed."""
        done, _ = ray.wait(self._learning + list(self._playing), num_returns=1, timeout=REFRESH_S)
        for ref in done:
            if ref in self._playing:
                self._ended(ref)
        self._watch_buffer()
        finished, running = ray.wait(self._learning, num_returns=len(self._learning), timeout=0)
        for ref in finished:
            try:
                ray.get(ref)
            except Exception as error:
                log = self._folder.logs / f"learner{self._learning.index(ref)}.0.log"
                raise RunFailed(f"the learner failed: {_root(error)}\nIts log: {log}") from None
        for index, at in list(self._again.items()):
            if time.monotonic() >= at and running:
                del self._again[index]
                self._start(index, self._incarnations[index] + 1)
        return not running

    def status(self) -> dict[str, Any]:
        """What the learner says of itself; nothing where it just died, which `poll` finds out."""
        try:
            status: dict[str, Any] = ray.get(self.learners[0].status.remote())
        except ray.exceptions.RayError:
            return {}
        target = self._config.selfplay.seed_tasks_target
        have = self._buffer_metrics.get("buffer/deduction", target)
        if status.get("phase") == WAITING_FOR_ACTORS and have < target:
            percent = 10 * int(10 * have / target)
            status["phase"] = f"{WAITING_FOR_ACTORS}, which propose the first tasks: {percent}% of {target} triplets"
        return status

    def stop(self, why: str) -> None:
        """Ask every rank to stop cleanly."""
        for actor in self.learners:
            actor.stop.remote(why)

    def kill(self) -> None:
        """End what is left; the buffer first closes its file."""
        with contextlib.suppress(Exception):
            ray.get(self.buffer.close.remote(), timeout=10)
        for actor in [*self.actors.values(), *self.learners, self.buffer]:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    def wait_for_actors(self, timeout_s: float = 60.0) -> dict[str, dict[str, str]]:
        """After a shutdown, give engines and sandboxes the time to close; returns what each actor's run returned."""
        if self._playing:
            for ref in ray.wait(list(self._playing), num_returns=len(self._playing), timeout=timeout_s)[0]:
                with contextlib.suppress(Exception):
                    self._results[f"rollout{self._playing[ref]}"] = ray.get(ref)
        return self._results

    def _watch_buffer(self) -> None:
        """Without the buffer every episode fails, and would be granted again for ever: its failure ends the run."""
        now = time.monotonic()
        if self._asked is None:
            if now - self._asked_at > 1.0:
                self._asked, self._asked_at = self.buffer.metrics.remote(), now
            return
        if ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self._buffer_metrics = ray.get(asked)
            except ray.exceptions.RayError as error:
                raise RunFailed(self._buffer_failed(error)) from None
        elif now - self._asked_at > BUFFER_TIMEOUT_S:
            raise RunFailed(self._buffer_failed(TimeoutError(f"it has not answered for {BUFFER_TIMEOUT_S:.0f} s")))

    def _buffer_failed(self, error: BaseException) -> str:
        return f"the task buffer failed: {_root(error)}\nIts log: {self._folder.logs / 'buffer.0.log'}"

    def _start(self, index: int, incarnation: int) -> None:
        actor = (
            ray.remote(RolloutActor)
            .options(num_cpus=1, num_gpus=self._gpu * self._config.engine.tensor_parallel)
            .remote(self._config, self._folder.path, index, incarnation, self._endpoint, self.buffer)
        )
        self.actors[index] = actor
        self._incarnations[index] = incarnation
        self._playing[actor.run.remote()] = index

    def _ended(self, ref: Any) -> None:
        """A rollout actor's run is over: fine after a shutdown; otherwise it starts again, later each time."""
        index = self._playing.pop(ref)
        try:
            self._results[f"rollout{index}"] = ray.get(ref)
        except Exception as error:
            self._restarts[index] += 1
            self.learners[0].lost.remote(f"rollout{index}", self._incarnations[index])
            log = self._folder.logs / f"rollout{index}.{self._incarnations[index]}.log"
            if self._restarts[index] > self._config.actors.max_restarts:
                raise RunFailed(
                    f"rollout{index} failed {self._restarts[index]} times (actors.max_restarts = "
                    f"{self._config.actors.max_restarts}): {_root(error)}\nIts log: {log}"
                ) from None
            wait_s = 2.0 ** self._restarts[index]
            self._console.say(
                f"rollout{index} failed ({_root(error)}); starting it again in {wait_s:.0f} s; log: {log}"
            )
            self._again[index] = time.monotonic() + wait_s


def run(config: Config, folder: RunFolder, resume: bool, console: Console) -> int:
    """Run to the end; returns the exit code."""
    with _ray(config, console), _interrupts() as interrupts:
        console.say("starting the task buffer, the learner and the rollout actors (about a minute on a CPU)")
        try:
            supervisor = Supervisor(config, folder, resume, console)
        except RunFailed as error:
            console.say(f"FAILED: {error}")
            return 1
        stopping = 0
        try:
            with console.open():
                while not supervisor.poll():
                    if interrupts.count > stopping:
                        stopping = interrupts.count
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


@contextlib.contextmanager
def _ray(config: Config, console: Console) -> Iterator[None]:
    """Ray on this machine for this run, or a cluster that is there."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default of 15 gives way to everything else on the machine, and a learner's step then takes many times as long.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Learner and engines share cores on a CPU: a thread that spins at a barrier takes the core from the one it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: a quarter of the page faults of the first steps
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.ray.address:
        options["address"] = config.ray.address
    else:
        # Logical CPUs only say that the parts may run side by side; threads are set in the recipe.
        needed = config.learner.parallel.world_size + config.actors.num_actors
        options |= {
            "include_dashboard": False,
            "num_cpus": max(needed, os.cpu_count() or 1),
            "_node_ip_address": LOOPBACK,
        }
    console.say("starting Ray" + (f" at {config.ray.address}" if config.ray.address else " on this machine"))
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def report_weights(learned: dict[str, str], running: dict[str, dict[str, str]], console: Console) -> bool:
    """Say whether every engine runs the learner's weights, by their digests; False where one does not, or none was seen."""
    for actor, weights in running.items():
        different = [name for name, digest in learned.items() if weights.get(name) != digest]
        if different:
            console.say(
                f"weights: {actor} DIFFERS from the learner in {len(different)} of {len(learned)} tensors: {different[:3]}"
            )
            return False
        console.say(f"weights: {actor} equals the learner in all {len(learned)} tensors, bit by bit")
    if not running:
        console.say("weights: no engine was left to compare with")
    return bool(running)


class _Interrupts:
    count = 0


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """SIGINT and SIGTERM (SLURM's) as a count."""
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(signum: int, frame: Any) -> None:
        interrupts.count += 1

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _root(error: BaseException) -> str:
    """What went wrong, without Ray's frames around it."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else ''}"
