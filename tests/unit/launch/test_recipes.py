"""Recipes that build on others: what `base` does, and that each ablation changes one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.config import Config, load
from launch.recipe import RECIPES, ConfigError, settings_in
from learner.settings import BatchSettings
from learner.trajectory import Cell, Role

KINDS = BatchSettings().kinds

ALL = ["deduction", "abduction", "induction"]
ABLATIONS: dict[str, tuple[str, Any]] = {
    "ablation-deduction-only": ("learner.batch.kinds", ALL[:1]),
    "ablation-no-induction": ("learner.batch.kinds", ALL[:2]),
    "ablation-no-references": ("selfplay.references", 0),
    "ablation-solver-only": ("selfplay.propose", False),
    "ablation-composite": ("selfplay.composite_functions", 0.5),
    "ablation-compat-reference": ("selfplay.compat", "reference"),
    "ablation-token-weighting": ("learner.advantage.weighting", "token"),
    "ablation-discard-estimates": ("selfplay.train_on_estimates", False),
    "ablation-reinforce": ("learner.advantage.estimator", "reinforce"),
    "ablation-reinforce-plus-plus": ("learner.advantage.estimator", "reinforce++"),
    "ablation-group": ("learner.advantage.estimator", "group"),
    "ablation-recency": ("buffer.sampling", "recency"),
}
COLLAPSE: dict[str, dict[str, Any]] = {
    "collapse-paper": {},
    "collapse-input-dependence": {"selfplay.input_dependence": True},
    "collapse-compat-reference": {"selfplay.compat": "reference"},
    "collapse-novelty": {"selfplay.novelty": "reject"},
    "collapse-diversity": {"selfplay.intrinsic.distance": 0.5, "selfplay.intrinsic.answer_diversity": 0.5},
    "collapse-seeded": {
        "selfplay.seed_tasks_target": 48,
        "selfplay.input_dependence": True,
        "selfplay.novelty": "reject",
    },
    "collapse-all": {
        "selfplay.input_dependence": True,
        "selfplay.compat": "reference",
        "selfplay.novelty": "penalise",
    },
}


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by dotted key, but for the run's name."""
    settings = dict(settings_in(config.model_dump(mode="json")))
    del settings["run.name"]
    return settings


def changed(recipe: str, base: str) -> dict[str, Any]:
    ours, theirs = settings_of(load(recipe)), settings_of(load(base))
    assert ours.keys() == theirs.keys()
    return {key: value for key, value in ours.items() if value != theirs[key]}


def lines_of(recipe: str) -> list[str]:
    text = (RECIPES / f"{recipe}.toml").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_recipe_of_these_families_is_listed_here() -> None:
    assert {path.stem for path in RECIPES.glob("ablation-*.toml")} == ABLATIONS.keys()
    assert {path.stem for path in RECIPES.glob("collapse-*.toml")} == COLLAPSE.keys()


@pytest.mark.parametrize("recipe", ABLATIONS)
def test_an_ablation_is_its_base_and_one_changed_setting(recipe: str) -> None:
    key, value = ABLATIONS[recipe]
    assert changed(recipe, "smollm2-cpu") == {key: value}
    assert len(lines_of(recipe)) == 2, "the base, and the line that changes"
    assert load(recipe).run.name == recipe, "runs of recipes with one base do not share a folder"


@pytest.mark.parametrize("recipe", COLLAPSE)
def test_a_collapse_recipe_is_its_base_and_what_it_names(recipe: str) -> None:
    assert changed(recipe, "smollm2-cpu-small") == COLLAPSE[recipe]
    assert len(lines_of(recipe)) <= 2
    assert load(recipe).run.name == recipe


def test_the_small_recipe_halves_the_batch_of_programs() -> None:
    small, whole = load("smollm2-cpu-small").learner, load("smollm2-cpu").learner
    for kind in ("deduction", "abduction"):
        for role in Role:
            assert 2 * small.batch.quota(Cell(kind, role)) == whole.batch.quota(Cell(kind, role))
    # 200 proposals of each kind; version 40, a multiple of `heldout_every`, is measured before the end.
    assert small.steps * small.batch.quota(Cell("induction", Role.PROPOSE)) >= 200
    assert small.steps % load("smollm2-cpu-small").selfplay.heldout_every == 1


