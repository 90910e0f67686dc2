"""The simulator as a whole: what must come out whatever the numbers, and the shapes that others have published."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.settings import SelfPlaySettings
from launch.tune.advice import Limit, best_sides, explain_assumptions, explain_asynchrony, explain_choice, waits_of
from launch.tune.calibration import ASSUMED, CalibrationError
from launch.tune.closed_form import estimate_closed, harmonic_split
from launch.tune.search import Candidate, Gain, Searcher
from launch.tune.simulation import play_run, simulate
from launch.tune.synthetic import lognormal_workload
from tests.unit.launch.tune.calibrations import KINDS, calibration, scenario

CHAIN_S = 2.0
"""Seconds of a proposal and its solution in `calibration()`: twice 100 tokens at 10 ms."""


def test_a_synchronous_step_is_sampling_and_training_one_after_the_other():
    found = simulate(scenario(calibration(train_s=3.0), staleness=0), calibration(train_s=3.0))
    assert found.step_s == pytest.approx(CHAIN_S + 3.0, rel=0.01)
    assert found.age_mean == 0
    assert found.learner_waits == pytest.approx(CHAIN_S / 5, rel=0.02)


@pytest.mark.parametrize(("train_s", "limit"), [(4.0, Limit.TRAINER), (0.5, Limit.ROLLOUT)])
def test_an_asynchronous_step_takes_as_long_as_the_slower_side(train_s, limit):
    made = calibration(train_s=train_s, publish_s=0.1)
    found = simulate(scenario(made, staleness=1), made)
    assert found.step_s == pytest.approx(max(train_s + 0.1, (CHAIN_S + train_s + 0.2) / 2), rel=0.1)
    assert waits_of(Candidate({}, scenario(made), (found,))).limit is limit


def test_actors_that_are_faster_play_ahead_as_far_as_they_may():
    made = calibration(train_s=20.0)
    assert [simulate(scenario(made, bound), made).age_mean for bound in (0, 1, 2, 4)] == pytest.approx([0, 1, 2, 4])


def test_equal_seeds_give_equal_predictions():
    made = calibration(workload=lognormal_workload(KINDS, 50, 100, 0.8, 1000, 0.5))
    asked = scenario(made, staleness=2, actors=2)
    assert simulate(asked, made, 7, 6) == simulate(asked, made, 7, 6)
    assert simulate(asked, made, 7, 6) != simulate(asked, made, 8, 6)


@given(
    st.integers(0, 4),
    st.integers(1, 4),
    st.floats(0.1, 5.0),
    st.floats(0.0, 1.0),
    st.sampled_from(("wait", "drop", "train")),
    st.integers(1, 4),
    st.integers(4, 64),
    st.booleans(),
)
def test_the_bound_holds_and_no_run_stands_still(staleness, actors, train_s, valid, on_stale, per, concurrency, trains):
    made = calibration(
        train_s=train_s, sequence_s=1e-3, kv_tokens=2000, workload=lognormal_workload(KINDS, 20, 60, 0.9, 400, valid)
    )
    asked = scenario(made, staleness, actors).with_changes(on_stale=on_stale, concurrency=concurrency)
    selfplay = SelfPlaySettings(solutions=2, proposals_per_prompt=per, train_on_estimates=trains)
    found = play_run(asked.with_changes(selfplay=selfplay), made, 0, 6)
    assert all(step.trajectories <= asked.quota for step in found.steps)
    if on_stale != "train":
        assert found.age_max <= staleness
    assert 0 <= found.learner_waits <= 1
    assert -1e-9 <= found.actors_wait <= 1
    ends = [step.end_s for step in found.steps]
    assert ends == sorted(ends)


def test_a_faster_part_never_makes_a_run_slower_by_much():
    made = calibration(train_s=2.0, workload=lognormal_workload(KINDS, 50, 100, 0.8, 1000, 0.5))
    asked = scenario(made, staleness=1)
    slow = simulate(asked, made).step_s
    for name in ("engine.step_s", "learner.step_s"):
        part, _, key = name.partition(".")
        half = getattr(getattr(made, part), key).value / 2
        assert simulate(asked, made.with_figure(name, half)).step_s <= slow * 1.02


def test_processes_that_share_a_core_cost_each_other_time():
    apart, together = (calibration(kind="cpu", cores=cores, train_s=2.0) for cores in (2, 1))
    assert simulate(scenario(together), together).step_s > 1.5 * simulate(scenario(apart), apart).step_s


def test_a_calibration_without_a_kind_is_refused():
    made = calibration()
    asked = scenario(made)
    without = made.model_copy(update={"workload": {k: v for k, v in made.workload.items() if "abd" not in k}})
    with pytest.raises(CalibrationError, match="no lengths of abduction/propose, abduction/solve"):
        simulate(asked, without)


# -- published shapes ----------------------------------------------------------------------------------------------

MARIN_S = (6235, 4360, 3544, 3142, 2942)
"""Seconds of 100 updates at staleness 0 to 4. 8 devices sample 512 responses of at most 4,096 tokens an update, four to
a prompt, with 192 prompts in flight; 32 train (github.com/marin-community/marin, issues 8955 and 9256, September
2026)."""


def marin(staleness):
    """A run of that shape. The source gives counts and limits; lengths and the two speeds are fitted to its five
    figures."""
    made = calibration(
        train_s=17.0, step_s=0.005, sequence_s=3e-4, workload=lognormal_workload(KINDS, 300, 900, 0.8, 4096, 1.0)
    )
    asked = scenario(made, staleness, 8).with_changes(concurrency=192 * 4 // 8)
    batch = asked.batch.model_copy(update={"propose": {}, "solve": dict.fromkeys(KINDS, 256)})
    return dataclasses.replace(asked, batch=batch, selfplay=SelfPlaySettings(solutions=4)), made


@pytest.mark.slow
def test_most_of_the_gain_comes_by_staleness_2_as_others_have_measured():
    found = [simulate(*marin(bound), counted=4) for bound in (0, 1, 2, 3, 4, 8)]
    seconds = [100 * one.step_s for one in found]
    assert [s / seconds[0] for s in seconds[:5]] == pytest.approx([s / MARIN_S[0] for s in MARIN_S], abs=0.06)
    assert (seconds[0] - seconds[2]) / (seconds[0] - seconds[4]) > 0.75
    assert seconds[5] > 0.95 * seconds[4]
    assert waits_of(Candidate({}, marin(4)[0], (found[4],))).limit is Limit.ROLLOUT


def test_a_split_with_too_few_trainers_is_called_trainer_bound_and_moved():
    """Sampling and training take equal device-seconds, so the harmonic split of 8 devices is 4 and 4."""
    made = calibration(train_s=0.0, row_s=0.05, step_s=0.02, sequence_s=2e-3, response=200)
    asked = scenario(made, 2, actors=7).with_changes(learner_threads=1)
    found = Searcher(made, 6, seeds=(0,)).search(asked, ("split",))
    assert waits_of(found.present).limit is Limit.TRAINER
    assert found.chosen.scenario.training_devices > asked.training_devices
    assert "trainer-bound: move" in explain_choice(found, Gain(0.5, 0.1))
    closed = estimate_closed(asked, made)
    split = harmonic_split(closed.generate_s * 7, closed.learn_s, asked.devices)
    assert found.chosen.scenario.training_devices == pytest.approx(split.training, abs=1.5)


def test_asynchrony_that_does_not_pay_is_called_so():
    made = calibration(kind="cpu", cores=1, train_s=2.0)
    searcher = Searcher(made, 6, seeds=(0,))
    found = searcher.search(scenario(made), ("staleness",))
    assert found.chosen.scenario.max_staleness == 0
    synchronous, asynchronous = best_sides(found)
    gain = searcher.gain(asynchronous.scenario, synchronous.scenario, draws=3)
    assert explain_asynchrony(found, gain).startswith("Asynchrony does not pay here")


def test_asynchrony_that_pays_is_called_so_only_where_the_calibration_is_sure_enough():
    made = calibration(train_s=2.0)
    found = Searcher(made, 6, seeds=(0,)).search(scenario(made), ("staleness",))
    synchronous, asynchronous = best_sides(found)
    gain = asynchronous.throughput / synchronous.throughput - 1
    assert gain > 0.5
    assert explain_asynchrony(found, Gain(gain, 0.1)).startswith("Asynchrony pays")
    assert explain_asynchrony(found, Gain(gain, gain)).startswith("Asynchrony may pay")


def test_what_no_run_tells_is_named_where_the_prediction_rests_on_it():
    made = calibration(kind="cpu")
    unknown = made.sharing.engine_beside_engine.model_copy(update={"source": ASSUMED})
    sharing = made.sharing.model_copy(update={"engine_beside_engine": unknown})
    made = made.model_copy(update={"sharing": sharing})
    assert explain_assumptions(scenario(made, actors=1), made) == ""
    assert "sharing.engine_beside_engine. Add a run with" in explain_assumptions(scenario(made, actors=2), made)


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("train_s", [0.2, 2.0, 6.0])
def test_closed_form_and_simulation_agree_where_lengths_do_not_vary(staleness, train_s):
    made = calibration(train_s=train_s, publish_s=0.05)
    asked = scenario(made, staleness)
    closed, found = estimate_closed(asked, made), simulate(asked, made)
    assert closed.step_s == pytest.approx(found.step_s, rel=0.12)
    assert closed.age_mean == pytest.approx(found.age_mean, abs=0.6)
