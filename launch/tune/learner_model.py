"""The simulated learner: the loop of `learner/loop.py` around the production gate, queue and turns.

    wait for a batch -> train -> publish (engines stand still) -> grant -> record, and again

Training takes as long as the fullest data-parallel rank: rows are those that packing computes, each distinct prompt
once, and ranks get whole groups as `learner/batching/balance.py` shares them out. A response token costs more than a
token of a prompt: it has logits and a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import simpy

from launch.tune.actor_model import ActorModel, Rollout
from launch.tune.calibration import LearnerFigures, WeightFigures
from launch.tune.machine import Machine, Process, Role
from learner.batching.balance import CostModel, PromptGroup, share_out
from learner.queue import BatchQueue
from learner.staleness import Gate
from learner.turns import Seat, Turns

STALL_S = 3600.0
"""Simulated seconds of waiting for a batch after which it is asked whether anything is still in flight."""


@dataclass(frozen=True, slots=True)
class Step:
    """One simulated training step. Times are seconds since the start of the simulation, durations seconds."""

    end_s: float
    """When the next wait for a batch began."""
    wait_s: float
    train_s: float
    publish_s: float
    trajectories: int
    tokens: int
    """Response tokens that were trained."""
    rows: int
    """Rows of all ranks."""
    work_s: float
    """What `train_s` is without what sharing costs."""
    age_mean: float
    age_max: int
    generated: int
    """Tokens that all engines had sampled by then."""
    idle_s: float
    """Seconds of all actors without anything granted, by then."""


@dataclass(frozen=True, slots=True)
class LearnerCost:
    """Seconds of the learner's phases, scaled to its threads or ranks."""

    step_s: float
    row_s: float
    target_s: float
    between_s: float
    cores: float
    """Cores that it keeps busy: fewer than it has threads, since the rest of Amdahl's law runs on one."""
    data_ranks: int

    @classmethod
    def of(cls, figures: LearnerFigures, threads: int, data_ranks: int, model_ranks: int) -> LearnerCost:
        """The cost that a calibration measured, with other numbers of threads (a CPU rank), and of ranks that split
        the model (tensor, pipeline, context). Amdahl's law: the share `parallel_share` is divided, the rest stays."""
        share = figures.parallel_share.value
        speed = threads * model_ranks / figures.threads
        scale = (1 - share) + share / speed
        return cls(
            figures.step_s.value * scale,
            figures.row_s.value * scale,
            figures.target_s.value * scale,
            figures.between_s.value,
            min(float(threads), figures.threads / scale),
            data_ranks,
        )

    def seconds(self, packed: Packed) -> float:
        """Seconds of the step over a batch."""
        return self.step_s + self.row_s * packed.fullest_rows + self.target_s * packed.fullest_targets


@dataclass(frozen=True, slots=True)
class Packed:
    """What a batch is to the ranks."""

    rows: int
    """Rows of all ranks."""
    fullest_rows: int
    """Rows of the rank with the most work."""
    fullest_targets: int
    """Response tokens of that rank."""


def pack(batch: Sequence[Rollout], num_ranks: int, row_s: float, target_s: float) -> Packed:
    """How a batch is packed: each distinct prompt once, a response of N tokens in N - 1 rows. Ranks are balanced by the
    cost of rows and response tokens, as `Architecture.cost` makes the learner do it."""
    by_prompt: dict[object, list[int]] = {}
    for index, rollout in enumerate(batch):
        by_prompt.setdefault(rollout.prompt.key, []).append(index)
    cost = CostModel(per_row=max(1, round(row_s / _UNIT_S)), per_target=round(target_s / _UNIT_S))
    groups = []
    for members in by_prompt.values():
        prompt = batch[members[0]].prompt.tokens
        lengths = [batch[index].response for index in members]
        groups.append(
            PromptGroup(
                prompt=members[0],
                members=tuple(members),
                prompt_rows=prompt,
                response_rows=tuple(length - 1 for length in lengths),
                prompt_cost=cost.prompt(prompt),
                response_costs=tuple(cost.response(prompt, length) for length in lengths),
            )
        )
    shares = share_out(groups, num_ranks) if num_ranks > 1 else [groups]
    fullest = max(shares, key=lambda share: sum(group.cost for group in share), default=[])
    return Packed(
        rows=sum(group.rows for share in shares for group in share),
        fullest_rows=sum(group.rows for group in fullest),
        fullest_targets=sum(batch[index].response for group in fullest for index in group.members),
    )


_UNIT_S = 1e-9
"""Costs are whole numbers of this."""


