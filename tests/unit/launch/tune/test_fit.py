"""Figures that are known come out of what they make: lines, positive parameters, the cost of an engine step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.least_squares import fit_line, fit_line_robustly, fit_positive
from launch.tune.calibration import CalibrationError
from launch.tune.engine_fit import EngineSetup, fit_engine, play_batch
from launch.tune.engine_model import StepCost
from launch.tune.records import Recorded
from learner.trajectory import Cell, Role

SETUP = EngineSetup(
    cores=2, threads=1, max_num_seqs=32, max_num_batched_tokens=2048, kv_tokens=20_000, cached_share=0.2
)


@given(st.lists(st.floats(0, 5), min_size=2, max_size=3), st.integers(0, 1000))
def test_a_line_has_the_coefficients_that_made_it(coefficients, seed):
    columns = np.random.default_rng(seed).uniform(0.5, 2.0, (len(coefficients), 12))
    found = fit_line(columns, coefficients @ columns)
    assert found.values == pytest.approx(coefficients, abs=1e-6)


def test_no_coefficient_of_a_line_is_negative():
    found = fit_line([[1.0] * 4, [1.0, 2.0, 3.0, 4.0]], [4.0, 3.0, 2.0, 1.0])
    assert min(found.values) >= 0
    assert found.values[0] == pytest.approx(2.5)


def test_a_line_is_found_although_some_steps_were_disturbed():
    rng = np.random.default_rng(0)
    columns = np.stack([np.ones(13), rng.uniform(1.0, 4.0, 13)])
    values = np.array([2.0, 3.0]) @ columns + 0.05 * rng.standard_normal(13)
    values[[1, 6, 12]] += (3.0, 2.0, 5.0)
    assert fit_line_robustly(columns, values).values == pytest.approx((2.0, 3.0), abs=0.2)
    assert fit_line(columns, values).values != pytest.approx((2.0, 3.0), abs=0.2)


def test_positive_parameters_are_found_with_their_errors():
    x = np.linspace(0.1, 3, 40)
    noise = 0.01 * np.random.default_rng(0).standard_normal(40)
    found = fit_positive(lambda p: p[0] * np.exp(-p[1] * x) + noise - 2 * np.exp(-0.7 * x), (1.0, 1.0))
    assert found.values == pytest.approx((2.0, 0.7), rel=0.02)
    assert all(abs(v - t) < 4 * e for v, t, e in zip(found.values, (2.0, 0.7), found.errors, strict=True))


def recorded_batch(rng, step, cost):
    """A batch of 8 proposals with two solutions each, as long as an engine of that cost takes."""
    batch, slot = [], 0
    for episode in range(8):
        for role, count in ((Role.PROPOSE, 1), (Role.SOLVE, 2)):
            for _ in range(count):
                batch.append(
                    Recorded(
                        step=step,
                        slot=slot,
                        episode=f"{step}.{episode}",
                        cell=Cell("deduction", role),
                        actor="rollout0#0",
                        prompt_key=100 * episode + (role is Role.SOLVE),
                        prompt=int(rng.integers(60, 200)),
                        response=int(rng.integers(2, 90)),
                        valid=True,
                        known=False,
                        correct=True,
                        fresh=True,
                        sampling_s=0.0,
                        execute_s=0.02,
                        oldest=0,
                        newest=0,
                    )
                )
                slot += 1
    seconds, _ = play_batch(batch, cost, SETUP, solutions=4)
    return [replace(item, sampling_s=float(s)) for item, s in zip(batch, seconds, strict=True)]


def run_of(batches, staleness=0):
    config = SimpleNamespace(
        learner=SimpleNamespace(max_staleness=staleness),
        actors=SimpleNamespace(num_actors=1),
        selfplay=SimpleNamespace(solutions=4),
    )
    return SimpleNamespace(config=config, batches=batches)


def test_the_cost_of_an_engine_step_comes_out_of_recorded_batches():
    true = StepCost(0.03, 0.002, 1e-6, 8e-4, SETUP.cached_share, 32)
    rng = np.random.default_rng(0)
    run = run_of({step: recorded_batch(rng, step, true) for step in range(1, 6)})
    fit, requests = fit_engine([run], SETUP)
    assert requests == 4 * 24
    assert fit.values[0] == pytest.approx(true.step_s, rel=0.05)
    assert fit.values[1] == pytest.approx(true.sequence_s, rel=0.1)
    assert fit.values[3] == pytest.approx(true.prompt_s, rel=0.05)
    assert fit.residual < 0.01


def test_runs_that_tell_nothing_about_the_engine_are_refused():
    with pytest.raises(CalibrationError, match="has to be synchronous"):
        fit_engine([run_of({2: []}, staleness=1)], SETUP)
