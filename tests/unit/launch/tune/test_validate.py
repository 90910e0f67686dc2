"""Recorded trials, predicted again without engines; and a validation that notices when what decides has changed."""

import json

import pytest

from launch.tune.calibration import CalibrationError
from launch.tune.simulation import play_run
from launch.tune.trace import Trace, read_traces
from launch.tune.trials import FOLDER, TRIALS
from launch.tune.validate import FINDINGS as FINDINGS_FILE
from launch.tune.validate import compare, validate
from learner.staleness import Gate
from tests.unit.launch.tune.calibrations import calibration, config, scenario


def trace_from(made, staleness):
    """The trace of a simulated run: what a perfect prediction predicts."""
    found = play_run(scenario(made, staleness), made, 0, 10)
    settings = json.loads(config(staleness).model_dump_json(include={"selfplay", "engine", "actors", "learner"}))
    rows = [
        {"time_s": s.end_s, "age_mean": s.age_mean, "batch_size": s.trajectories, "tokens_trained": s.tokens}
        for s in found.steps
    ]
    return Trace(f"s{staleness}", "held-out", settings | {"run": {"mode": "async"}}, {}, rows, {})


def test_a_run_like_the_simulation_is_predicted_exactly():
    made = calibration(train_s=2.0)
    for staleness in (0, 1, 2):
        found = compare(trace_from(made, staleness), scenario(made, staleness), made)
        assert found.throughput_error == pytest.approx(0, abs=1e-9)
        assert found.age_error == pytest.approx(0, abs=1e-9)


def test_a_changed_gate_shows(monkeypatch):
    """A gate that opens a batch too many, or one too few, no longer makes the ages and the speed that were recorded."""
    made = calibration(train_s=2.0)
    traces = [trace_from(made, staleness) for staleness in (1, 2)]
    for by in (-1, 1):
        original = Gate.__init__
        with monkeypatch.context() as changed:
            changed.setattr(
                Gate, "__init__", lambda self, batch, bound, *a, by=by, **k: original(self, batch, bound + by, *a, **k)
            )
            found = [compare(trace, scenario(made, 1 + index), made) for index, trace in enumerate(traces)]
        assert max(abs(one.age_error) for one in found) > 0.15


def test_traces_are_read_as_they_were_written(tmp_path):
    trace = trace_from(calibration(), 1)
    trace.write(tmp_path / "one.trace.json")
    assert read_traces(tmp_path) == [trace]
    (tmp_path / "two.trace.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"two\.trace\.json is no trace"):
        read_traces(tmp_path)


def test_no_two_trials_have_one_name():
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)
    assert sum(trial.purpose == "held-out" and "rehearse" not in str(trial.overrides) for trial in TRIALS) >= 8


# -- the recorded trials ---------------------------------------------------------------------------------------------

FINDINGS = json.loads((FOLDER / FINDINGS_FILE).read_text())
MOST = 400
"""Trajectories of a batch up to which a trial is predicted again here; larger ones take minutes."""
SLACK = 0.03
"""What an error may be more than it was."""
FEWER = (0, 1)
"""Seeds, fewer than the findings have; the mean of two is within 2 standard deviations of that of all."""


@pytest.mark.slow
def test_recorded_trials_are_predicted_as_well_as_they_were():
    then = {trial["name"]: trial for trial in FINDINGS["trials"]}
    found = validate(FOLDER, seeds=FEWER, most=MOST).trials
    assert len(found) >= 3
    for one in found:
        was = then[one.trace.name]
        chance = 2 * was["deviation_over_seeds"]
        assert abs(one.throughput_error) <= abs(was["throughput_error"]) + SLACK + chance, one.trace.name
        age_error = was["age_mean"]["predicted"] - was["age_mean"]["measured"]
        assert abs(one.age_error) <= abs(age_error) + SLACK, one.trace.name


def test_a_changed_gate_no_longer_predicts_the_recorded_trials(monkeypatch):
    original = Gate.__init__
    monkeypatch.setattr(Gate, "__init__", lambda self, batch, bound, *a, **k: original(self, batch, bound + 1, *a, **k))
    found = validate(FOLDER, seeds=(0,), most=MOST)
    assert found.keys["age_error_max"] > 0.3
    assert found.keys["throughput_error_max"] > 0.15