def test_a_kind_that_is_left_out_has_no_quota() -> None:
    batch = load("ablation-deduction-only").learner.batch
    assert {kind: batch.quota(Cell(kind, Role.PROPOSE)) for kind in KINDS} == {
        "deduction": 24,
        "abduction": 0,
        "induction": 0,
    }
    with pytest.raises(ConfigError, match="asks for nothing"):
        load("smollm2-cpu", ["learner.batch.kinds=[]"])


# -- base ------------------------------------------------------------------------------------------------------------


def write(folder: Path, **recipes: str) -> None:
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)


def test_tables_are_merged_key_by_key_and_the_upper_recipe_wins(tmp_path: Path) -> None:
    write(
        tmp_path,
        ground="[learner]\nsteps = 9\n[learner.optimizer]\nlr = 1e-3\nbeta1 = 0.5\n"
        "[learner.batch]\nsolve = { deduction = 5 }",
        middle='base = "ground"\n[learner.optimizer]\nlr = 1e-4\n[learner.batch]\nsolve = { abduction = 6 }',
        top='base = "middle.toml"\nlearner.steps = 7',
    )  # fmt: skip
    learner = load(tmp_path / "top.toml").learner
    assert (learner.steps, learner.optimizer.lr, learner.optimizer.beta1) == (7, 1e-4, 0.5)
    assert learner.batch.solve == {"deduction": 5, "abduction": 6}
    assert load(tmp_path / "top.toml", ["learner.steps=3"]).learner.steps == 3


def test_a_base_is_found_beside_its_recipe_or_among_those_that_ship(tmp_path: Path) -> None:
    write(tmp_path, mine='base = "smollm2-cpu"\nrun.seed = 3')
    assert load(tmp_path / "mine.toml").selfplay == load("smollm2-cpu").selfplay
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", deeper='base = "../mine.toml"')
    assert load(tmp_path / "below" / "deeper.toml").run.seed == 3


def test_a_recipe_is_named_like_its_file_unless_it_says_so(tmp_path: Path) -> None:
    write(tmp_path, a='base = "smollm2-cpu"', b='base = "smollm2-cpu"\nrun.name = "other"', c="run.seed = 1")
    assert [load(tmp_path / f"{name}.toml").run.name for name in "abc"] == ["a", "other", "azr"]


def test_a_circle_of_bases_is_shown(tmp_path: Path) -> None:
    write(tmp_path, a='base = "b"', b='base = "c"', c='base = "b"', own='base = "own"')
    with pytest.raises(ConfigError, match=r"b\.toml -> c\.toml -> b\.toml"):
        load(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"own\.toml -> own\.toml"):
        load(tmp_path / "own.toml")


def test_mistakes_in_bases_name_the_file_and_the_mend(tmp_path: Path) -> None:
    write(tmp_path, a='base = "smolm2-cpu"', b="base = 3", c='base = "broken"', broken="[learner\n")
    with pytest.raises(ConfigError, match=r"a\.toml.*Did you mean smollm2-cpu\?"):
        load(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"base = 3 cannot be used .*b\.toml"):
        load(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load(tmp_path / "c.toml")


def test_a_mistake_names_the_recipe_of_the_chain_that_makes_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        ground='[learner]\nmax_staleness = "two"\nsteps = 4',
        top='base = "ground"\n[learner]\nstepps = 5\n[learner.optimizer]\nlr = 1',
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "top.toml")
    for line in str(caught.value).splitlines():
        assert ("top.toml" if "stepps" in line else "ground.toml") in line, line
    with pytest.raises(ConfigError, match=r"learner\.max_staleness = 'three'.*override"):
        load(tmp_path / "top.toml", ["learner.max_staleness=three"])
