"""The batch script: committed examples, and quoting by the programs that read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.user_error import UserError
from launch.config import Config, SftConfig, load
from launch.recipe import ConfigError
from launch.slurm.quoting import QuotingError, sbatch, shell
from launch.slurm.script import script, warning_s
from launch.slurm_settings import SlurmSettings

GOLDEN = Path(__file__).parent / "golden"
HORROR = "a 'b' \"c\" $HOME `id` $(id) \\ # %t ; | & * ü"
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    "one_node": ("smollm2-cpu", []),
    "two_nodes_gpus": (
        "qwen2.5-7b-8gpu",
        [
            "slurm.nodes=2",
            "slurm.gpus_per_node=8",
            "slurm.time=12:00:00",
            "slurm.partition=gpu",
            "slurm.account=physics",
        ],
    ),
    "quoting": (
        "smollm2-cpu",
        [
            f"run.dir=/runs/{HORROR.replace(chr(92), '')}",
            f"slurm.account={HORROR}",
            f"slurm.environment.VALUE={HORROR}",
            'slurm.environment.LINES="one\\ntwo"',
            f"slurm.python=/opt/{HORROR}",
        ],
    ),
    "extra_options": (
        "sft-smollm2-cpu",
        [
            'slurm.extra={ nice = "100", mail-type = "FAIL", gres = "gpu:a100:4", contiguous = "", partition = "b" }',
            "slurm.gpus_per_node=4",
            "slurm.partition=a",
            "slurm.exclusive=false",
            "slurm.requeue=false",
            'slurm.setup=["module load cuda", "if true; then", "  ulimit -n 65535", "fi"]',
        ],
    ),
    "heterogeneous": ("smollm2-cpu", ["slurm.nodes=1", f"slurm.template={GOLDEN / 'heterogeneous.j2'}"]),
}


def example(name: str) -> Config | SftConfig:
    recipe, overrides = EXAMPLES[name]
    overrides = ["run.dir=/runs", *overrides]
    return load(recipe, overrides, SftConfig) if recipe.startswith("sft") else load(recipe, overrides)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_script_is_the_committed_one_and_valid_bash(name: str) -> None:
    config = example(name)
    text = script(config, "/opt/azr/bin/python", warning_s(config.slurm, None))
    golden = GOLDEN / f"{name}.sbatch"
    assert text == golden.read_text(), f"look at the difference; if it is meant, write it to {golden}"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_arrives_unchanged_through_bash(text: str) -> None:
    printed = subprocess.run(
        ["bash", "-c", f'VALUE={shell(text)}\nprintf %s "$VALUE"'], capture_output=True, check=True
    )
    assert printed.stdout == text.encode()


def test_the_environment_of_the_recipe_arrives_unchanged(tmp_path: Path) -> None:
    """The whole script, up to the first command of its own."""
    config = example("quoting")
    text = script(config, "/opt/python", 300)
    ran = subprocess.run(
        ["bash", "-c", text[: text.index("began=")] + '\nprintf \'%s\\0\' "$RUN" "$VALUE" "$LINES"'],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert ran.stdout.decode().split("\0")[:3] == [str(config.folder), HORROR, "one\ntwo"]
    assert list(tmp_path.iterdir()) == []


def read_as_sbatch(line: str) -> str:
    """What sbatch reads from a quoted value, by the rules of `_get_argument` in its source."""
    read, quote, escaped = "", "", False
    for letter in line:
        if escaped:
            read, escaped = read + letter, False
        elif letter == "\\":
            escaped = True
        elif quote:
            read, quote = (read, "") if letter == quote else (read + letter, quote)
        elif letter in "'\"":
            quote = letter
        elif letter.isspace() or letter == "#":
            break
        else:
            read += letter
    assert not quote
    return read


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_line_of_text_arrives_unchanged_through_sbatch(text: str) -> None:
    """By a model of its reader; tests/slurm asks the real one."""
    assert read_as_sbatch(sbatch(text)) == text


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\rb"])
def test_what_sbatch_cannot_carry_is_refused(value: str) -> None:
    with pytest.raises(QuotingError, match="control character"):
        sbatch(value)
    with pytest.raises(ConfigError, match=r"slurm\.account"):
        load("smollm2-cpu", [f"slurm.account={value}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{% if %}", "line 1"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ('{% extends "job.sbatch.j2" %}\n{% block setpu %}{% endblock %}', "line 2: .* has no block 'setpu'"),
        (None, "cannot be read"),
    ],
)
def test_a_template_with_a_mistake_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.j2"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        script(load("smollm2-cpu", [f"slurm.template={path}"]), "/opt/python", 300)


@pytest.mark.parametrize(
    ("settings", "stop_s", "expected"),
    [
        ({}, None, 300),
        ({}, 100.2, 161),
        ({"warning_s": 20}, 100.0, 20),
        ({"time": "5"}, 1000.0, 150),
        ({"time": "3-0"}, 1e6, 65535),
        ({"time": "0"}, None, 300),
    ],
)
def test_the_warning_is_what_a_stop_takes_and_at_most_half_of_the_time(
    settings: dict[str, object], stop_s: float | None, expected: int
) -> None:
    assert warning_s(SlurmSettings.model_validate(settings), stop_s) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("1:30:30", 5430), ("2-1", 176400), ("2-1:30", 178200), ("2-1:30:30", 178230)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: float) -> None:
    assert SlurmSettings(time=text).limit_s == seconds
