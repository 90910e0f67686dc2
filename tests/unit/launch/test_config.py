from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from executor.settings_table import SettingsTable
from launch import cli
from launch.config import Config, SftConfig, build, documented, load, schema, to_toml
from launch.recipe import RECIPES, ConfigError, parse_override
from launch.refused_settings import REFUSED, RENAMED


@pytest.mark.parametrize(
    "recipe",
    sorted(path for path in RECIPES.glob("*.toml") if not path.stem.startswith("sft-")),
    ids=lambda path: path.stem,
)
def test_every_recipe_loads_and_its_dump_loads_back_equal(recipe: Path) -> None:
    config = load(recipe)
    assert build(tomllib.loads(to_toml(config))) == config


def test_recipes_are_found_by_name() -> None:
    assert load("smollm2-cpu") == load(RECIPES / "smollm2-cpu.toml")


@pytest.mark.parametrize(
    "typed", ["no/such/dir/smollm2-cpu.toml", "no/such/smollm2-cpu", "./smollm2-cpu", "smollm2-cpu.toml"]
)
def test_a_path_that_is_typed_is_that_file_or_an_error(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["train", typed], ["config", "show", typed], ["drill", typed], ["sft", typed]):
        assert cli.main(command) == 2
        assert (
            "there is no such file, or it may not be read. The recipe that ships is called smollm2-cpu."
            in capsys.readouterr().err
        )
    above = tmp_path / "mine.toml"
    above.write_text(f'base = "{typed}"')
    with pytest.raises(ConfigError, match="no such file"):
        load(above)
    file = tmp_path / typed
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_name("smollm2-cpu.toml").write_text("[learner]\nsteps = 7")
    assert load(typed).learner.steps == 7
    assert load(above).learner.steps == 7


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean smollm2-cpu"):
        load("smolm2-cpu")


def test_overrides_are_typed_and_win() -> None:
    config = load("smollm2-cpu", ["learner.optimizer.lr=3e-6", "run.name=x", "learner.batch.propose={deduction=3}"])
    assert config.learner.optimizer.lr == 3e-6
    assert config.run.name == "x"
    assert config.learner.batch.propose == {"deduction": 3}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.optimiser.lr=1", ["learner.optimiser", "learner.optimizer", "override"]),
        ("learner.optimizer.learning_rate=1", ["unknown setting learner.optimizer.learning_rate"]),
        ("run.sede=1", ["Did you mean run.seed"]),
        ("max_staleness=2", ["learner.max_staleness"]),
        ("learner.optimizer.lr=fast", ["learner.optimizer.lr", "'fast'", "valid number", "Learning rate"]),
        ("learner.max_staleness=-1", ["learner.max_staleness", "greater than or equal to 0"]),
        ("selfplay.prompt_format=r2", ["selfplay.prompt_format", "completion"]),
        ("engine.max_model_len=64", ["engine.max_model_len is 64", "raise it"]),
        ("selfplay.label_pairs=1", ["label_pairs = 1 labels no program", "set 2 or more"]),
        ("learner.loss.supervised=0.5", ["learner.loss.supervised", "set selfplay.label_pairs"]),
        ("learner.batch.propose={guess=1}", ["learner.batch.propose"]),
        ("learner.batch.propose.deduction=-4", ["learner.batch.propose.deduction is -4", "0"]),
        ("selfplay.temperature=0", ["selfplay.temperature", "greater than or equal to 0.01"]),
        ("selfplay.top_p=0.9", ["selfplay.top_p", "cannot be set", "override", "selfplay.temperature"]),
        ("nonsense", ["table.key=value"]),
        ("learner.=3", ["table.key=value"]),
    ],
)
def test_mistakes_name_the_key_and_the_mend(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load("smollm2-cpu", [override])
    for word in words:
        assert word in str(caught.value)


def test_a_supervised_loss_has_no_thoughts_to_teach() -> None:
    on = ["learner.loss.supervised=0.5", "selfplay.label_pairs=4"]
    assert load("smollm2-cpu", on).learner.loss.supervised == 0.5
    with pytest.raises(ConfigError, match="no reasoning"):
        load("smollm2-cpu", [*on, "selfplay.prompt_format=r1"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["selfplay.propose=false", "learner.batch.solve={}"], "at least one solution, as selfplay.propose is false"),
        (
            ["learner.loss.supervised=1", "selfplay.label_pairs=4", "learner.batch.propose={}"],
            "has nothing to learn from",
        ),
        (
            [
                "learner.advantage.estimator=group",
                "learner.batch.solve={deduction=4}",
                "learner.batch.propose={deduction=4}",
                "selfplay.proposals_per_prompt=1",
            ],
            "each would be alone",
        ),
    ],
)
def test_settings_that_would_teach_nothing_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("smollm2-cpu", overrides)


