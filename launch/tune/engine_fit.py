"""The time of an engine step, found by playing recorded batches again on the simulated engine.

A synchronous run (`max_staleness = 0`) begins each batch with an idle engine, and its trajectories say how long each
request took, how long it was, and which proposal a solution waited for. So the same requests, in the same order of
dependence, are given to `EngineModel`, and the step's cost is the one with which they take as long as recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import simpy

from launch.least_squares import Fit, fit_positive
from launch.model_check import BLOCK_TOKENS
from launch.tune.calibration import CalibrationError
from launch.tune.engine_model import EngineModel, StepCost
from launch.tune.machine import Machine, Process
from launch.tune.records import Recorded, RunRecord
from learner.trajectory import Role

START = (0.02, 0.001, 1e-5, 5e-4)
"""Where the fit begins: seconds a step, a sequence, a token of context, a prompt token."""
SHORT_S = 0.3
"""Added to a measured time that a difference is divided by: short requests are not fitted to the millisecond."""
MAX_BATCHES = 12
"""Batches that are played again, evenly chosen."""


@dataclass(frozen=True)
class EngineSetup:
    """What a recorded engine was: how many sequences, tokens and threads."""

    cores: int
    threads: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: float
    cached_share: float


def setup_of(run: RunRecord, cores: int, kv_tokens: float, cached_share: float) -> EngineSetup:
    """The engine of a recorded run."""
    engine = run.config.engine
    return EngineSetup(
        cores=cores,
        threads=engine.threads * engine.tensor_parallel or cores,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_model_len),
        kv_tokens=kv_tokens,
        cached_share=cached_share,
    )


def fit_engine(runs: Sequence[RunRecord], setup: EngineSetup) -> tuple[Fit, int]:
    """The cost of an engine step from synchronous runs of one actor; returns the fit of (step, sequence, context token,
    prompt token) in seconds, and the number of requests it is over. Raises CalibrationError."""
    batches = [
        (run, batch)
        for run in runs
        if run.config.learner.max_staleness == 0 and run.config.actors.num_actors == 1
        for step, batch in run.batches.items()
        if step > 1
    ]
    if not batches:
        raise CalibrationError(
            "none of the runs tells how fast the engine is: one has to be synchronous (learner.max_staleness=0) with "
            "one actor, and have its trajectories (run.record_trajectories=true)"
        )
    chosen = batches[:: max(1, len(batches) // MAX_BATCHES)]
    measured = [np.array([item.sampling_s for item in batch]) for _, batch in chosen]

    def residuals(parameters: Sequence[float]) -> np.ndarray:
        step_s, sequence_s, context_s, prompt_s = parameters
        cost = StepCost(step_s, sequence_s, context_s, prompt_s, setup.cached_share, BLOCK_TOKENS)
        parts = []
        for (run, batch), seconds in zip(chosen, measured, strict=True):
            played, _ = play_batch(batch, cost, setup, run.config.selfplay.solutions)
            parts.append((played - seconds) / (seconds + SHORT_S))
        return np.concatenate(parts)

    return fit_positive(residuals, START), sum(len(batch) for _, batch in chosen)


def over_ledger(runs: Sequence[RunRecord], cost: StepCost, setup: EngineSetup) -> float | None:
    """Simulated seconds of engine steps over those that the runs' ledgers have (`actor_time/prefill_actor_s` and
    `actor_time/decode_actor_s`): a check that the fit did not see. None where the runs have no such ledger."""
    simulated = measured = 0.0
    for run in runs:
        for before, row in zip(run.rows, run.rows[1:], strict=False):
            batch = run.batches.get(int(row["step"]))
            if not batch or not all(name in row and name in before for name in _STEPS):
                continue
            simulated += play_batch(batch, cost, setup, run.config.selfplay.solutions)[1]
            measured += sum(row[name] - before[name] for name in _STEPS)
    return simulated / measured if measured else None


_STEPS = ("actor_time/prefill_actor_s", "actor_time/decode_actor_s")


def play_batch(
    batch: Sequence[Recorded], cost: StepCost, setup: EngineSetup, solutions: int
) -> tuple[np.ndarray, float]:
    """Seconds from request to last token of each trajectory of `batch`, in its order, on a simulated engine, and the
    seconds in which that engine computed steps.

    Estimates that had no slot were not recorded; they are played with the lengths of their recorded siblings.
    """
    env = simpy.Environment()
    engine = EngineModel(
        env,
        Machine(env, {"engine": setup.cores}),
        "engine",
        cost,
        setup.max_num_seqs,
        setup.max_num_batched_tokens,
        setup.kv_tokens,
        setup.threads,
    )
    seconds: dict[int, float] = {}
    solved: dict[str, list[Recorded]] = defaultdict(list)
    for item in batch:
        if item.cell.role is Role.SOLVE:
            solved[item.episode].append(item)
    proposals = {item.episode: item for item in batch if item.cell.role is Role.PROPOSE}

    def sample(item: Recorded) -> Process:
        since = env.now
        yield engine.generate(item.prompt_key, item.prompt, item.response)
        seconds[item.slot] = env.now - since

    def solve(answers: Sequence[Recorded], extra: int) -> Process:
        unrecorded = [replace(answers[index % len(answers)], slot=-1 - index) for index in range(extra)]
        yield env.all_of([env.process(sample(item)) for item in (*answers, *unrecorded)])

    def propose(item: Recorded) -> Process:
        yield env.process(sample(item))
        yield env.timeout(item.execute_s)
        answers = solved.get(item.episode, [])
        if answers:
            extra = max(0, solutions - len(answers)) if item.valid and answers[0].fresh else 0
            yield env.process(solve(answers, extra))

    started = [env.process(propose(item)) for item in sorted(proposals.values(), key=lambda item: item.slot)]
    started += [env.process(solve(answers, 0)) for name, answers in solved.items() if name not in proposals]
    env.run(until=env.all_of(started))
    return np.array([seconds[item.slot] for item in batch]), engine.busy_s
