"""The study file: what is written comes back, what does not fit is refused in words, and no change after the start."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from launch import cli
from launch.config import load
from launch.study.definition import Arm, Budget, StudyError, differences, interleaved, read_study
from launch.study.folder import StudyFolder
from tests.unit.launch.study.studies import make_study, write


def test_a_study_that_is_written_comes_back(tmp_path: Path) -> None:
    folder = write(make_study(), tmp_path)
    study = folder.read()
    assert study.model_copy(update={"recipe_sha256": "0" * 64}) == make_study()
    assert [run.name for run in study.runs_in_order()] == ["K0-s0", "K2-s0", "K2-s1", "K0-s1", "K0-s2", "K2-s2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [1, 1]}, "seed twice"),
        ({"seeds": []}, "seeds"),
        ({"order": ["K0-s0"]}, "order has to name every run once; missing: K0-s1"),
        ({"order": "K0-s0"}, "order"),
        ({"margn": 1}, "margn is no key of this file"),
        ({"budget": {}}, "either steps, tokens or minutes"),
        ({"budget": {"steps": 4, "minutes": 3}}, "either steps, tokens or minutes"),
        ({"budget": {"steps": 0}}, "budget.steps = 0 cannot be used"),
        ({"judgement": {"heldout_every": 4, "margin": 3}}, "judgement.margin = 3 cannot be used"),
        ({"judgement": {"heldout_every": 4}}, "judgement.margin is missing"),
        ({"arms": [{"name": "K0"}, {"name": "K0"}]}, "K0 is there twice"),
        ({"arms": [{"name": "K0"}, {"name": "K2", "baseline": "K1"}]}, "baseline K1"),
        ({"study": "foo"}, "study = 'foo' cannot be used"),
        ({"arms": [{"name": "../K0"}]}, r"arms\[0\].name"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, change: Any, words: str) -> None:
    folder = write(make_study(), tmp_path)
    data = tomllib.loads(folder.definition.read_text()) | change
    folder.definition.write_text(tomli_w.dumps(data))
    with pytest.raises(StudyError, match=words):
        folder.read()


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no study.*azr study staleness RECIPE"):
        read_study(tmp_path / "study.toml")
    (tmp_path / "study.toml").write_text("seeds = [")
    with pytest.raises(StudyError, match="not valid TOML"):
        read_study(tmp_path / "study.toml")
    (tmp_path / "study.toml").write_bytes(b"\xff\x00")
    with pytest.raises(StudyError, match="not valid TOML.*Put it back"):
        read_study(tmp_path / "study.toml")


@given(st.integers(1, 6), st.integers(1, 5))
def test_runs_are_interleaved_so_that_no_arm_is_favoured(num_arms: int, num_seeds: int) -> None:
    arms = tuple(f"a{number}" for number in range(num_arms))
    order = interleaved(arms, tuple(range(num_seeds)))
    assert len(set(order)) == num_arms * num_seeds
    rounds = [order[start : start + num_arms] for start in range(0, len(order), num_arms)]
    assert all({name.partition("-")[0] for name in turn} == set(arms) for turn in rounds)
    if num_seeds % 2 == 0:  # a drift that is linear in time then adds the same to every arm
        assert len({sum(order.index(f"{arm}-s{seed}") for seed in range(num_seeds)) for arm in arms}) == 1


def test_a_margin_may_be_changed_before_the_first_run_and_never_after(tmp_path: Path) -> None:
    folder = write(make_study(), tmp_path)
    before = folder.definition.read_text()
    changed = before.replace("margin = 0.05", "margin = 0.1")
    assert changed != before
    folder.definition.write_text(changed)
    folder.begin(study := folder.read())
    folder.definition.write_text(before)
    with pytest.raises(StudyError, match=r"judgement.margin: 0.1 -> 0.05.*put it back.*Start another study"):
        folder.read()
    folder.definition.write_text(changed + "# a comment changes nothing\n")
    assert folder.read() == study


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"overrides": ("b=2", "a=1")}, None),
        ({"overrides": ("a=1", "b=3", "c=4")}, "overrides.b: 2 -> 3; overrides.c: none -> 4"),
        ({"overrides": ("a=1",)}, "overrides.b: 2 -> none"),
        ({"seeds": (0, 1), "order": ("K0-s0", "K2-s0", "K2-s1", "K0-s1")}, "seeds: without 2"),
        ({"order": ("K2-s0", "K0-s0", "K2-s1", "K0-s1", "K0-s2", "K2-s2")}, "order: another order"),
        ({"budget": Budget(tokens=3)}, "budget.steps: 8 -> none; budget.tokens: none -> 3"),
        ({"arms": ("K0", "K3"), "seeds": (0,)}, "seeds: without 1, 2"),
        ({"arms": ("K0", "K2", "K3")}, "order: with K3-s0, K3-s1, K3-s2"),
    ],
)
def test_only_the_items_that_differ_are_named(changes: dict[str, Any], line: str | None) -> None:
    former = make_study(overrides=("a=1", "b=2"))
    found = differences(former, make_study(**{"overrides": ("a=1", "b=2")} | changes))
    assert next(iter(found.values()), None) == line


def test_arms_are_compared_by_their_names() -> None:
    former = make_study(overrides=("a=1", "b=2"))
    assert differences(former, former.model_copy(update={"written": "later"})) == {}
    other = Arm(name="K2", overrides=("x=1",))
    assert differences(former, former.model_copy(update={"arms": (other, former.arms[0])})) == {
        "arms": "arms.K2.baseline: K0 -> none; arms.K2.overrides.learner.max_staleness: 2 -> none; "
        "arms.K2.overrides.x: none -> 1"
    }
    assert differences(former, former.model_copy(update={"arms": former.arms[:1]})) == {
        "arms": "arms.K2: given -> none"
    }


def test_neither_the_recipe_nor_the_record_of_the_start_may_go(tmp_path: Path) -> None:
    folder = write(make_study(), tmp_path)
    folder.begin(folder.read())
    recipe = folder.recipe.read_text()
    folder.recipe.write_text(recipe + "# another\n")
    with pytest.raises(StudyError, match="not the recipe that the study was written with"):
        folder.read()
    folder.recipe.write_text(recipe)
    (folder.results / "K0-s0.json").write_text("{}")
    folder.began.unlink()
    with pytest.raises(StudyError, match="began.json is gone"):
        folder.read()


def command(tmp_path: Path, *more: str) -> int:
    out = ["--out", str(tmp_path / "study"), "--dry-run"]
    return cli.main(["study", "staleness", "smollm2-cpu-small", "--steps", "12", *out, *more])


def test_the_command_writes_the_study_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--staleness", "0,2", "--seeds", "0,1", "--corrections", "clip,tis", "learner.optimizer.lr=1e-5"]
    assert command(tmp_path, *options) == 0
    study = StudyFolder(tmp_path / "study").read()
    assert [(arm.name, arm.baseline) for arm in study.arms] == [
        ("clip-K0", None),
        ("clip-K2", "clip-K0"),
        ("tis-K0", None),
        ("tis-K2", "tis-K0"),
    ]
    assert len(study.order) == 8
    assert study.judgement.heldout_every == 5, "as in the recipe"
    said = capsys.readouterr().out
    assert "in four of five studies takes about 11 seeds" in said, "two seeds and a margin of 3 points"
    assert "1e-05" in (tmp_path / "study" / "recipe.toml").read_text()
    assert command(tmp_path, *options) == 0, "the same again is the same study"
    assert capsys.readouterr().out.count("written") == 0
    assert command(tmp_path, *options, "--margin", "0.1") == 0, "no run has begun"
    assert "judgement.margin: 0.03 -> 0.1" in capsys.readouterr().out
    folder = StudyFolder(tmp_path / "study")
    folder.begin(folder.read())
    assert command(tmp_path, *options, "--margin", "0.03") == 2
    said = capsys.readouterr().err
    assert "judgement.margin: 0.1 -> 0.03" in said
    assert "--out FOLDER" in said
    assert folder.read().judgement.margin == 0.1


def test_a_study_that_was_edited_is_not_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--staleness", "0,2", "--seeds", "0,1"]
    assert command(tmp_path, *options) == 0
    folder = StudyFolder(tmp_path / "study")
    text = folder.definition.read_text()
    folder.definition.write_text(edited := text.replace("margin = 0.03", "margin = 0.05"))
    assert command(tmp_path, *options) == 2
    said = capsys.readouterr().err
    assert (
        "a study that was edited, or written by an older azr: it differs in judgement.margin: 0.05 -> 0.03. "
        "To keep it: azr study resume" in said
    )
    assert f"remove {folder.definition} first" in said
    assert folder.definition.read_text() == edited
    folder.definition.unlink()
    folder.notes.write_text("kept\n")
    assert command(tmp_path, *options) == 0
    assert folder.notes.read_text() == "kept\n"


def test_another_study_or_other_files_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--staleness", "0,2") == 0
    folder = StudyFolder(tmp_path / "study")
    capsys.readouterr()
    arms = ["study", "arms", "smollm2-cpu-learn", "ablations", "--dry-run", "--out"]
    assert cli.main([*arms, str(folder.path)]) == 2
    said = capsys.readouterr()
    assert "another study: it differs in study: staleness -> arms" in said.err
    assert said.out == ""
    assert folder.read().study == "staleness"
    folder.definition.rename(folder.path / "notes.toml")
    assert cli.main([*arms, str(folder.path)]) == 2
    assert "holds notes.toml, and no study: name a new or an empty folder" in capsys.readouterr().err
    assert not folder.definition.exists()


def test_a_recipe_that_was_edited_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path) == 0
    folder = StudyFolder(tmp_path / "study")
    folder.recipe.write_text(edited := folder.recipe.read_text() + "# mine\n")
    assert command(tmp_path, "--margin", "0.05") == 2
    assert "is not the recipe that the study was written with" in capsys.readouterr().err
    assert folder.recipe.read_text() == edited


def test_a_study_of_other_arms_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["study", "arms", "smollm2-cpu-learn", "--dry-run", "--out", str(tmp_path / "study")]
    assert cli.main([*arms, "ablations"]) == 0
    before = StudyFolder(tmp_path / "study").definition.read_text()
    assert cli.main([*arms, "alone"]) == 2
    assert "has another study: it differs in" in capsys.readouterr().err
    assert StudyFolder(tmp_path / "study").definition.read_text() == before


def test_a_recipe_that_does_not_measure_is_measured_in_a_study(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('base = "smollm2-cpu-small"\n[selfplay]\nheldout_every = 0\n')
    out = ["--out", str(tmp_path / "study"), "--dry-run"]
    assert cli.main(["study", "staleness", str(recipe), "--steps", "14", *out]) == 0
    assert StudyFolder(tmp_path / "study").read().judgement.heldout_every == 3
    assert load(tmp_path / "study" / "recipe.toml").selfplay.heldout_every == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--staleness", "1,2"], "has no 0"),
        (["--staleness", "0"], "at least one other"),
        (["--staleness", "0,x"], "--staleness 0,x: whole numbers from 0 on"),
        (["--staleness", "0,-1"], "--staleness 0,-1: whole numbers from 0 on"),
        (["--seeds=-1,2"], "--seeds -1,2: whole numbers from 0 on"),
        (["--staleness", "0,1,1"], "each once"),
        (["--corrections", "clip,clip"], "--corrections clip,clip: names separated by commas, each once"),
        (["--corrections", "clip,,tis"], "each once"),
        (["--corrections", ""], "each once"),
        (["selfplay.seed_tasks=/nonexistent"], "selfplay.seed_tasks = /nonexistent cannot be read"),
        (["run.mode=rehearse", "rehearsal.lengths=/nonexistent"], "rehearsal.lengths = /nonexistent cannot be used"),
        (["model.path=/nonexistent"], "model.path = '/nonexistent' is neither a folder nor a known model"),
        (["--limit", "0"], None),
        (["--limit", "-2"], None),
        (["--staleness", "0,99"], "learner.max_staleness"),
        (["--corrections", "clap"], "there are clip, decoupled, tis, none"),
        (["--seeds", "1,1"], "seed twice"),
        (["--minutes", "0"], None),
        (["learner.max_staleness=3"], "use --staleness"),
        (["run.seed=3"], "use --seeds"),
        (["selfplay.heldout_every=0"], "nothing to judge by"),
        (["selfplay.heldout_wait_s=0"], "leaves out the measurement of the last version"),
        (["learner.stepz=3"], "unknown setting"),
        (["--margin", "3"], "--margin 3: a share between 0 and 1, such as 0.03"),
        (["--alpha", "0.6"], "--alpha 0.6: a probability between 0 and 0.5"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str | None
) -> None:
    if words is None:
        with pytest.raises(SystemExit):
            command(tmp_path, *options)
    else:
        assert command(tmp_path, *options) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_equal_minutes_are_no_jobs_even_of_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "study"), "--dry-run"]
    assert cli.main(["study", "staleness", "smollm2-cpu-small", "--minutes", "3", "--slurm", *out]) == 2
    assert "does not work as SLURM jobs" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_model_of_other_machines_is_theirs_to_find(tmp_path: Path) -> None:
    assert command(tmp_path, "model.path=/nonexistent", "--slurm") == 0


@pytest.mark.parametrize("what", ["resume", "report"])
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("heldout_every = 5", "heldout_every = 2", "settings that its runs would not have"),
        ("overrides = []\nrecipe_sha256", 'overrides = ["learner.optimizer.lr=1"]\nrecipe_sha256', "settings that its"),
        ('"heldout/mean"', '"heldout/deduction"', "judgement.metric"),
        ('"learner.max_staleness=2"', '"learner.max_stalenezz=2"', "unknown setting"),
        ("heldout_every = 5", "heldout_every = 0", "judgement.heldout_every = 0 cannot be used"),
        ('"learner.max_staleness=2"', '"selfplay.heldout_tasks=5"', "all arms are measured alike"),
        ('"learner.max_staleness=2"', '"learner.max_staleness=0"', "the same settings"),
    ],
)
def test_a_file_that_was_edited_to_what_runs_would_not_do_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, words: str, what: str
) -> None:
    assert command(tmp_path, "--staleness", "0,2", "--seeds", "0") == 0
    folder = StudyFolder(tmp_path / "study")
    written = folder.definition.read_text()
    assert written.count(before) == 1
    folder.definition.write_text(written.replace(before, after))
    assert cli.main(["study", what, str(folder.path)]) == 2
    assert words in capsys.readouterr().err
    assert not folder.began.exists()


def test_a_folder_of_an_older_azr_which_said_reference_is_read(tmp_path: Path) -> None:
    folder = write(make_study(), tmp_path)
    folder.begin(folder.read())
    for path in (folder.definition, folder.began):
        path.write_text(path.read_text().replace("baseline", "reference"))
    assert folder.read().arms == make_study().arms


def test_a_beginning_that_cannot_be_understood_is_a_study_error(tmp_path: Path) -> None:
    folder = write(make_study(), tmp_path)
    folder.begin(folder.read())
    folder.began.write_text(folder.began.read_text().replace('"arms"', '"arm"'))
    with pytest.raises(StudyError, match="go on with the azr that began it"):
        folder.read()
    for torn in ('{"time": "', "[]", '{"time": ""}'):
        folder.began.write_text(torn)
        with pytest.raises(StudyError, match="began.json, which says .* cannot be read: .* Put it back"):
            folder.read()
