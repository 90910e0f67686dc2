"""Serial mode: the whole run in one process and one thread, deterministic by seed. No Ray, no sockets.

The same gate, player, trainer and main loop as the distributed run; only what carries trajectories and weights between
them differs: here, function calls.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from actors.buffer.task_buffer import LocalBuffer
from actors.engine.generation import Engine
from actors.engine.serial_engine import SerialEngine
from actors.environment import Environment
from actors.episodes import Player
from actors.heldout.measure import Heldout
from actors.roles import model_roles
from actors.sampler import Identity
from actors.seeding import seed_buffer
from executor.judge import Judge
from executor.pool import SerialPool
from launch.config import Config
from launch.models import prepare
from launch.run.assemble import make_supervision, make_trainer
from launch.run.attempt import adopt
from launch.run.checkpoints import Saved
from launch.run.console import Console
from launch.run.durations import read_durations
from launch.run.folder import RunFolder, append_event, checkpoint_event, work_log
from launch.run.gate import make_gate
from launch.run.hooks import make_hooks
from launch.run.interrupts import COMPLETE, INTERRUPTED, Interrupts, stop_details
from launch.run.measurements import bounded, keep_in, last_is_due
from launch.run.recorder import Recorder
from launch.run.scratch import remove, scratch, temporary_files
from launch.run.status import Progress, RunStatus, has_unsaved_work
from launch.run.summary import exit_code, summarise
from launch.run.task_buffer import open_tasks
from learner.checkpoint import Checkpoints
from learner.lineage import label_of
from learner.loop import learn
from learner.model.policy import PolicyModel
from learner.places import Holder
from learner.queue import BatchQueue
from learner.staleness import Gate, Grant
from learner.stopwatch import Stopwatch
from learner.stream.reports import Reports
from learner.trajectory import Trajectory, check
from learner.turns import Seat, Turns
from learner.weights.local import LocalChannel
from learner.weights.manifest import manifest_of

HOLDER = Holder("serial", 0)


class SerialStream:
    """The stream of a run with one actor in this thread: `next_batch` plays until the batch is complete."""

    def __init__(self, gate: Gate, player: Player, capacity: int, loop: asyncio.AbstractEventLoop) -> None:
        self.gate = gate
        self._player = player
        self.loop = loop
        self._seat = Seat(HOLDER, capacity)
        self._turns: Turns[Seat] = Turns(gate)
        self._turns.enter(self._seat)
        self._queue: BatchQueue[Trajectory] = BatchQueue(gate)
        self._playing: set[asyncio.Task[None]] = set()
        self._generated = 0
        self.reports = Reports()
        self.measured: dict[str, float] = {}
        """The newest held-out metrics."""

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        """Play until the next batch is complete, and return it. An episode that fails raises here: nothing restarts
        it."""
        return self.loop.run_until_complete(self._play_until_ready(interrupt))

    def queued(self) -> list[Trajectory]:
        """Return the trajectories that wait to be trained."""
        return self._queue.waiting()

    def requeue(self, trajectories: Sequence[Trajectory]) -> None:
        """Put back the queue of a checkpoint."""
        self._queue.restore(trajectories)

    def mark_trained(self, slots: Sequence[int]) -> None:
        """Remove a trained batch from the queue."""
        self._queue.trained(slots)

    def mark_loaded(self, version: int) -> None:
        """Record that the engine runs `version`."""
        self._seat.loaded_version = version

    def mark_published(self, version: int) -> None:
        """Open what publishing `version` opens."""
        self.gate.published(version)

    def stats(self) -> dict[str, float]:
        """Return the numbers of the only actor."""
        self.reports.report(HOLDER, {"tokens_generated": self._generated} | self.measured)
        return self.reports.combined() | {"actors": 1}

    def reports_state(self) -> dict[str, Any]:
        """Return the counters, for the run's totals."""
        self.stats()
        return self.reports.state_dict()

    def frozen(self) -> AbstractContextManager[object]:
        """Return a context that does nothing: in one thread nothing arrives while a checkpoint is written."""
        return nullcontext()

    def close(self) -> None:
        """Cancel the episodes in play."""
        for task in self._playing:
            task.cancel()
        if self._playing:
            self.loop.run_until_complete(asyncio.wait(self._playing))
        self._playing = set()

    def drain(self, timeout_s: float = math.inf) -> None:
        """Play the episodes in flight to their end and start none: after this the engine runs no request.

        Those that are left after `timeout_s` are cancelled: nothing of what they hold comes in.
        """
        end = self.loop.time() + timeout_s
        while self._playing and (left := end - self.loop.time()) > 0:
            waiting = asyncio.wait(self._playing, timeout=None if math.isinf(left) else left)
            done, self._playing = self.loop.run_until_complete(waiting)
            for task in done:
                task.result()
        self.close()

    async def _play_until_ready(self, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        while True:
            for _, grant in self._turns.grants((self._seat,)):
                self._playing.add(asyncio.create_task(self._play(grant)))
            batch = self._queue.batch()
            if batch is not None:
                return batch
            if interrupt():
                return None
            done, self._playing = await asyncio.wait(self._playing, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _play(self, grant: Grant) -> None:
        async def emit(trajectory: Trajectory) -> None:
            check(trajectory)
            self._queue.arrive(trajectory, HOLDER)
            self._generated += len(trajectory.response_ids)

        async def give_back(slots: Sequence[int]) -> None:
            for slot in slots:
                self.gate.give_back(slot, HOLDER)

        await self._player.play(grant, emit, give_back)


class SerialPublisher:
    """Publishes through vLLM's weight transfer, over a channel inside this process, and measures what it published."""

    def __init__(
        self,
        policy: PolicyModel,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        stream: SerialStream,
        heldout: Heldout,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._loop = loop
        self._stream = stream
        self._heldout = heldout
        self._channel = LocalChannel("serial")
        self._manifest = manifest_of(policy.export())
        loop.run_until_complete(engine.join(self._channel.open(2), 1))

    def publish(self, version: int) -> dict[str, float]:
        """See `learner.publisher.Publisher`."""
        watch = Stopwatch()
        self._channel.send(self._policy.export(), self._manifest)
        watch.lap("send_s")
        label = label_of(version, self._stream.gate.life_id)
        timings = self._loop.run_until_complete(self._engine.update_weights(self._manifest, label))
        watch.lap("wait_loaded_s")
        self._stream.reports.report(HOLDER, {f"engine_weights/{phase}": s for phase, s in timings.items()})
        self._stream.mark_loaded(version)
        if (measured := self._loop.run_until_complete(self._heldout.maybe_run(version, alone=True))) is not None:
            self._stream.measured = measured
        return watch.seconds

    def close(self) -> None:
        """Forget the channel."""
        self._channel.close()


class SerialState:
    """The state of a serial run beyond weights, ledger, queue and buffer: counts and memories that later steps use.

    Samples and draws need none: each is a function of the seed and of its slot's number.
    """

    def __init__(self, engine: SerialEngine, player: Player, stream: SerialStream, heldout: Heldout) -> None:
        self._engine = engine
        self._player = player
        self._stream = stream
        self._heldout = heldout

    def settle(self, timeout_s: float = math.inf) -> None:
        """Bring the run to a point that another process can go on from: nothing in flight, an engine without a past.

        A run does this at each checkpoint, whether or not it is ever killed; so checkpoints change the path that a run
        takes (how its requests share batches), and runs are compared at equal `checkpoint_every`. `timeout_s`: for the
        episodes in flight, in a run that stops with little time.
        """
        self._stream.drain(timeout_s)
        self._stream.loop.run_until_complete(self._engine.rest())

    def state_dict(self) -> dict[str, Any]:
        """See `launch.run.checkpoints.Exact`."""
        return {
            "measured": self._stream.measured,
            "heldout_version": self._heldout.measured,
            "recent": {kind: recent.state() for kind, recent in self._player.proposer.recent.items()},
            "engine_random": self._engine.random_state.numpy().tobytes().hex(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `launch.run.checkpoints.Exact`."""
        self._stream.measured = state["measured"]
        self._heldout.measured = state["heldout_version"]
        for kind, recent in self._player.proposer.recent.items():
            recent.load(state["recent"].get(kind, ()))
        self._engine.random_state = torch.frombuffer(bytearray.fromhex(state["engine_random"]), dtype=torch.uint8)


def run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console | None = None,
    interrupts: Interrupts | None = None,
) -> int:
    """Run to the end; returns the exit code."""
    view, interrupts = console or Console(config), interrupts or Interrupts()
    with scratch(folder.path) as private, temporary_files(private / "tmp"):
        interrupts.last_acts.append(lambda why: remove(private))
        return _run(config, folder, resume, view, interrupts)


def _run(config: Config, folder: RunFolder, resume: bool, view: Console, interrupts: Interrupts) -> int:
    model_dir = prepare(config.model.path)
    store = open_tasks(config, folder, resume)
    loop = asyncio.new_event_loop()
    pool = SerialPool(config.executor, config.run.seed)
    engine = SerialEngine(model_dir, config.engine, seed=config.run.seed)
    view.say("starting the sandbox, the engine and the learner in this process")
    loop.run_until_complete(pool.start())
    loop.run_until_complete(engine.start())
    trainer = make_trainer(config, model_dir)
    if config.learner.loss.supervised:
        trainer.supervision = make_supervision(config, engine.tokenizer, store.labelled)
    progress = Progress(read_durations(folder))
    progress.limit(config.run.max_minutes)  # from here, as in the other modes: seeding counts
    gate = make_gate(config)
    record = work_log(folder, HOLDER.actor_id, config.executor.record_work)
    environment = Environment(Judge(pool, config.executor, rules=config.selfplay.rules), record)
    identity = Identity(config.run.name, HOLDER.actor_id, HOLDER.incarnation)
    roles = model_roles(engine, environment, LocalBuffer(store), config.selfplay)
    loop.run_until_complete(
        seed_buffer(
            roles,
            LocalBuffer(store),
            config.selfplay,
            identity,
            config.run.seed,
            lambda have, target: view.say(f"seeding: {have} of {target} triplets"),
        )
    )
    player = Player(roles, LocalBuffer(store), identity, seed=config.run.seed)
    stream = SerialStream(gate, player, config.actors.concurrency, loop)
    heldout = Heldout(engine, environment, config.selfplay, config.engine.max_num_seqs, keep=keep_in(folder))
    state = SerialState(engine, player, stream, heldout)
    on_complete = checkpoint_event(folder, progress.measured.checkpoint)
    checkpoints = Checkpoints(folder.checkpoints, config.learner.keep_checkpoints, on_complete, folder.check_owner)

    def hurried() -> bool:
        return progress.is_hurried() and trainer.version < config.learner.steps

    saved = Saved(checkpoints, trainer, store.snapshot, state, hurried)
    step = saved.resume(stream, stream.requeue) if resume else 0
    recorder = Recorder(folder, engine.tokenizer, config.run.record_trajectories, step)
    adopt(folder)
    publisher = SerialPublisher(trainer.policy, engine, loop, stream, heldout)

    def save(version: int) -> None:
        state.settle(progress.left_s())
        saved.save(version, stream)

    def status() -> RunStatus:
        return RunStatus(**progress.fields())

    def stop() -> bool:
        unsaved = has_unsaved_work(status())
        if unsaved:
            left_s, save_s = interrupts.left_s(), progress.measured.durations.save_s
            progress.ask_to_stop(INTERRUPTED, None if left_s is None else left_s - save_s)
            append_event(folder, "stopping", why=INTERRUPTED, **stop_details(left_s, save_s))
        return unsaved

    def unsaved() -> bool:
        return saved.unsaved(stream)

    trainer.life = gate.life_id
    stream.reports.load_state_dict(recorder.totals.reports, actors_live=False)
    hooks = make_hooks(config, recorder, save, progress, store.metrics, stream.reports_state, unsaved=unsaved)
    view.stop_by = interrupts.limits.stop_by
    try:
        with interrupts.running(stop, view.say, lambda: progress.measured.durations.stop_s), view.following(status):
            # By steps only: a checkpoint changes how requests share batches, and a run by its seed is repeatable.
            settings = config.learner.model_copy(update={"checkpoint_minutes": 0.0})
            learn(trainer, stream, publisher, settings, hooks)
            saved.wait()
            if last_is_due(config, folder, progress, trainer.version):
                state.settle(progress.left_s())
                last = bounded(heldout.run_last(trainer.version), config.selfplay.heldout_wait_s, progress)
                measured = loop.run_until_complete(last)
                recorder.measured(measured or {})
            interrupts.saved()
    finally:
        checkpoints.join()  # its writer asks the process group, which ends with the engine, for its rank
        stream.close()
        publisher.close()
        loop.run_until_complete(engine.close())
        loop.run_until_complete(pool.close())
        recorder.close()
        store.close()
        loop.close()
    append_event(folder, "run_ended", why=progress.stop or COMPLETE, step=trainer.version)
    code = summarise(folder, gate.ledger(), stopped=progress.stop)
    return exit_code(config, folder, code, interrupts.stopping, trainer.version)