@pytest.mark.parametrize(
    "more",
    [
        ["learner.batch.solve={deduction=8}"],
        ["learner.batch.solve={deduction=8}", "selfplay.train_on_estimates=false"],
        ["learner.batch.solve={deduction=4}", "selfplay.proposals_per_prompt=2"],
    ],
)
def test_an_estimator_that_compares_one_prompts_trajectories_needs_several(more: list[str]) -> None:
    group = ["learner.advantage.estimator=group", "learner.batch.propose={deduction=4}"]
    assert (
        load("smollm2-cpu", [*group, "selfplay.proposals_per_prompt=1", *more]).learner.advantage.estimator == "group"
    )


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("engine.data_parallel", "actors.num_actors"),
        ("engine.data_parallel_size", "actors.num_actors"),
        ("engine.enable_expert_parallel", "actors.num_actors"),
        ("engine.pipeline_parallel_size", "engine.tensor_parallel"),
        ("engine.tensor_parallel_size", "engine.tensor_parallel"),
        ("engine.extra.data_parallel_size", "[engine]"),
    ],
)
def test_other_kinds_of_engines_are_refused_with_what_to_set(key: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("cannot be set (override")) as caught:
        load("smollm2-cpu", [f"{key}=2"])
    assert instead in str(caught.value)


def test_no_setting_is_refused_and_a_reason_names_settings_that_exist() -> None:
    settings = dict(documented())
    assert not settings.keys() & REFUSED.keys()
    for why in REFUSED.values():
        named = set(re.findall(r"\b(?:actors|engine|selfplay)\.[a-z_]+", why))
        assert named <= settings.keys()
        assert named or "[engine]" in why


def test_serial_mode_refuses_what_needs_processes() -> None:
    with pytest.raises(ConfigError, match=r"actors\.num_actors = 1"):
        load("smollm2-cpu", ["run.mode=serial", "actors.num_actors=2"])
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel is 2, set it to 1"):
        load("smollm2-cpu", ["run.mode=serial", "engine.tensor_parallel=2"])


