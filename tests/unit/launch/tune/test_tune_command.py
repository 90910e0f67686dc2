"""`azr tune` as a user meets it."""

import json

import pytest

from launch.cli import main
from launch.config import load
from launch.tune.calibration import load_calibration, save_calibration
from launch.tune.scale import sizes
from launch.tune.search import Searcher, apply
from launch.tune.synthetic import lognormal_workload
from tests.unit.launch.tune.calibrations import calibration, scenario

KINDS = ("deduction", "abduction", "induction")
QUOTAS = (
    "learner.batch.propose={deduction=4,abduction=4,induction=2}",
    "learner.batch.solve={deduction=8,abduction=8}",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "here.json"
    workload = lognormal_workload(KINDS, 50, 40, 0.5, 96, 0.5)
    save_calibration(calibration(kind="cpu", cores=2, train_s=5.0, publish_s=0.2, workload=workload), path)
    return path


def test_a_calibration_is_read_as_it_was_written(file):
    found = load_calibration(file)
    save_calibration(found, file.with_name("again.json"))
    assert load_calibration(file.with_name("again.json")) == found


def test_a_recommendation_is_a_recipe(file, tmp_path, capsys):
    out, findings = tmp_path / "tuned.toml", tmp_path / "found.json"
    asked = ["tune", "smollm2-cpu", *QUOTAS, "--calibration", str(file), "--steps", "4", "--vary", "staleness"]
    assert main([*asked, "--out", str(out), "--json", str(findings)]) == 0
    found = json.loads(findings.read_text())
    assert load(str(out)).learner.max_staleness == found["chosen"]["changes"].get("learner.max_staleness", 1)
    assert {row["changes"].get("learner.max_staleness", 1) for row in found["candidates"]} == {0, 1, 2, 4, 8}
    assert any(row["pareto"] for row in found["candidates"])
    assert load(str(out)).learner.batch == load("smollm2-cpu", QUOTAS).learner.batch, "settings given with the recipe"
    assert load(str(out)).run.name == "tuned", "a run folder of its own"
    shown = capsys.readouterr().out
    assert "recommended" in shown and "trainer-bound" in shown and "closed form" in shown


@pytest.mark.parametrize(
    ("override", "is_short"),
    [("learner.optimizer.lr=3e-5", True), ("run.max_minutes=none", False), ("executor.require=[landlock]", False)],
)
def test_a_recommended_recipe_is_the_recipe_with_what_was_given(file, tmp_path, override, is_short):
    out = tmp_path / "tuned.toml"
    asked = ["tune", "smollm2-cpu", override, "--calibration", str(file), "--steps", "4", "--vary", "staleness"]
    assert main([*asked, "--out", str(out)]) == 0
    found = load(str(out))
    chosen = f"learner.max_staleness={found.learner.max_staleness}"
    assert found == load("smollm2-cpu", [override, chosen, "run.name=tuned"])
    assert ('base = "smollm2-cpu"' in out.read_text()) == is_short


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smollm2-cpu"], "needs a calibration"),
        ([], "needs a recipe and a calibration"),
        (["calibrate"], "needs run folders and a file"),
        (["calibrate", "nowhere", "--out", "x.json"], "is no run folder"),
        (["smollm2-cpu", "--calibration", "nowhere.json"], "cannot be read"),
        (["--validate", "--measure", "nothing"], "no trial is called nothing"),
        (["smollm2-cpu", "--calibration", "h100-7b", "--scale", "many"], "give two numbers of devices"),
    ],
)
def test_what_cannot_be_done_is_said_with_what_to_do(words, message, capsys):
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_calibration_of_a_cpu_is_not_scaled(file, capsys):
    assert main(["tune", "smollm2-cpu", "--calibration", str(file), "--scale", "8..16"]) == 2
    assert "is of a CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_at_scale_some_part_of_the_control_plane_becomes_the_limit(capsys):
    quotas = [f"learner.batch.{role}={{deduction=16,abduction=16,induction=16}}" for role in ("propose", "solve")]
    assert main(["tune", "qwen2.5-7b-8gpu", *quotas, "--calibration", "h100-7b", "--scale", "64..65536"]) == 0
    assert "is the limit: " in capsys.readouterr().out


def test_sizes_double_from_the_first_to_the_last():
    assert sizes("8..100") == [8, 16, 32, 64]
    assert sizes("24..24") == [24]


def test_the_choice_is_the_youngest_among_the_fastest():
    made = calibration(train_s=4.0)
    found = Searcher(made, 6, seeds=(0,)).search(scenario(made, 4), ("staleness",))
    best = max(one.throughput for one in found.candidates)
    assert found.chosen.throughput >= 0.98 * best
    assert all(one.age >= found.chosen.age - 0.01 for one in found.candidates if one.throughput >= 0.98 * best)
    assert found.chosen.scenario.max_staleness == 1


def test_settings_are_applied_by_their_key():
    asked = scenario(calibration())
    changed = apply(asked, {"learner.batch.solve": {"deduction": 1}, "actors.num_actors": 3, "selfplay.solutions": 5})
    assert (changed.batch.solve, changed.num_actors, changed.selfplay.solutions) == ({"deduction": 1}, 3, 5)
    with pytest.raises(KeyError):
        apply(asked, {"learner.steps": 3})
