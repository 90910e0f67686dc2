"""One simulated rollout actor: it plays granted episodes, and adapts its capacity as a real one does.

An episode follows `actors/episodes.py`: proposals of one prompt are sampled and validated; a valid one is solved with
its share of the solve slots, an invalid one's slots are spent on a task of the buffer, or returned; solutions go out
when the answers to their task are judged, and a proposal after its solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simpy

from actors.concurrency import ConcurrencyController, Load
from actors.settings import SelfPlaySettings
from launch.tune.engine_model import EngineModel, Spans
from launch.tune.machine import Process
from launch.tune.workload import Draft, Prompt, Workload
from learner.staleness import Grant
from learner.stream.wire import HEARTBEAT_S
from learner.trajectory import Cell, Role
from learner.turns import Seat


@dataclass(frozen=True, slots=True)
class Rollout:
    """A trajectory as the gate, the queue and the learner's time need it (`learner.queue.Queueable`)."""

    slot: int
    cell: Cell
    prompt: Prompt
    response: int
    """Tokens of the response."""
    oldest_version: int
    newest_version: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds that are no computing of the model."""

    validate_s: float
    verify_s: float
    message_s: float


class ActorModel:
    """An engine, a seat in the learner's turns, and the episodes that are played."""

    def __init__(
        self,
        env: simpy.Environment,
        seat: Seat,
        engine: EngineModel,
        workload: Workload,
        settings: SelfPlaySettings,
        delays: Delays,
        arrive: Callable[[ActorModel, Rollout], None],
        give_back: Callable[[ActorModel, Sequence[int]], None],
        grew: Callable[[ActorModel], None],
        concurrency: ConcurrencyController | None,
        version: Callable[[], int],
    ) -> None:
        """`arrive`, `give_back`, `grew`: the learner's end of the stream, called when a message is there. `version`:
        the learner's, for what is drawn. `concurrency`: None keeps the capacity."""
        self._env = env
        self.seat = seat
        self.engine = engine
        self._workload = workload
        self._settings = settings
        self._delays = delays
        self._arrive = arrive
        self._give_back = give_back
        self._grew = grew
        self._version = version
        self.held = 0
        """Slots that were granted and have not been answered."""
        self.playing = 0
        """Episodes under way."""
        self.idle_s = 0.0
        """Seconds without anything granted."""
        self._idle_since: float | None = 0.0
        if concurrency is not None:
            env.process(self._heartbeats(concurrency))

    def start(self, grant: Grant) -> None:
        """A grant was sent to this actor."""
        self._env.process(self._play(grant))

    def idle_until(self, now: float) -> float:
        """Seconds without anything granted, the present spell included."""
        return self.idle_s + (now - self._idle_since if self._idle_since is not None else 0.0)

    def _heartbeats(self, concurrency: ConcurrencyController) -> Process:
        while True:
            yield self._env.timeout(HEARTBEAT_S)
            engine = self.engine
            load = Load(self.held, engine.kv_usage, float(engine.num_waiting), float(engine.preempted))
            before, self.seat.capacity = self.seat.capacity, concurrency.observe(load)
            if self.seat.capacity > before:
                self._grew(self)

    def _play(self, grant: Grant) -> Process:
        self.held += len(grant.slots)
        yield self._env.timeout(self._delays.message_s)
        if self._idle_since is not None:
            self.idle_s += self._env.now - self._idle_since
            self._idle_since = None
        self.playing += 1
        yield from self._episode(grant)
        self.playing -= 1
        if not self.playing:
            self._idle_since = self._env.now

    # -- an episode ----------------------------------------------------------------------------------------------

    def _episode(self, grant: Grant) -> Process:
        if not grant.propose:
            yield from self._replay(grant.kind, grant.solve)
            return
        trained = self._settings.propose
        if not trained:
            self._return(grant.propose)
        version = self._version()
        brief = self._workload.brief(grant.kind, version)
        if brief is None:
            if trained:
                self._return(grant.propose)
            yield from self._replay(grant.kind, grant.solve)
            return
        drafts = self._workload.drafts(grant.kind, version, len(grant.propose))
        shares = [grant.solve[index :: len(grant.propose)] for index in range(len(grant.propose))]
        yield self._env.all_of(
            [
                self._env.process(self._propose(grant.kind, brief, draft, slot, share))
                for draft, slot, share in zip(drafts, grant.propose, shares, strict=True)
            ]
        )

    def _propose(self, kind: str, brief: Prompt, draft: Draft, slot: int, share: Sequence[int]) -> Process:
        spans: Spans = yield self.engine.generate(brief.key, brief.tokens, draft.tokens)
        yield from self._judge(self._delays.validate_s)
        if not draft.valid or (draft.known and self._settings.novelty == "reject"):
            yield from self._replay(kind, share)
        else:
            former = self._workload.replay(kind) if draft.known else None
            task = former or self._workload.add(kind, self._version())
            if self._settings.train_on_estimates:
                yield from self._solve_fresh(kind, task, share)
            else:
                estimates = self._env.process(self._solve_fresh(kind, task, ()))
                yield self._env.all_of([estimates, self._env.process(self._replay(kind, share))])
        if self._settings.propose:
            self._send(Rollout(slot, Cell(kind, Role.PROPOSE), brief, draft.tokens, *spans))

    def _solve_fresh(self, kind: str, task: Prompt, slots: Sequence[int]) -> Process:
        extra = max(0, self._settings.solutions - len(slots)) if self._settings.propose else 0
        yield from self._solve(kind, task, slots, extra)

    def _replay(self, kind: str, slots: Sequence[int]) -> Process:
        if not slots:
            return
        task = self._workload.replay(kind)
        if task is None:
            self._return(slots)
            return
        yield from self._solve(kind, task, slots, 0)

    def _solve(self, kind: str, task: Prompt, slots: Sequence[int], extra: int) -> Process:
        """Solutions with and without slots, judged together."""
        count = len(slots) + extra
        if not count:
            return
        lengths = self._workload.answers(kind, self._version(), count)
        requests = [self.engine.generate(task.key, task.tokens, length) for length in lengths]
        yield self._env.all_of(requests)
        yield from self._judge(self._delays.verify_s)
        for slot, length, request in zip(slots, lengths, requests, strict=False):
            oldest, newest = request.value or Spans(0, 0)
            self._send(Rollout(slot, Cell(kind, Role.SOLVE), task, length, oldest, newest))

    def _judge(self, seconds: float) -> Process:
        """The executor's time, in which waiting for a sandbox is measured too."""
        yield self._env.timeout(seconds)

    # -- the stream ----------------------------------------------------------------------------------------------

    def _send(self, rollout: Rollout) -> None:
        def arrived(_: object) -> None:
            self.held -= 1
            self._arrive(self, rollout)

        self._env.timeout(self._delays.message_s).callbacks.append(arrived)  # type: ignore[union-attr]

    def _return(self, slots: Sequence[int]) -> None:
        def arrived(_: object) -> None:
            self.held -= len(slots)
            self._give_back(self, slots)

        self._env.timeout(self._delays.message_s).callbacks.append(arrived)  # type: ignore[union-attr]