def test_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[learner]\nmax_stalenes = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.toml.*Did you mean learner\.max_staleness"):
        load(recipe)
    recipe.write_text("[learner\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(recipe)
    recipe.write_bytes('[run]\nname = "caf\xe9"\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.toml is not UTF-8 text"):
        load(recipe)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[learner.batch]\nkinds = ['deducton']", "learner.batch.kinds"),
        ("[learner.batch]\nkinds = [1]", "learner.batch.kinds"),
        ("[learner.batch.propose]\ndeduction = -4", "learner.batch.propose.deduction"),
        ("[engine]\nmax_model_len = 64", "engine.max_model_len"),
        ("[learner.loss]\naggregation = 'fixed'", "learner.loss"),
        ("[run]\nname = '..'", "run.name"),
    ],
)
def test_a_mistake_in_a_value_names_the_file_wherever_it_is_found(text: str, key: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(recipe)
    assert key in str(caught.value) and str(recipe) in str(caught.value)


def numbers(root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of all settings that take a number with a fraction."""
    for name, field in root.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers(field.annotation, f"{prefix}{name}.")
        elif float in (field.annotation, *get_args(field.annotation)):
            yield f"{prefix}{name}"


@pytest.mark.parametrize(("recipe", "root"), [("smollm2-cpu", Config), ("sft-smollm2-cpu", SftConfig)])
def test_no_setting_takes_a_number_that_is_not_finite(recipe: str, root: type[Config] | type[SftConfig]) -> None:
    keys = list(numbers(root))
    assert len(keys) > 10
    for key in keys:
        for value in ("inf", "-inf", "nan"):
            with pytest.raises(ConfigError, match=re.escape(f"{key} = {value} cannot be used")):
                load(recipe, [f"{key}={value}"], root)


def test_a_home_directory_is_found_where_the_shell_leaves_it_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load("smollm2-cpu", ["run.dir=~/runs", "run.name=x"]).folder == Path("/home/ada/runs/x")


@pytest.mark.parametrize("name", ["..", ".", "...", "", "a/b", "../x", "/tmp", "a b"])
def test_names_that_lead_out_of_the_folder_of_runs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name.*Letters, digits, dots"):
        load("smollm2-cpu", [f"run.name={name}"])


@pytest.mark.parametrize("name", ["2026", "2026-11-27", "1e5", "true", "none", "v1.2", ".hidden", "'quoted'"])
def test_a_setting_of_text_takes_every_text(name: str) -> None:
    assert load("smollm2-cpu", [f"run.name={name}"]).run.name == name.strip("'")


@pytest.mark.parametrize("text", ["[landlock, seccomp]", '["landlock", "seccomp"]', "[ landlock,seccomp ]"])
def test_a_list_of_texts_needs_no_quotes_which_a_shell_takes_off(text: str) -> None:
    assert load("smollm2-cpu", [f"executor.require={text}"]).executor.require == ("landlock", "seccomp")
    assert load("smollm2-cpu", ["executor.require=landlock"]).executor.require == ("landlock",)
    assert load("smollm2-cpu", ["executor.require=[]"]).executor.require == ()


def test_an_optional_setting_is_unset_by_none_and_another_is_not() -> None:
    config = load("smollm2-cpu", ["run.max_minutes=none", "ray.address=None", "learner.loss.correction=none"])
    assert (config.run.max_minutes, config.ray.address, config.learner.loss.correction) == (None, None, "none")
    assert load("smollm2-cpu", ["ray.address=7"]).ray.address == "7"
    with pytest.raises(ConfigError, match=r"learner\.steps = 'none'"):
        load("smollm2-cpu", ["learner.steps=none"])


def test_override_values_are_toml_or_else_text() -> None:
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a.b=some text") == ("a.b", "some text")


def test_schema_and_documentation_cover_every_setting() -> None:
    assert json.loads(schema())["properties"].keys() == {*Config.model_fields, "base"}
    undocumented = [key for key, text in documented() if not text]
    assert undocumented == []


@pytest.mark.parametrize("root", [Config, SftConfig])
def test_a_settings_first_line_is_a_sentence(root: type[SettingsTable]) -> None:
    """An error message shows that line alone."""
    cut = [key for key, text in documented(root) if not text.splitlines()[0].endswith(".")]
    assert cut == []


@pytest.mark.parametrize(("former", "present"), RENAMED.items())
def test_a_renamed_setting_is_refused_with_its_present_name(former: str, present: str) -> None:
    with pytest.raises(ConfigError, match=f"^{former} is now {present} \\(override(.*)\\): rename it there.$"):
        load("smollm2-cpu", [f"{former}=1"])
    assert present in dict(documented())
    load("smollm2-cpu", [f"{present}=1"])


def test_cli_reports_mistakes_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "smollm2-cpu", "run.sede=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("azr: unknown setting run.sede")
    assert cli.main(["train"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_cli_refuses_to_run_over_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert cli.main(["train", "smollm2-cpu", f"run.dir={tmp_path}", "run.name=old"]) == 2
    assert f"--resume {folder}" in capsys.readouterr().err


def test_cli_refuses_to_resume_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"[run]\nname = 'x'\n", b"\xff\xfe"])
def test_cli_refuses_a_seed_file_without_tasks_before_anything_is_made(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seeds.jsonl"
    if content is not None:
        file.write_bytes(content)
    settings = [f"run.dir={tmp_path / 'runs'}", "run.name=x", f"selfplay.seed_tasks={file}", "model.path=none"]
    assert cli.main(["train", "smollm2-cpu", *settings]) == 2
    assert f"selfplay.seed_tasks = {file}" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "x").exists()


def test_cli_shows_a_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "smollm2-cpu", "learner.steps=7"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["learner"]["steps"] == 7


def test_cli_takes_overrides_on_either_side_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "smollm2-cpu", "--set", "learner.steps=7", "run.seed=3", "run.name=x"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["learner"]["steps"], shown["run"]["seed"], shown["run"]["name"]) == (7, 3, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "show", "smollm2-cpu", "--sett", "a=b"],
        ["config", "show", "smollm2-cpu", "--set", "run.seed=1", "stray"],
        ["model", "list", "run.seed=1"],
    ],
)
def test_cli_refuses_what_no_command_takes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_kind_that_nobody_registered_is_named_with_those_that_there_are() -> None:
    for override in (
        'learner.batch.kinds=["deductoin"]',
        "learner.batch.propose.deductoin=1",
        "learner.batch.solve.deductoin=1",
    ):
        with pytest.raises(
            ConfigError, match=r"'deductoin'.* Did you mean deduction\?.*deduction, abduction, induction;"
        ):
            load("smollm2-cpu", [override])
