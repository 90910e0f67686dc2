"""Calibrations for tests of the tuner: round numbers, so that a test can say what must come out."""

from __future__ import annotations

from launch.config import Config, build
from launch.tune.calibration import (
    Calibration,
    EngineFigures,
    ExecutorFigures,
    Figure,
    Group,
    Hardware,
    LearnerFigures,
    SharingFigures,
    StreamFigures,
    WeightFigures,
)
from launch.tune.scenario import Scenario

KINDS = ("deduction", "abduction")


def figure(value: float, error: float = 0.0) -> Figure:
    return Figure(value=value, error=error, unit="", source="test")


def calibration(
    *,
    kind: str = "gpu",
    cores: int = 2,
    step_s: float = 0.01,
    sequence_s: float = 0.0,
    prompt_s: float = 0.0,
    kv_tokens: float = 1e6,
    train_s: float = 1.0,
    row_s: float = 0.0,
    publish_s: float = 0.0,
    sharing: float = 1.0,
    response: int = 100,
    valid: bool = True,
    workload: dict[str, tuple[Group, ...]] | None = None,
) -> Calibration:
    """An engine of `step_s` seconds a step, a learner of `train_s` a batch; every response has `response` tokens."""
    lengths = {
        f"{name}/{role}": (
            Group(version=0, prompt=10, responses=(response,) * 8, valid=(valid,) * 8 if role == "propose" else ()),
        )
        for name in KINDS
        for role in ("propose", "solve")
    }
    return Calibration(
        name="test",
        hardware=Hardware(name="test", kind=kind, cores=cores),
        engine=EngineFigures(
            step_s=figure(step_s),
            sequence_s=figure(sequence_s),
            context_token_s=figure(0.0),
            prompt_token_s=figure(prompt_s),
            cached_share=figure(0.0),
            block_tokens=16,
            kv_tokens=figure(kv_tokens),
            threads=1,
        ),
        learner=LearnerFigures(
            step_s=figure(train_s),
            row_s=figure(row_s),
            between_s=figure(0.0),
            threads=1,
            parallel_share=figure(1.0),
        ),
        weights=WeightFigures(ready_s=figure(0.0), send_s=figure(publish_s), load_s=figure(0.0), actor_s=figure(0.0)),
        executor=ExecutorFigures(validate_s=figure(0.0), verify_s=figure(0.0)),
        sharing=SharingFigures(
            engine_beside_learner=figure(sharing),
            learner_beside_engine=figure(sharing),
            engine_beside_engine=figure(sharing),
        ),
        stream=StreamFigures(message_s=figure(0.0), trajectory_s=figure(1e-4)),
        workload=workload or lengths,
        model_bytes=1_000_000,
    )


def config(staleness: int = 1, actors: int = 1) -> Config:
    """A small recipe: 4 proposals and 4 solutions of each kind, one solution a proposal."""
    batch = {"kinds": KINDS, "propose": dict.fromkeys(KINDS, 4), "solve": dict.fromkeys(KINDS, 4)}
    return build(
        {
            "selfplay": {"solutions": 1},
            "actors": {"num_actors": actors, "concurrency": 64},
            "learner": {"max_staleness": staleness, "threads": 1, "batch": batch},
            "engine": {"threads": 1},
        }
    )


def scenario(found: Calibration, staleness: int = 1, actors: int = 1) -> Scenario:
    return Scenario.of(config(staleness, actors), found)