class LearnerModel:
    """Gate, queue, turns and the loop."""

    def __init__(
        self,
        env: simpy.Environment,
        machine: Machine,
        pool: str,
        gate: Gate,
        cost: LearnerCost,
        weights: WeightFigures,
        steps: int,
    ) -> None:
        """`steps`: to train before the simulation ends (`ended`)."""
        self._env = env
        self._machine = machine
        self._pool = pool
        self._cost = cost
        self._weights = weights
        self.gate = gate
        self._queue: BatchQueue[Rollout] = BatchQueue(gate)
        self._turns: Turns[Seat] = Turns(gate)
        self._actors: dict[Seat, ActorModel] = {}
        self._ready = env.event()
        self.version = 0
        """Versions that were trained."""
        self.steps: list[Step] = []
        self.max_queued = 0
        """The most trajectories that ever waited."""
        self.ended = env.process(self._learn(steps))

    def connect(self, actor: ActorModel) -> None:
        """An actor is there; the first publication gives it its weights."""
        self._actors[actor.seat] = actor
        self._turns.enter(actor.seat)

    # -- the stream ----------------------------------------------------------------------------------------------

    def arrive(self, actor: ActorModel, rollout: Rollout) -> None:
        """A trajectory came in."""
        self._queue.arrive(rollout, actor.seat.holder)
        self.max_queued = max(self.max_queued, len(self._queue))
        self._heard(actor)

    def give_back(self, actor: ActorModel, slots: Sequence[int]) -> None:
        """Slots were returned."""
        for slot in slots:
            self.gate.give_back(slot, actor.seat.holder)
        self._heard(actor)

    def grew(self, actor: ActorModel) -> None:
        """An actor's capacity grew."""
        self._grant((actor.seat,))

    def _heard(self, actor: ActorModel) -> None:
        self._grant((actor.seat,))
        if self.gate.is_ready and not self._ready.triggered:
            self._ready.succeed()

    def _grant(self, with_room: Sequence[Seat]) -> None:
        for seat, grant in self._turns.grants(with_room):
            self._actors[seat].start(grant)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _learn(self, steps: int) -> Process:
        yield from self._publish()
        self._grant(list(self._actors))  # as `mark_loaded` does after the first publication
        while self.version < steps:
            waiting_since = self._env.now
            while not self.gate.is_ready:
                self._ready = self._env.event()
                yield self._ready | self._env.timeout(STALL_S)
                if not self._ready.triggered and not self.gate.in_flight():
                    raise RuntimeError(f"the simulated run stands still: {self.gate.waiting_for()}")
            batch = self._queue.batch() or []
            wait_s = self._env.now - waiting_since
            since = self._env.now
            packed = pack(batch, self._cost.data_ranks, self._cost.row_s, self._cost.target_s)
            work_s = self._cost.seconds(packed)
            yield self._machine.run(self._pool, Role.LEARNER, work_s, self._cost.cores)
            ages = [self.version - rollout.oldest_version for rollout in batch] or [0]
            self._queue.trained([rollout.slot for rollout in batch])
            self.version += 1
            train_s = self._env.now - since
            since = self._env.now
            yield from self._publish()
            self.gate.published(self.version)
            self._grant(list(self._actors))
            publish_s = self._env.now - since
            yield self._machine.run(self._pool, Role.WEIGHTS, self._cost.between_s)
            self.steps.append(
                Step(
                    end_s=self._env.now,
                    wait_s=wait_s,
                    train_s=train_s,
                    publish_s=publish_s,
                    trajectories=len(batch),
                    tokens=sum(rollout.response for rollout in batch),
                    rows=packed.rows,
                    work_s=work_s,
                    age_mean=sum(ages) / len(ages),
                    age_max=max(ages),
                    generated=sum(actor.engine.tokens for actor in self._actors.values()),
                    idle_s=sum(actor.idle_until(self._env.now) for actor in self._actors.values()),
                )
            )

    def _publish(self) -> Process:
        """Every engine gets the present version; they stand still from the end of their step until they have it."""
        actors = list(self._actors.values())
        for actor in actors:
            actor.seat.loaded_version = -1
        yield self._env.all_of([actor.engine.pause() for actor in actors])
        figures = self._weights
        yield self._env.timeout(figures.ready_s.value)
        send_s = figures.send_s.value + figures.actor_s.value * (len(actors) - 1)
        yield self._machine.run(self._pool, Role.WEIGHTS, send_s)
        yield self._env.timeout(figures.load_s.value)
        for actor in actors:
            actor.seat.loaded_version = self.version
            actor.engine.resume(self.version)
