"""A rehearsal in one process, with actors that die at random: the ledger is conserved, and ages are within the bound.

Real: the stream over sockets, gate, turns, queue, episodes, task buffer, the learner's loop, weight groups over gloo.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.buffer.task_buffer import LocalBuffer, TaskBuffer
from actors.rollout import Rollout
from launch.config import Config, build
from launch.rehearsal.engine import RehearsedEngine
from launch.rehearsal.lengths import lengths_of
from launch.rehearsal.receivers import OwnReceivers
from launch.rehearsal.roles import rehearsed_roles
from launch.rehearsal.trainer import RehearsedTrainer
from launch.run.gate import make_gate
from learner.ledger import conserved, totals
from learner.loop import Hooks, learn
from learner.publisher import GroupPublisher
from learner.ranks import Ranks
from learner.stream.client import StreamClient
from learner.stream.server import StreamServer
from learner.trajectory import Trajectory
from learner.weights.transfer import WeightSender
from tests.examples import examples

STEPS = 5


def recipe(max_staleness: int, on_stale: str) -> Config:
    return build(
        {
            "run": {"mode": "rehearse"},
            "selfplay": {"solutions": 2, "max_propose_tokens": 300, "max_solve_tokens": 300},
            "learner": {
                "steps": STEPS,
                "max_staleness": max_staleness,
                "on_stale": on_stale,
                "sync_timeout_s": 20,
                "batch": {"kinds": ["deduction", "induction"], "propose": {"deduction": 3, "induction": 2},
                          "solve": {"deduction": 6, "induction": 4}},
            },
            "rehearsal": {"time_scale": 200, "learner_step_s": 20, "weights_mb": 0.01, "load_s": 1.0},
        }
    )  # fmt: skip


class Run:
    """One learner in a thread, and actors on this thread's event loop."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.store = TaskBuffer(folder / "tasks.sqlite")
        self.server = StreamServer(make_gate(config), "run", dead_after_s=30)
        self.rows: list[dict[str, float]] = []
        self.ages: list[int] = []
        self.failure: BaseException | None = None
        self.learning = threading.Thread(target=self._learn)

    def _learn(self) -> None:
        config, server = self.config, self.server
        trainer = RehearsedTrainer(config.rehearsal, config.learner, Ranks())
        publisher = GroupPublisher(trainer.policy, trainer.ranks, server, WeightSender(timeout_s=20), 1)
        try:
            server.wait_for_members(1, 60)
            hooks = Hooks(interrupted=lambda: False, on_step=self._step, save=lambda version: None)
            learn(trainer, server, publisher, config.learner, hooks)
        except BaseException as error:
            self.failure = error
        finally:
            server.close()
            publisher.close()

    def _step(self, metrics: dict[str, float], batch: Sequence[Trajectory]) -> None:
        assert conserved(self.server.gate.ledger())
        self.rows.append(metrics)
        self.ages += [int(metrics["version"]) - 1 - one.oldest_version for one in batch]

    async def play(self, index: int, incarnation: int) -> None:
        """One life of one actor."""
        config = self.config
        engine = RehearsedEngine(config.rehearsal, config.engine.max_num_seqs, 1, OwnReceivers(1))
        client = StreamClient(self.server.endpoint, f"rollout{index}", incarnation, 16)
        buffer = LocalBuffer(self.store)
        seed = 100 * incarnation + index
        roles = rehearsed_roles(engine, buffer, config.selfplay, config.rehearsal, lengths_of(config), seed)
        try:
            await Rollout(engine, roles, buffer, client, config.selfplay).run()
        finally:
            client.close()
            await engine.close()


@pytest.mark.slow
@given(
    st.integers(1, 3), st.integers(0, 2), st.sampled_from(["wait", "drop"]), st.integers(0, 3), st.integers(0, 2**32)
)
@examples(5)
def test_the_ledger_is_conserved_and_ages_are_within_the_bound_whoever_dies(
    num_actors: int, max_staleness: int, on_stale: str, num_kills: int, seed: int
) -> None:
    generator = random.Random(seed)

    async def main(run: Run) -> None:
        lives = dict.fromkeys(range(num_actors), 0)
        playing = {index: asyncio.create_task(run.play(index, 0)) for index in lives}
        for _ in range(num_kills):
            await asyncio.sleep(generator.uniform(0, 0.5))
            index = generator.choice(list(lives))
            playing[index].cancel()
            await asyncio.wait({playing[index]})
            for member in run.server.members():
                if member.holder == (f"rollout{index}", lives[index]):
                    run.server.lose(member, "a test")
            if not run.learning.is_alive():
                break
            lives[index] += 1
            playing[index] = asyncio.create_task(run.play(index, lives[index]))
        await asyncio.to_thread(run.learning.join)
        await asyncio.wait(playing.values(), timeout=30)
        for task in playing.values():
            task.cancel()

    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe(max_staleness, on_stale), Path(folder))
        run.learning.start()
        try:
            asyncio.run(main(run))
        finally:
            run.store.close()
    if run.failure is not None:
        raise run.failure
    ledger = run.server.gate.ledger()
    assert conserved(ledger)
    assert [row["version"] for row in run.rows] == list(range(1, STEPS + 1))
    assert totals(ledger)["trained"] == len(run.ages)
    assert min(run.ages) >= 0 and max(run.ages) <= max_staleness
