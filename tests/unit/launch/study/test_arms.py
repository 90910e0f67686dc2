"""`azr study arms`: files of arms, what they are refused for, and what their page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from actors.heldout.intervals import Estimate
from actors.kinds.registry import names
from launch import cli
from launch.config import Config, load
from launch.recipe import parse_override
from launch.study.arms import NAMES
from launch.study.arms_file import find_arms, read_arms
from launch.study.definition import Budget, StudyError, StudyRun
from launch.study.findings import judge
from launch.study.folder import StudyFolder
from launch.study.learning import over_programs
from launch.study.page import write_page
from launch.study.result import Measured
from tests.unit.launch.study.studies import make_result, make_study, write

TWO = "[arms.plain]\n[arms.bare]\nselfplay.references = 0\n"


def command(tmp_path: Path, text: str, *more: str) -> int:
    (tmp_path / "mine.toml").write_text(text)
    out = ["--out", str(tmp_path / "study"), "--dry-run"]
    return cli.main(["study", "arms", "smollm2-cpu-small", str(tmp_path / "mine.toml"), *out, *more])


def test_the_ablations_that_ship_are_those_of_the_recipes() -> None:
    def settings(config: Config) -> dict[str, Any]:
        data = config.model_dump()
        del data["run"]["name"]
        return data

    for arm in read_arms(find_arms("ablations")):
        recipe = "smollm2-cpu" if arm.baseline is None else f"ablation-{arm.name}"
        assert settings(load("smollm2-cpu", arm.overrides)) == settings(load(recipe)), arm.name
    _, reference = read_arms(find_arms("reference"))
    recipes = [load(f"ablation-{name}") for name in ("compat-reference", "discard-estimates")]
    found = load("smollm2-cpu", reference.overrides).selfplay
    assert (found.compat, found.train_on_estimates) == (
        recipes[0].selfplay.compat,
        recipes[1].selfplay.train_on_estimates,
    )


@pytest.mark.parametrize("name", NAMES)
def test_arms_that_ship_make_a_study_of_equal_tokens(tmp_path: Path, name: str) -> None:
    out = ["--out", str(tmp_path / "study"), "--dry-run"]
    assert cli.main(["study", "arms", "smollm2-cpu-learn", name, "--seeds", "0,1", "--tokens", "5000", *out]) == 0
    study = StudyFolder(tmp_path / "study").read()
    assert [arm.baseline for arm in study.arms] == [None] + [study.arms[0].name] * (len(study.arms) - 1)
    assert len(study.order) == 2 * len(study.arms)
    for run in study.runs():
        config = load(tmp_path / "study" / "recipe.toml", study.overrides_of(run))
        assert (config.run.max_tokens, config.run.max_minutes, config.run.seed) == (5000, None, run.seed)
        assert config.learner.steps > 5000, "only the tokens end it"


VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9),
                   st.lists(st.text(max_size=5), max_size=3))  # fmt: skip


@given(st.dictionaries(st.text("abc_", min_size=1, max_size=5), VALUES, max_size=4))
def test_settings_of_a_file_reach_the_runs_as_they_are(tmp_path_factory: pytest.TempPathFactory, settings: Any) -> None:
    path = tmp_path_factory.mktemp("arms") / "mine.toml"
    path.write_text(tomli_w.dumps({"arms": {"a": {"learner": {"batch": settings}}, "b": {}}}))
    overrides = dict(parse_override(text) for text in read_arms(path)[0].overrides)
    assert overrides == {f"learner.batch.{name}": value for name, value in settings.items()}


def test_another_arm_can_be_the_baseline(tmp_path: Path) -> None:
    assert command(tmp_path, TWO, "--baseline", "bare", "--steps", "8") == 0
    study = StudyFolder(tmp_path / "study").read()
    assert [(arm.name, arm.baseline, arm.overrides) for arm in study.arms] == [
        ("plain", "bare", ()),
        ("bare", None, ("selfplay.references=0",)),
    ]
    assert study.budget == Budget(steps=8)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("[arms.plain", [], "not valid TOML"),
        ("[arm.plain]\n[arm.bare]", [], "has a table [arms.NAME] for each arm"),
        ("[arms]\nplain = 3\n[arms.bare]", [], "has a table [arms.NAME] for each arm"),
        ("[arms]", [], "has no arm: it has a table [arms.NAME] for each arm"),
        (TWO, ["--baseline", "full"], "--baseline full: "),
        (TWO, ["--tokens", "0"], "above 0"),
        (TWO, ["selfplay.references=0"], "the arms plain and bare have the same settings"),
        (TWO + "run.seed = 3", [], "the arm bare sets run.seed, which is the same in all arms: use --seeds"),
        (TWO + "run.max_tokens = 3", [], "use --tokens"),
        (TWO + "selfplay.heldout_tasks = 3", [], "all arms are measured alike"),
        *(
            (TWO + f"selfplay.{name} = {value}", [], f"would ask held-out tasks with selfplay.{name} = ")
            for name, value in (("examples", 3), ("prompt_format", '"r1"'), ("max_solve_tokens", 7))
        ),
        (TWO + "selfplay.max_prompt_tokens = 400", ["selfplay.examples=2"], "selfplay.max_prompt_tokens = "),
        (TWO + "selfplay.refs = 3", [], "unknown setting"),
        (TWO + "run.log_level = 2026-11-27", [], "no value of a setting"),
        ('[arms."a b"]\n[arms.c]', [], "an arm cannot be called 'a b'"),
    ],
)
def test_arms_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], words: str
) -> None:
    assert command(tmp_path, text, *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "study").exists()


def test_a_name_that_is_no_file_is_refused_with_those_that_ship() -> None:
    for name in ("ablation", "ablations.toml", "./ablations"):
        with pytest.raises(StudyError, match="one that ships: ablations, alone, controls, reference"):
            find_arms(name)


@pytest.mark.parametrize("name", ["mine.toml", "mine/arms.toml"])
def test_the_folder_has_the_name_of_the_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path(name).write_text(TWO)
    assert cli.main(["study", "arms", "smollm2-cpu-small", name, "--dry-run"]) == 0
    assert Path("runs/study-arms-mine-smollm2-cpu-small/study.toml").is_file()


def test_a_study_of_one_arm_has_gains_and_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "[arms.plain]", "--seeds", "0,1", "--steps", "8") == 0
    assert "there will be no verdict" in capsys.readouterr().out
    study = StudyFolder(tmp_path / "study").read()
    assert study.question == "What does smollm2-cpu-small learn?"
    results = {run.name: make_result(run, {0: 0.25, 4: 0.375, 8: 0.5}) for run in study.runs()}
    assert write_page(StudyFolder(tmp_path / "study"), study, results) == []
    text = StudyFolder(tmp_path / "study").page.read_text()
    assert "## Verdict" not in text
    for word in ("Margin", "difference", "verdict", "By kind", "baseline"):
        assert word not in text, word
    assert "| mean | `plain` | 25.0% | 50.0% | +25.0 |" in text
    assert "(kinds.svg)" in text
    assert (tmp_path / "study" / "kinds.svg").is_file()


def test_a_recipe_s_own_end_is_named_where_it_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--seeds", "0", "--out", str(tmp_path / "study"), "--dry-run"]
    recipe = ["study", "arms", "smollm2-cpu-learn", "alone"]
    assert cli.main([*recipe, *out, "learner.stepz=3"]) == 2
    assert "the recipe's own" not in capsys.readouterr().out
    assert cli.main([*recipe, *out]) == 0
    assert "without the recipe's own run.max_minutes = 12, " in capsys.readouterr().out
    assert cli.main([*recipe, *out, "--minutes", "12"]) == 0
    assert "the recipe's own" not in capsys.readouterr().out


def measured(correct: dict[str, int], tasks: int = 1) -> Measured:
    """Of one kind: program -> correct solutions of `tasks` tasks x 4."""
    counts = {program: (number, 4 * tasks) for program, number in correct.items()}
    total = (sum(correct.values()), 4 * tasks * len(correct))
    return Measured(
        version=8,
        time_s=80.0,
        tokens_trained=800.0,
        mean=total[0] / total[1],
        low=0.0,
        high=1.0,
        solved={"deduction": total},
        samples=4,
        programs={"deduction": counts},
    )


def test_the_interval_over_programs_pairs_the_means_of_arms_by_task() -> None:
    arm = [measured({"a": 4, "b": 2, "c": 1}), measured({"a": 2, "b": 2, "c": 3})]
    baseline = [measured({"a": 1, "b": 1, "c": 1})]
    found = over_programs(arm, baseline)
    assert found is not None
    # By hand: differences 0.5, 0.25 and 0.25 of three programs; SE^2 = 3/2 * sum of (d - 1/3)^2 / 9 = 1/144.
    assert found == pytest.approx(Estimate(1 / 3, 1 / 3 - 1.959964 / 12, 1 / 3 + 1.959964 / 12))
    assert over_programs(arm, baseline, "deduction") == pytest.approx(found)
    assert over_programs(arm, baseline, "induction") is None
    assert over_programs(arm, [baseline[0].model_copy(update={"programs": {}})]) is None
    doubled = [[measured({name: 2 * n for name, (n, _) in one.programs["deduction"].items()}, tasks=2) for one in side]
               for side in (arm, baseline)]  # fmt: skip
    assert over_programs(*doubled) == pytest.approx(found), "tasks of one program are no further evidence"


def test_the_page_has_kinds_tokens_and_diversity(tmp_path: Path) -> None:
    study = make_study(study="arms", budget=Budget(tokens=800))
    folder = write(study, tmp_path)
    last = {"K0": 0.5, "K2": 0.25}

    def result_of(run: StudyRun) -> Any:
        result = make_result(run, {0: 0.25, 8: last[run.arm]}, diversity={"copies": 0.125, "entropy": 1.5})
        counts = {kind: {f"p{n}": (round(4 * last[run.arm]), 4) for n in range(9)} for kind in names()}
        end = result.heldout[-1].model_copy(update={"programs": counts, "tokens_generated": 2000.0})
        return result.model_copy(update={"heldout": (result.heldout[0], end)})

    results = {run.name: result_of(run) for run in study.runs()}
    assert [one.version for one in judge(study, results)] == [None, None], "the last version of each run"
    write_page(folder, study, results)
    text = folder.page.read_text()
    for kind in ("mean", *names()):
        row = next(line for line in text.splitlines() if line.startswith(f"| {kind} | `K2` | 25.0% | -25.0 |"))
        assert row.endswith(" to +8.3 |"), "nine programs without any spread: the rule of three, 3 / 9"
    assert "| `K0` | +25.0 | 800 | +31250.0 | 2,000 | +12500.0 |" in text
    assert "| `K2` | - | - | - | 12.5% | 1.50 |" in text
    assert "each run: 800 trained tokens" in text
    assert (tmp_path / "curves-tokens.svg").read_text().count("trained tokens, thousands") == 1
    assert "entropy, nats" in (tmp_path / "curves-time.svg").read_text()
    assert "(curves-tokens.svg)" in text
